"""Dubbing: the voice before time 0, the sound held in the second stage, and requests that cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.components.patchifiers import AudioPatchifier
from ltx_core.errors import ConfigError, LtxError, MediaError
from ltx_core.model.audio_vae.audio_vae import encode_audio
from ltx_core.types import Audio, LatentState
from ltx_pipelines.dubit import DubItPipeline
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import Plan, plan_from_json
from ltx_pipelines.planning.schema import files_in
from ltx_pipelines.running.engine import generate
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.utils.media_io import read_audio, write_video
from ltx_pipelines.utils.model_ledger import ModelLedger

ADAPTER = str(TINY_CHECKPOINT / "ic-lora-tiny.safetensors")  # trained with references at half size
OTHER = str(TINY_CHECKPOINT / "distilled-lora-tiny.safetensors")
SIZE = {"height": 128, "width": 128, "seed": 3}
States = dict[str, LatentState]


@pytest.fixture(scope="module")
def ledger() -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")


def write_clip(path: Path, pitch: float | None, frames: int = 12) -> str:
    """A clip at 25 fps with a tone, or silent."""
    ramp = torch.linspace(0, 1, 64).expand(frames, 64, 64)[..., None].expand(-1, -1, -1, 3)
    tone = None if pitch is None else Audio(torch.sin(torch.arange(16000) * pitch).expand(2, -1) * 0.3, 24000)
    write_video(path, [ramp], 25.0, tone)
    return str(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """12 frames with 0.67 s of sound: more sound than picture."""
    return write_clip(tmp_path_factory.mktemp("media") / "clip.mov", 0.05)


@pytest.fixture(scope="module")
def plan(ledger: ModelLedger, clip: str) -> Plan:
    return DubItPipeline(ledger, [ADAPTER]).plan(prompt="she says hello", reference_video_path=clip, **SIZE)


@pytest.fixture(scope="module")
def run(plan: Plan, ledger: ModelLedger) -> tuple[list[States], list[States], Generation]:
    """The states each stage begins with, those it ends with, and the result."""
    begins, ends, generation = [], [], None
    for event in generate(plan, ledger):
        if event.phase == "denoise":
            if event.step == 0:
                begins.append(dict(event.states))
            elif event.step == event.total:
                ends.append(dict(event.states))
        generation = event.generation
    assert generation is not None
    return begins, ends, generation


def reference_tokens(clip: str, ledger: ModelLedger) -> torch.Tensor:
    sound = read_audio(clip)
    assert sound is not None
    with torch.no_grad():
        return AudioPatchifier().patchify(encode_audio(sound, ledger.network("audio_encoder")))


def test_length_and_rate_are_the_clips(plan: Plan) -> None:
    assert plan.shape.frames == 12 and plan.shape.fps == 25.0
    assert [stage.shape.frames for stage in plan.stages] == [17, 17]
    assert (plan.shape.height, plan.shape.width) == (128, 128)
    assert [lora.path for stage in plan.stages for lora in stage.loras] == [ADAPTER, ADAPTER]
    assert plan_from_json(plan.to_json()) == plan


def test_the_whole_voice_lies_before_time_0(run: Any, clip: str, ledger: ModelLedger) -> None:
    state, tokens = run[0][0]["audio"], reference_tokens(clip, ledger)
    own, count = 17, tokens.shape[1]  # 17 frames at 25 fps are 17 audio latents
    assert state.latent.shape[1] == own + count
    assert torch.equal(state.clean_latent[:, own:], tokens) and torch.equal(state.latent[:, own:], tokens)
    assert not state.denoise_mask[:, own:].any() and bool((state.denoise_mask[:, :own] == 1).all())
    spans = state.positions[0, 0, own:]
    assert float(spans[-1, 1]) == pytest.approx(-0.04, abs=1e-6) and bool((spans < 0).all())
    length = float(state.positions[0, 0, own - 1, 1]) + 0.04 * (count - own)
    assert float(spans[-1, 1] - spans[0, 0]) == pytest.approx(length, abs=1e-5)


def test_both_stages_follow_the_picture_at_the_adapters_scale(run: Any) -> None:
    for state, side in zip((states["video"] for states in run[0]), (2, 4), strict=True):
        own, reference = 3 * side**2, 3 * (side // 2) ** 2
        assert state.latent.shape[1] == own + reference
        assert not state.denoise_mask[:, own:].any()
        assert float(state.positions[:, 1, own:].max()) == 32 * side, "positions are not stretched to the target"


def test_second_stage_holds_the_sound_and_hears_it(run: Any) -> None:
    begins, ends, generation = run
    first, second = (stage["audio"] for stage in generation.stages)
    assert torch.equal(first, second)
    tokens = AudioPatchifier().patchify(first)
    state = begins[1]["audio"]
    assert state.frozen and torch.equal(state.latent, torch.cat((tokens, tokens), dim=1))
    assert float(state.positions[0, 0, -1, 1]) == pytest.approx(-0.04, abs=1e-6)
    assert torch.equal(ends[1]["audio"].latent, state.latent)
    assert generation.audio is not None and sum(len(chunk) for chunk in generation.video) == 12


def test_another_voice_gives_another_sound(run: Any, ledger: ModelLedger, tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other.mov", 0.31)
    pipeline = DubItPipeline(ledger, [ADAPTER])
    generation = pipeline(prompt="she says hello", reference_video_path=other, output_type="latent", **SIZE)
    mine, others = run[2].stages[0]["audio"], generation.stages[0]["audio"]
    assert float((mine - others).abs().max()) > 1e-3


def test_resuming_after_the_first_stage_equals_the_uninterrupted_run(run: Any, plan: Plan, ledger: ModelLedger) -> None:
    first = list(generate(plan.with_(stages=plan.stages[:1]), ledger, decode=False))[-1].generation
    got = list(generate(plan, ledger, decode=False, resume=first))[-1].generation
    assert torch.equal(got.latents["video"], run[2].latents["video"])


def test_plan_names_its_files_and_its_cost(plan: Plan, clip: str, ledger: ModelLedger) -> None:
    assert clip in files_in(plan)
    phases = {phase.name: phase for phase in cost_of(plan, ledger).phases}
    assert set(phases["conditions"].weights) == {"video_encoder", "audio_encoder"}
    assert {"stage 1", "upsample", "stage 2", "video", "sound"} <= set(phases)


@pytest.mark.parametrize(
    ("adapters", "arguments", "error", "message"),
    [
        ([], {}, ConfigError, "0 adapters are given, expected the one"),
        ([ADAPTER, OTHER], {}, ConfigError, "2 adapters"),
        ([ADAPTER], {"reference_video_path": None}, ConfigError, "reference_video_path is not given"),
        ([ADAPTER], {"reference_strength": 1.5}, LtxError, "nearest valid: 1"),
        ([ADAPTER], {"height": 96}, ConfigError, "height is 96, expected a multiple of 64"),
        ([ADAPTER], {"height": 64}, LtxError, "first stage height is 32, expected a multiple of 64"),
        ([ADAPTER], {"num_frames": 17}, ConfigError, "num_frames has no effect in DubItPipeline"),
    ],
)
def test_what_cannot_work_is_refused(
    ledger: ModelLedger, clip: str, adapters: list[str], arguments: dict[str, Any], error: type, message: str
) -> None:
    asked = {"prompt": "hello", "reference_video_path": clip, **SIZE, **arguments}
    with pytest.raises(error, match=message):
        DubItPipeline(ledger, adapters).plan(**asked)


def test_a_silent_clip_has_no_voice(ledger: ModelLedger, tmp_path: Path) -> None:
    silent = write_clip(tmp_path / "silent.mov", None)
    with pytest.raises(MediaError, match="no sound"):
        DubItPipeline(ledger, [ADAPTER]).plan(prompt="hello", reference_video_path=silent, **SIZE)
