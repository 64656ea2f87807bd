"""Generated keyframes through both stages, and rounds of temporal upsampling in windows between them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.golden.case import TINY_CHECKPOINT
from torch import Tensor

from ltx_core.errors import ConditioningError, ConfigError
from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.upsampler.model import LatentUpsampler
from ltx_core.types import LatentState
from ltx_pipelines.dfr_pipeline import DFRPipeline
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import (
    CarriedKeyframes,
    ImageCondition,
    KeyframeSlots,
    ModelFiles,
    Plan,
    plan_from_json,
)
from ltx_pipelines.running.engine import generate
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.running.stage_inputs import enlarge
from ltx_pipelines.running.stages import Event
from ltx_pipelines.utils.media_io import write_png
from ltx_pipelines.utils.model_ledger import ModelLedger

DETAILING = str(TINY_CHECKPOINT / "ic-lora-tiny.safetensors")
DISTILLED = str(TINY_CHECKPOINT / "distilled-lora-tiny.safetensors")
TIME_UPSAMPLER = {"in_channels": 128, "mid_channels": 32, "num_blocks_per_stage": 1, "spatial_upsample": False}
SMALL: dict[str, Any] = {"prompt": "a bell rings", "height": 64, "width": 64, "seed": 3}
WIDE = {**SMALL, "width": 128}
TOKENS = 4  # of a latent frame of 64 x 64


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> ModelLedger:
    """The random model with keyframe embedding, and a random upsampler in time."""
    folder, generator = tmp_path_factory.mktemp("model"), torch.Generator().manual_seed(0)
    found = find_model(str(TINY_CHECKPOINT)).files
    with safe_open(found.checkpoint, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    config["transformer"]["use_keyframes_abs_pos_embedding"] = True
    embedding = torch.randn(1, 64, generator=generator)
    tensors = {**load_file(found.checkpoint), "model.diffusion_model.keyframes_abs_pos_embedding": embedding}
    checkpoint = folder / "keyframes.safetensors"
    save_file(tensors, checkpoint, metadata={**metadata, "config": json.dumps(config)})
    upsampler_config = {"_class_name": "LatentUpsampler", "temporal_upsample": True, **TIME_UPSAMPLER}
    torch.manual_seed(0)
    upsampler = LatentUpsampler(LatentUpsamplerConfig.from_metadata(upsampler_config))
    save_file(upsampler.state_dict(), folder / "time.safetensors", metadata={"config": json.dumps(upsampler_config)})
    return ModelLedger(
        ModelFiles(
            str(checkpoint),
            found.text_encoder,
            spatial_upsampler=found.spatial_upsampler,
            temporal_upsampler=str(folder / "time.safetensors"),
        ),
        dtype=torch.float32,
        device="cpu",
        policy="resident",
    )


@dataclass
class Followed:
    """A run: the video state each run of the transformer began and ended with, and the result."""

    begins: list[LatentState]
    ends: list[LatentState]
    sounds: list[LatentState | None]
    generation: Generation


def follow(plan: Plan, ledger: ModelLedger) -> Followed:
    begins, ends, sounds = [], [], []
    event: Event | None = None
    for event in generate(plan, ledger, decode=False):
        if event.phase == "denoise" and event.step == 0:
            begins.append(event.states["video"])
            sounds.append(event.states.get("audio"))
        elif event.phase == "denoise" and event.step == event.total:
            ends.append(event.states["video"])
    assert event is not None and event.generation is not None
    return Followed(begins, ends, sounds, event.generation)


@pytest.fixture(scope="module")
def one_round(ledger: ModelLedger) -> Followed:
    """41 frames: a canvas of 49 with keyframes at 24 and 48, then two windows that overlap by one segment."""
    pipeline = DFRPipeline(ledger, (), [DISTILLED])
    return follow(pipeline.plan(**SMALL, num_frames=41, temporal_upsample_rounds=1), ledger)


def tokens_of(latent: Tensor) -> Tensor:
    return latent.flatten(2).transpose(1, 2)


def latent_of(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (-1, 2, 2))


def slots_of(state: LatentState) -> slice:
    assert state.generated_keyframe_layout is not None
    return state.generated_keyframe_layout.token_slice


def test_the_canvas_is_cut_to_the_asked_length(ledger: ModelLedger) -> None:
    generation = DFRPipeline(ledger)(**WIDE, num_frames=9)
    assert [stage.shape.frames for stage in generation.plan.stages] == [25, 25]
    assert generation.latents["video"].shape[2] == 4
    frames = torch.cat(list(generation.video))
    assert frames.shape == (9, 64, 128, 3) and generation.plan.shape.frames == 9
    assert generation.audio.waveform.shape[-1] == round(9 / 24 * generation.audio.sampling_rate)
    assert generation.generated_keyframes.shape == (1, 128, 1, 2, 4)


def test_second_stage_starts_from_the_enlarged_video_and_keyframes(one_round: Followed, ledger: ModelLedger) -> None:
    first = one_round.generation.stages[0]
    generator = torch.Generator().manual_seed(SMALL["seed"])
    for states in (one_round.begins[0], one_round.sounds[0]):
        torch.randn(states.latent.shape, generator=generator)
    state = one_round.begins[1]
    noise = torch.randn(state.latent.shape, generator=generator)
    start = torch.cat([tokens_of(enlarge(first[name], ledger)) for name in ("video", "keyframes")], dim=1)
    assert torch.allclose(state.latent, torch.lerp(start, noise, 0.909375), atol=1e-5)
    assert torch.allclose(one_round.generation.upsampled, enlarge(first["video"], ledger))
    assert state.keyframes_mask is not None and bool(state.keyframes_mask[:, slots_of(state)].all())


def test_a_round_shows_the_keyframes_and_makes_new_ones_between(one_round: Followed, ledger: ModelLedger) -> None:
    stage = one_round.generation.plan.stages[2]
    carried, slots = stage.streams["video"].conditions
    assert isinstance(carried, CarriedKeyframes) and carried.pixel_frame_indices == (48, 96)
    assert isinstance(slots, KeyframeSlots) and slots.pixel_frame_indices == (24, 72)
    assert [(w.first, w.last, w.dropped) for w in stage.windows] == [(0, 48, 0), (0, 96, 7)]
    longer = enlarge(one_round.generation.stages[1]["video"], ledger, "temporal")
    keyframes = one_round.generation.stages[1]["keyframes"]
    window = one_round.begins[3]
    own = 13 * TOKENS
    anchors = slice(own, own + 2 * TOKENS)
    assert torch.equal(window.clean_latent[:, :own], tokens_of(longer))
    assert torch.equal(window.clean_latent[:, anchors], tokens_of(keyframes))
    assert torch.allclose(window.denoise_mask[:, anchors], torch.tensor(0.05))
    times = window.positions[0, 0, own::TOKENS, 0]
    assert torch.allclose(times, torch.tensor([48.0, 96.0, 24.0, 72.0]) / 48)
    assert bool((window.denoise_mask[:, slots_of(window)] == 1).all())


def test_new_keyframes_start_from_the_nearest_latent_frame(one_round: Followed, ledger: ModelLedger) -> None:
    longer = enlarge(one_round.generation.stages[1]["video"], ledger, "temporal")
    generator = torch.Generator().manual_seed(SMALL["seed"])
    for video, audio in zip(one_round.begins[:3], one_round.sounds[:3], strict=True):
        noise = torch.randn(video.latent.shape, generator=generator)
        if audio is not None:
            torch.randn(audio.latent.shape, generator=generator)
    state = one_round.begins[2]  # the first window: frames 0 to 48, one slot at 24
    want = torch.lerp(tokens_of(longer[:, :, 3:4]), noise[:, slots_of(state)], 0.975)
    assert torch.allclose(state.latent[:, slots_of(state)], want, atol=1e-5)


def test_windows_are_joined_without_what_they_share(one_round: Followed) -> None:
    first, second = (latent_of(end.latent) for end in one_round.ends[2:])
    result = one_round.generation.stages[2]
    assert torch.equal(result["video"], torch.cat((first[:, :, :7], second[:, :, 7:13]), dim=2))
    made = torch.cat([latent_of(end.latent[:, slots_of(end)]) for end in one_round.ends[2:]], dim=2)
    before = one_round.generation.stages[1]["keyframes"]
    want = torch.stack((made[:, :, 0], before[:, :, 0], made[:, :, 2], before[:, :, 1]), dim=2)
    assert made.shape[2] == 3 and not torch.equal(made[:, :, 0], made[:, :, 1])
    assert torch.equal(result["keyframes"], want)  # at 24, 48, 72, 96; 24 is the earlier window's


def test_each_window_has_noise_of_its_own_and_no_sound(one_round: Followed) -> None:
    assert one_round.sounds[2:] == [None, None]
    plan = one_round.generation.plan
    assert plan.stages[2].sampler.seed == SMALL["seed"] + 1000
    assert (plan.shape.frames, plan.shape.fps) == (81, 48.0)
    assert plan.decoded == ("video", "audio")


def test_two_rounds_give_four_times_the_frames(ledger: ModelLedger) -> None:
    generation = DFRPipeline(ledger)(**SMALL, num_frames=41, frame_rate=25.0, temporal_upsample_rounds=2)
    plan = generation.plan
    assert (plan.shape.frames, plan.shape.fps) == (161, 100.0)
    assert [stage.shape.fps for stage in plan.stages] == [25.0, 25.0, 50.0, 60.0]
    assert len(plan.stages[3].windows) == 4 and plan.stages[3].sampler.seed == SMALL["seed"] + 2000
    assert generation.stages[3]["keyframes"].shape[2] == 8
    assert sum(len(chunk) for chunk in generation.video) == 161
    assert generation.audio.duration == pytest.approx(161 / 100, abs=1e-4)
    assert plan_from_json(plan.to_json()) == plan


def test_a_picture_stays_at_its_moment_through_the_rounds(ledger: ModelLedger, tmp_path: Path) -> None:
    write_png(tmp_path / "still.png", torch.full((64, 64, 3), 128, dtype=torch.uint8))
    images = [ImageCondition(str(tmp_path / "still.png"), frame, crf=0) for frame in (0, 24)]
    plan = DFRPipeline(ledger).plan(**SMALL, num_frames=41, images=images, temporal_upsample_rounds=2)
    for stage in plan.stages:
        given = [c.frame_idx for c in stage.streams["video"].conditions if isinstance(c, ImageCondition)]
        rate = (stage.shape.frames - 1) // 48
        assert given == [0, 24 * rate]
    followed = follow(plan.with_(stages=plan.stages[:3]), ledger)
    own = 13 * TOKENS
    assert bool((followed.begins[3].denoise_mask[:, :TOKENS] == 0).all())
    assert float(followed.begins[3].positions[0, 0, own, 0]) == pytest.approx(1.0)  # frame 48 of 48 a second


def test_detailing_follows_the_first_stage(ledger: ModelLedger) -> None:
    pipeline = DFRPipeline(ledger, (), [DISTILLED])
    plan = pipeline.plan(**WIDE, num_frames=25, detailing_loras=[DETAILING])
    assert [[Path(lora.path).name[:2] for lora in stage.loras] for stage in plan.stages] == [["di"], ["di", "ic"]]
    followed = follow(plan, ledger)
    state = followed.begins[1]
    reference = tokens_of(followed.generation.stages[0]["video"])
    assert torch.equal(state.clean_latent[:, -reference.shape[1] :], reference)
    assert not state.denoise_mask[:, -reference.shape[1] :].any()
    assert float(state.positions[:, 1, -reference.shape[1] :].max()) == 64.0


@pytest.mark.parametrize("finished", [1, 2])
def test_resuming_equals_the_uninterrupted_run(one_round: Followed, ledger: ModelLedger, finished: int) -> None:
    plan = one_round.generation.plan
    first = follow(plan.with_(stages=plan.stages[:finished]), ledger).generation
    got = list(generate(plan, ledger, decode=False, resume=first))[-1].generation
    for name, latent in one_round.generation.latents.items():
        assert torch.equal(got.latents[name], latent), name


def test_cost_counts_every_window(ledger: ModelLedger) -> None:
    plans = [DFRPipeline(ledger).plan(**SMALL, num_frames=41, temporal_upsample_rounds=rounds) for rounds in (0, 1)]
    plain, longer = (cost_of(plan, ledger).phases for plan in plans)
    assert [phase.name for phase in longer].count("upsample") == 2 and "stage 3" in {phase.name for phase in longer}
    flops = [sum(phase.work.flops for phase in phases if phase.name != "sound") for phases in (plain, longer)]
    assert flops[1] > 1.5 * flops[0]


def test_what_cannot_work_is_refused(ledger: ModelLedger, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="temporal_upsample_rounds is 3, expected 0 to 2; nearest valid: 2"):
        DFRPipeline(ledger).plan(**SMALL, num_frames=41, temporal_upsample_rounds=3)
    write_png(tmp_path / "still.png", torch.zeros(64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ConditioningError, match="frame_idx is 41, expected 0 to 40"):
        image = ImageCondition(str(tmp_path / "still.png"), 41)
        DFRPipeline(ledger).plan(**SMALL, num_frames=41, images=[image])
    plain = ModelLedger(find_model(str(TINY_CHECKPOINT)).files, device="cpu", policy="resident")
    with pytest.raises(ConditioningError, match="need a model with keyframe embedding"):
        DFRPipeline(plain).plan(**SMALL, num_frames=41)
    with pytest.raises(ConfigError, match="temporal_upsampler is not given"):
        DFRPipeline(plain).plan(**SMALL, num_frames=41, temporal_upsample_rounds=1)
