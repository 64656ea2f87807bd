"""Costs from shapes alone agree with counted ones; fingerprints see changes and cost little."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltx_core import fingerprint as fingerprints
from ltx_core.fingerprint import fingerprint
from ltx_core.guidance.perturbations import Perturbation, PerturbationConfig, PerturbationType
from ltx_core.model.common.meter import Work
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.sampling.denoisers import ISOLATED, GuidancePass
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import ImageCondition
from ltx_pipelines.planning.work import Call, CallCounter, tokens_of
from ltx_pipelines.running.recipe import changes_since, make_recipe, plan_of
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.utils.media_io import write_png

MANIFESTS = Path(__file__).resolve().parents[3] / "tests" / "manifests"


def formula(video: int, audio: int, d: int = 4096, a: int = 2048, heads: int = 32, text: int = 1024) -> float:
    """Operations of one block, 2 per multiply-add: attentions, projections, feed-forward, gates."""
    picture = 28 * video * d**2 + 4 * text * d**2 + 4 * video**2 * d + 4 * video * text * d
    sound = 28 * audio * a**2 + 4 * text * a**2 + 4 * audio**2 * a + 4 * audio * text * a
    crossing = 8 * video * d * a + 8 * audio * a**2 + 8 * video * audio * a
    return picture + sound + crossing + 6 * heads * (video * d + audio * a)


def plain_work(config: TransformerConfig, video: int, audio: int, text: int = 1024) -> Work:
    """Of one pass, without guidance."""
    counter = CallCounter(config, {"video": video, "audio": audio}, text, torch.bfloat16)
    texts = {name: context for name, context in vars(counter.contexts()).items() if context is not None}
    return counter.works(Call((GuidancePass("cond", texts),), tuple(config.streams)))[0]


@pytest.mark.parametrize(
    ("tokens", "model", "petaflops"),  # of a whole pass, as counted on the published models
    [(1536, "ltx-2-19b", 0.0486), (6144, "ltx-2.3-22b", 0.202), (24576, "ltx-2.3-22b", 1.149)],
)
def test_a_pass_costs_what_was_counted(tokens: int, model: str, petaflops: float) -> None:
    content = json.loads((MANIFESTS / model / "transformer.json").read_text())
    config = TransformerConfig.from_metadata(content["config"])
    assert plain_work(config, tokens, 126).flops == pytest.approx(petaflops * 1e15, rel=0.03)


@pytest.mark.parametrize(("video", "audio"), [(1536, 126), (24576, 126)])
def test_operations_of_a_block_follow_the_formula(video: int, audio: int) -> None:
    content = json.loads((MANIFESTS / "ltx-2.3-22b" / "transformer.json").read_text())
    config = TransformerConfig.from_metadata(content["config"])
    one, two = (plain_work(replace(config, num_layers=n), video, audio) for n in (1, 2))
    assert two.flops - one.flops == pytest.approx(formula(video, audio), rel=0.02)
    assert 5 * video * 4096 * 2 < two.activations < 40 * video * 4096 * 2


def test_fewer_text_tokens_cost_what_they_take_less() -> None:
    content = json.loads((MANIFESTS / "ltx-2.3-22b" / "transformer.json").read_text())
    config = replace(TransformerConfig.from_metadata(content["config"]), num_layers=1)
    one, more = (plain_work(config, 1536, 126, text).flops for text in (64, 1024))
    assert more - one == pytest.approx(formula(1536, 126) - formula(1536, 126, text=64), rel=0.02)


@pytest.mark.parametrize("model", ["ltx-2-19b", "ltx-2.3-22b"])
@pytest.mark.parametrize("batch", [1, 4])
def test_blocks_of_a_kind_stand_for_all_of_it(model: str, batch: int) -> None:
    """Passes that share blocks, perturbed in some: as counted on all blocks, the first time and with texts known."""
    content = json.loads((MANIFESTS / model / "transformer.json").read_text())
    config = replace(TransformerConfig.from_metadata(content["config"]), num_layers=7)
    counter = CallCounter(config, {"video": 96, "audio": 26}, 64, torch.bfloat16, batch)
    positive, negative = (dict(vars(counter.contexts())) for _ in range(2))
    texts = [{name: each[name] for name in ("video", "audio")} for each in (positive, negative)]
    weak = PerturbationConfig((Perturbation(PerturbationType.SKIP_VIDEO_SELF_ATTN, (3, 4)),))
    passes = (
        GuidancePass("cond", texts[0]),
        GuidancePass("uncond", texts[1]),
        GuidancePass("ptb", texts[0], weak),
        GuidancePass("mod", texts[0], ISOLATED),
    )
    call = Call(passes, ("video", "audio"))
    whole = counter.count(call, [counter.kind(call, block) for block in range(7)])
    first, later = counter.works(call)
    assert (first.flops, later) == pytest.approx((whole.work.flops, whole.later), rel=1e-6)
    assert first.activations == pytest.approx(whole.work.activations, rel=0.03)
    assert later < 3.9 * counter.works(Call(passes[:1], call.active))[1]


@pytest.fixture(scope="module")
def pipeline(small_model: Path) -> TI2VidTwoStagesPipeline:
    return TI2VidTwoStagesPipeline.from_pretrained(small_model, device="cpu", policy="resident")


def test_cost_grows_with_passes_steps_and_tokens(pipeline: TI2VidTwoStagesPipeline, tmp_path: Path) -> None:
    write_png(tmp_path / "still.png", torch.zeros(64, 64, 3, dtype=torch.uint8))
    image = ImageCondition(str(tmp_path / "still.png"), frame_idx=8)
    request = {"prompt": "x", "height": 128, "width": 128, "num_frames": 17, "num_inference_steps": 4}
    plan = pipeline.plan(**request)
    more = pipeline.plan(**request, images=[image])
    cost, longer, slower = (
        cost_of(one, pipeline.ledger) for one in (plan, more, pipeline.plan(**{**request, "num_inference_steps": 8}))
    )
    assert (
        tokens_of(more.stages[0], "video", pipeline.ledger) == tokens_of(plan.stages[0], "video", pipeline.ledger) + 4
    )
    first, second = (next(phase for phase in cost.phases if phase.name == f"stage {n}") for n in (1, 2))
    assert first.work.flops / (4 * 4) < second.work.flops / 3  # passes * steps; the second stage has more tokens
    assert first.work.flops < slower.phases[1].work.flops < 2 * first.work.flops  # texts are projected once
    assert longer.flops > cost.flops and longer.peak > cost.peak
    assert [phase.name for phase in longer.phases][1] == "conditions"
    assert pipeline.ledger.bytes_read == 0


def test_networks_that_take_turns_need_less(pipeline: TI2VidTwoStagesPipeline) -> None:
    plan = pipeline.plan(prompt="x", height=128, width=128, num_frames=9)
    cost = cost_of(plan, pipeline.ledger)
    turns = replace(cost, policy="sequential")
    assert turns.peak == cost.runtime + max(phase.peak for phase in cost.phases) < cost.peak
    weights = {name: size for phase in cost.phases for name, size in phase.weights.items()}
    assert cost.peak > sum(weights.values())


def test_a_recipe_gives_its_plan_back_and_names_what_changed(pipeline: TI2VidTwoStagesPipeline, tmp_path: Path) -> None:
    write_png(tmp_path / "still.png", torch.zeros(64, 64, 3, dtype=torch.uint8))
    image = ImageCondition(str(tmp_path / "still.png"), crf=0)
    plan = pipeline.plan(prompt="x", height=128, width=128, num_frames=9, images=[image])
    made = make_recipe(plan, {"command": "two-stages", "options": {}}, "cpu")
    assert plan_of(made, "clip") == plan
    assert str(tmp_path / "still.png") in made["files"] and plan.stages[1].loras[0].path in made["files"]
    assert list(changes_since(made)) == []
    write_png(tmp_path / "still.png", torch.ones(64, 64, 3, dtype=torch.uint8))
    assert [line.rpartition("/")[2] for line in changes_since(made)] == ["still.png is another file than it was"]
    older = {**made, "versions": {**made["versions"], "torch": "2.0"}}
    assert any(line.startswith("torch was 2.0, is ") for line in changes_since(older))


def test_fingerprints_see_every_byte_of_small_files_and_samples_of_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "HEAD", 64)
    monkeypatch.setattr(fingerprints, "PIECE", 4)
    monkeypatch.setattr(fingerprints, "PIECES", 8)

    def changed(size: int, place: int) -> bool:
        data = bytearray(size)
        path = tmp_path / f"{size}-{place}"
        path.write_bytes(data)
        before = fingerprint(path)
        data[place] = 1
        other = tmp_path / f"{size}-{place}-changed"
        other.write_bytes(data)
        assert before == fingerprint(path) and before.startswith(f"{size}-")
        return before != fingerprint(other)

    assert all(changed(90, place) for place in range(90))
    assert changed(1000, 0) and changed(1000, 63) and changed(1000, 64) and changed(1000, 999)
    assert sum(changed(1000, place) for place in range(64, 1000)) == 8 * 4


def test_a_folder_has_one_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    before = fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("y")
    assert fingerprint(tmp_path) == before
    (tmp_path / "config.json").write_text("[]")
    assert fingerprint(tmp_path) != before
