"""Cheaper attention as an option: what it plans, costs and changes, and where it is refused."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.sparse import BlockPattern
from ltx_core.sampling.denoisers import GuidancePass
from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx_pipelines.cli.app import run
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import BlockCache, SparseAttention, plan_from_json
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.planning.work import Call, CallCounter, sparse_pattern, tokens_of
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.running.recipe import plan_of
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.upscale import UpscalePipeline
from ltx_pipelines.utils.media_io import read_frames, read_recipe
from ltx_pipelines.utils.model_ledger import ModelLedger

MANIFESTS = Path(__file__).resolve().parents[3] / "tests" / "manifests"
CLIP: dict[str, Any] = {"height": 256, "width": 256, "num_frames": 33, "num_inference_steps": 3, "seed": 1}
FEW = SparseAttention(stride=16, block=16, steps=1, layers=0)


@pytest.fixture(scope="module")
def pipeline() -> TI2VidOneStagePipeline:
    ledger = ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")
    return TI2VidOneStagePipeline(ledger)


def stage_flops(pipeline: TI2VidOneStagePipeline, **request: Any) -> float:
    plan = pipeline.plan("a bell", **CLIP, **request)
    return next(phase.work.flops for phase in cost_of(plan, pipeline.ledger).phases if phase.name == "stage 1")


def test_a_plan_says_and_counts_what_is_left_out(pipeline: TI2VidOneStagePipeline) -> None:
    plan = pipeline.plan("a bell", **CLIP, sparse_attention=FEW)
    (stage,) = plan.stages
    assert stage.sparse_attention == FEW and plan_from_json(plan.to_json()) == plan
    kept, tokens = sparse_pattern(stage, FEW, pipeline.ledger).kept, tokens_of(stage, "video", pipeline.ledger)
    assert 0.4 < kept < 0.7
    assert plan.notes == (
        f"stage 1: the picture's self-attention computes {kept:.1%} of its pairs after 1 of 3 steps, "
        "but for 0 layers at either end",
    )
    section = pipeline.ledger.config["transformer"]
    width = section["num_attention_heads"] * section["attention_head_dim"]
    skipped = stage.streams["video"].guidance
    assert skipped is not None and skipped.stg_blocks is not None
    rows = 4 * section["num_layers"] - len([block for block in skipped.stg_blocks if block < section["num_layers"]])
    dense, sparse = stage_flops(pipeline), stage_flops(pipeline, sparse_attention=FEW)
    most = 2 * rows * 4 * tokens**2 * width * (1 - kept)  # of two steps; passes share blocks
    assert 0.5 * most < dense - sparse <= 1.001 * most


def test_the_clip_is_the_same_where_nothing_is_left_out(pipeline: TI2VidOneStagePipeline) -> None:
    def latent(**more: Any) -> torch.Tensor:
        return pipeline("a bell", **CLIP, **more, output_type="latent").latents["video"]

    dense = latent()
    torch.testing.assert_close(latent(sparse_attention=SparseAttention(1, 16, 0, 0)), dense, rtol=1e-3, atol=1e-4)
    assert float((latent(sparse_attention=FEW) - dense).abs().max()) > 1e-3
    assert torch.equal(latent(), dense), "the network is left as it was"


def test_it_is_an_option_kept_in_the_recipe(here: Path) -> None:
    assert run(["generate", "a bell", "--sparse-attention", "4", "8", "0", "0", "-o", "bell.mp4", "--quiet"]) == 0
    recipe = read_recipe("bell.mp4")
    wanted = {"stride": 4, "block": 8, "steps": 0, "layers": 0}
    assert recipe is not None and recipe["request"]["options"]["sparse_attention"] == wanted
    assert plan_of(recipe, "bell.mp4").stages[0].sparse_attention == SparseAttention(**wanted)


def test_steps_run_the_first_block_alone(pipeline: TI2VidOneStagePipeline) -> None:
    said = [""]

    def latent(**more: Any) -> torch.Tensor:
        steps = {**CLIP, "num_inference_steps": 6}
        made = pipeline(
            "a bell", **steps, **more, output_type="latent", callback=lambda event: said.append(event.note or said[-1])
        )
        return made.latents["video"]

    whole = latent()
    assert said[-1] == ""
    assert torch.equal(latent(first_block_cache=(1e-9, 1)), whole)
    assert said[-1] == "0 of 6 calls of the transformer ran its first block alone"
    assert not torch.equal(latent(first_block_cache=(1.0, 3)), whole)
    assert said[-1] == "3 of 6 calls of the transformer ran its first block alone"
    both = latent(first_block_cache=(1.0, 3), sparse_attention=SparseAttention(1, 16, 1, 0))
    torch.testing.assert_close(both, latent(first_block_cache=(1.0, 3)), rtol=1e-3, atol=1e-3)


def test_what_a_first_block_cache_keeps_is_in_the_price(pipeline: TI2VidOneStagePipeline) -> None:
    plan = pipeline.plan("a bell", **CLIP, first_block_cache=(0.1, 2))
    (stage,) = plan.stages
    assert stage.first_block_cache == BlockCache(0.1, 2) and plan_from_json(plan.to_json()) == plan
    assert plan.notes == (
        "stage 1: steps after the first 2 whose first block changes by less than 0.1 run no other; "
        "their number is not known before, and the cost counts none",
    )
    plain = pipeline.plan("a bell", **CLIP)
    kept, usual = (cost_of(one, pipeline.ledger).phases[1].work for one in (plan, plain))
    section, tokens = pipeline.ledger.config["transformer"], tokens_of(stage, "video", pipeline.ledger)
    width = section["num_attention_heads"] * section["attention_head_dim"]
    assert kept.flops == usual.flops
    assert kept.activations - usual.activations > 3 * 4 * tokens * width * 4


def test_it_serves_ltx_video_whose_conditions_stand_before_the_grid(here: Path) -> None:
    line = shlex.split("ltxv waves --pipeline-config ltxv.yaml -H 128 -W 192 -f 17 -i photo.png 8 1 --quiet -o")
    sparse = ["--sparse-attention", "9", "8", "0", "0"]
    assert [run([*line, name, *more]) for name, more in {"dense.mp4": [], "sparse.mp4": sparse}.items()] == [0, 0]
    dense, made = (torch.stack(list(read_frames(f"{name}.mp4"))).float() for name in ("dense", "sparse"))
    assert dense.shape == made.shape and not torch.equal(dense, made)


def test_where_it_cannot_hold_it_is_refused(pipeline: TI2VidOneStagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "block is 24, expected a power of two": {"sparse_attention": (4, 24)},
        "stride is 0, expected at least 1": {"sparse_attention": 0},
        "leaves 3 steps dense, expected less than the 3 there are": {"sparse_attention": (4, 8, 3)},
        "leaves 9 layers at either end dense": {"sparse_attention": (4, 8, 1, 9)},
        "threshold is 0.0, expected above 0": {"first_block_cache": 0},
        "first_block_cache steps is 0": {"first_block_cache": (0.1, 0)},
        "runs the first 6 steps of guided stages as they are": {"first_block_cache": 0.1},
    }
    for message, request in wrong.items():
        with pytest.raises(ConfigError, match=message):
            pipeline.plan("a bell", **CLIP, **request)
    with pytest.raises(UsageError, match="sparse_attention has no effect in UpscalePipeline"):
        UpscalePipeline(pipeline.ledger).plan(video_path="clip.mp4", sparse_attention=4)
    for name, value in {"backend": "mlx", "compile_blocks": True, "devices": object()}.items():
        with monkeypatch.context() as changed, pytest.raises(ConfigError, match="sparse_attention is given with"):
            changed.setattr(pipeline.ledger, name, value)
            pipeline.plan("a bell", **CLIP, sparse_attention=FEW)
    with pytest.raises(ConfigError, match="first_block_cache is given with several devices"):
        monkeypatch.setattr(pipeline.ledger, "devices", object())
        pipeline.plan("a bell", **CLIP, first_block_cache=(0.1, 1))


def test_stages_in_tiles_and_refinements_stay_as_they_are(pipeline: TI2VidOneStagePipeline) -> None:
    small = {"height": 64, "width": 64, "num_frames": 9, "upscale": 2}
    plan = DistilledPipeline(pipeline.ledger).plan("a bell", **small, sparse_attention=FEW)
    assert [stage.sparse_attention is not None for stage in plan.stages] == [True, True, False]
    two = TI2VidTwoStagesPipeline(pipeline.ledger).plan("a bell", **small, first_block_cache=0.1)
    assert [stage.first_block_cache is not None for stage in two.stages] == [True, False, False]
    with pytest.raises(UsageError, match="first_block_cache has no effect in DistilledPipeline"):
        DistilledPipeline(pipeline.ledger).plan("a bell", **small, first_block_cache=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "height", "width", "frames"), [("32,640", 1088, 1920, 121), ("269,280", 2176, 3840, 257)]
)
def test_the_table_of_operations_is_what_is_counted(tokens: str, height: int, width: int, frames: int) -> None:
    content = json.loads((MANIFESTS / "ltx-2.3-22b" / "transformer.json").read_text())
    shape = VideoPixelShape(1, frames, height, width, 24.0)
    latent, sound = VideoLatentShape.from_pixel_shape(shape), AudioLatentShape.from_video_pixel_shape(shape)
    assert f"{latent.token_count:,}" == tokens
    counts = {"video": latent.token_count, "audio": sound.frames}
    counter = CallCounter(
        TransformerConfig.from_metadata(content["config"]), counts, 1024, torch.bfloat16, dense_blocks=1
    )
    contexts = {name: text for name, text in vars(counter.contexts()).items() if text is not None}
    one = Call((GuidancePass("cond", contexts),), ("video", "audio"))
    dense = counter.works(one)[0].flops
    page = (MANIFESTS.parents[1] / "docs" / "performance.md").read_text()
    assert f"| {height} x {width}, {frames} | {tokens} | dense | 100 % | {dense / 1e15:.2f} | 1 |" in page
    for stride in (4, 16):
        kept = BlockPattern.of(latent[2:], latent.token_count, 128, stride).kept
        sparse = replace(counter, keys=round(kept * latent.token_count))
        flops = sparse.works(replace(one, sparse=True))[0].flops
        assert f"| {stride} | {100 * kept:.1f} % | {flops / 1e15:.2f} | {flops / dense:.3f} |" in page
    alone = replace(counter, config=replace(counter.config, num_layers=1)).works(one)[0].flops
    assert f"{alone / dense:.3f}" == "0.021" and f"{alone / 1e15:.2f}" in page
