"""Clips of any size: stages in tiles, what they cost, and clips that are enlarged, made faster and joined."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT
from tests.rehearsal.stage import MANIFESTS, manifest, write_header

from ltx_core.errors import ConfigError
from ltx_core.types import Audio, SpatioTemporalScaleFactors, VideoPixelShape
from ltx_pipelines.cli.app import run
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.interpolate import InterpolatePipeline
from ltx_pipelines.planning import cost, validation
from ltx_pipelines.planning.cost import cost_of, tiled_work
from ltx_pipelines.planning.layout import tiles_of
from ltx_pipelines.planning.plan import ModelFiles, plan_from_json
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.retake import RetakePipeline
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.upscale import PROMPT, UpscalePipeline
from ltx_pipelines.utils.media_io import probe_video, read_audio, read_frames, write_video
from ltx_pipelines.utils.model_ledger import ModelLedger

SMALL = {"prompt": "a bell rings", "height": 64, "width": 128, "num_frames": 9, "seed": 3}
LTX = SpatioTemporalScaleFactors.default()


@pytest.fixture(scope="module")
def ledger() -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")


def test_a_clip_is_enlarged_in_tiles_that_share_its_sound(ledger: ModelLedger) -> None:
    pipeline = DistilledPipeline(ledger)
    plan = pipeline.plan(**SMALL, upscale=4, tile_size=160)
    assert [(s.shape.height, s.shape.width) for s in plan.stages] == [(32, 64), (64, 128), (128, 256), (256, 512)]
    assert [stage.tiles for stage in plan.stages[2:]] == [((1, 0), (1, 0), (2, 1)), ((1, 0), (2, 1), (4, 1))]
    assert [stage.decoded_cells for stage in plan.stages] == [None, None, 100, 100], "sides of twice that of a tile"
    assert plan_from_json(plan.to_json()) == plan
    large, plain = (pipeline(**SMALL, **more, output_type="latent") for more in ({"upscale": 4, "tile_size": 160}, {}))
    assert large.latents["video"].shape[2:] == (2, 8, 16)
    assert torch.equal(large.stages[1]["video"], plain.latents["video"])
    assert torch.equal(large.latents["audio"], plain.latents["audio"]), "no tile makes sound of its own"


def test_one_tile_is_the_whole_picture(ledger: ModelLedger) -> None:
    whole, tiled = (DistilledPipeline(ledger).plan(**SMALL, upscale=2, tile_size=size) for size in (512, 64))
    assert [plan.stages[2].tiles for plan in (whole, tiled)] == [((1, 0),) * 3, ((1, 0), (3, 1), (7, 1))]
    (one,), (several,) = (list(tiled_work(plan.stages[2], ledger)) for plan in (whole, tiled))
    assert several.activations < one.activations and several.flops > 2 * one.flops, "21 tiles of which each is small"


def test_the_guided_schedule_goes_on_from_a_low_level(ledger: ModelLedger) -> None:
    plan = TI2VidOneStagePipeline(ledger).plan(**SMALL, num_inference_steps=8, upscale=2)
    first, second = plan.stages
    assert second.sigmas == (0.421875, *(sigma for sigma in first.sigmas if sigma < 0.421875))
    again = TI2VidOneStagePipeline(ledger).plan(**SMALL, num_inference_steps=8, upscale=2, upscale_noise=0.8).stages[1]
    assert again.sigmas == (0.8, *(sigma for sigma in first.sigmas if sigma < 0.8))
    assert again.streams["video"].noise_scale == 0.8
    assert second.guided and second.streams["audio"].frozen and plan.shape.width == 256


def test_4k_mode_is_a_default_size(ledger: ModelLedger) -> None:
    pipeline = TI2VidTwoStagesPipeline(ledger).enable_4k_mode()
    assert pipeline.plan("a bell", num_frames=9).shape[2:4] == (2176, 3840)
    assert pipeline.plan("a bell", num_frames=9, height=64, width=64, upscale=1).shape[2:4] == (64, 64)
    with pytest.raises(ConfigError, match="RetakePipeline cannot enlarge"):
        RetakePipeline(ledger).enable_4k_mode()


def test_wrong_requests_are_named(ledger: ModelLedger) -> None:
    pipeline = DistilledPipeline(ledger)
    with pytest.raises(ConfigError, match=r"upscale is 3, expected 1, 2 or 4; nearest valid: 4"):
        pipeline.plan(**SMALL, upscale=3)
    with pytest.raises(UsageError, match="tile_size has no effect without upscale"):
        pipeline.plan(**SMALL, tile_size=256)
    with pytest.raises(UsageError, match="upscale_noise has no effect without upscale"):
        pipeline.plan(**SMALL, upscale_noise=0.5)


def test_tiles_are_few_and_small_enough() -> None:
    uhd = VideoPixelShape(1, 257, 2176, 3840, 24.0)
    assert tiles_of(uhd, LTX, 1408) == ((1, 0), (2, 4), (3, 4))
    assert tiles_of(uhd._replace(frames=1001), LTX, 1408)[0] == (4, 4), "long clips are cut in time too"
    assert tiles_of(uhd._replace(height=1088, width=1408), LTX, 1408) == ((1, 0), (1, 0), (1, 0))
    assert tiles_of(uhd, LTX, 64)[1:] == ((67, 1), (119, 1))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 frames of 70 x 64 at 25 fps with a tone."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    ramp = torch.linspace(0, 1, 64)
    frames = torch.stack([(ramp.view(1, 64, 1) * (frame + 1) / 10).expand(70, 64, 3) for frame in range(10)])
    tone = torch.sin(torch.arange(9600) * 0.05).expand(2, -1) * 0.3
    write_video(path, [frames], 25.0, Audio(tone, 24000))
    return path


def test_a_finished_clip_is_enlarged(ledger: ModelLedger, clip: Path) -> None:
    pipeline = UpscalePipeline(ledger)
    plan = pipeline.plan(video_path=str(clip), tile_size=128)
    first, second = plan.stages
    assert first.steps == 0 and first.shape[1:4] == (17, 96, 64)
    assert second.tiles == ((1, 0), (2, 1), (1, 0)) and second.sigmas == (0.421875, 0.0)
    assert plan.shape[1:4] == (10, 140, 128) and plan.prompt == PROMPT
    assert [phase.name for phase in cost_of(plan, ledger).phases if "stage" in phase.name] == ["stage 2"]
    made = pipeline(video_path=str(clip), tile_size=128)
    own = read_audio(clip)
    assert made.video is not None and made.video.tensor().shape == (10, 140, 128, 3)
    assert made.audio is not None and own is not None
    assert torch.equal(made.audio.waveform, own.waveform), "the sound is kept, sample for sample"
    with pytest.raises(ConfigError, match="upscale is 1, expected 2 or 4"):
        pipeline.plan(video_path=str(clip), upscale=1)


def test_the_prompt_of_a_clip_that_was_made_here_goes_on(ledger: ModelLedger, clip: Path, tmp_path: Path) -> None:
    recipe = {"plan": {"prompt": "a bell rings"}}
    path = tmp_path / "made.mp4"
    write_video(path, [torch.zeros(9, 64, 64, 3)], 25.0, metadata={"recipe": json.dumps(recipe)})
    assert UpscalePipeline(ledger).plan(video_path=str(path)).prompt == "a bell rings"
    assert UpscalePipeline(ledger).plan("a gong", video_path=str(path)).prompt == "a gong"


def test_a_clip_gets_a_frame_between_any_two(clip: Path, temporal_upsampler: Path) -> None:
    files = replace(find_model(str(TINY_CHECKPOINT)).files, temporal_upsampler=str(temporal_upsampler))
    ledger = ModelLedger(files, dtype=torch.float32, device="cpu", policy="resident")
    made = InterpolatePipeline(ledger)(video_path=str(clip))
    assert made.plan.shape == VideoPixelShape(1, 19, 70, 64, 50.0)
    assert made.video is not None and made.video.tensor().shape == (19, 70, 64, 3)
    own = read_audio(clip)
    assert made.audio is not None and own is not None and torch.equal(made.audio.waveform, own.waveform)
    assert made.plan.notes == ("clip.mp4: worked on at 64 x 96 and 17 frames, cut back to 64 x 70 and 10",)


def test_clips_are_joined_with_their_sound(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other, both = tmp_path / "other.mp4", tmp_path / "both.mp4"
    write_video(other, [torch.ones(6, 64, 64, 3)], 50.0, Audio(torch.full((1, 4410), 0.25), 44100))
    line = ["concat", str(clip), str(other), str(clip), "-o", str(both), "--crf", "0"]
    assert run(line) == 0
    said = capfd.readouterr().err
    assert "other.mp4: 64 x 64 scaled and cropped to 64 x 70; 50 fps sampled by time at 25 fps" in said
    assert "23 frames (10 + 3 + 10), 0.920 s" in said
    info, sound = probe_video(both), read_audio(both)
    assert info.frames == 23 and sound is not None and sound.waveform.shape[1:] == (2, 22080)
    frames = torch.stack(list(read_frames(both)))
    own = torch.stack(list(read_frames(clip)))
    assert torch.equal(frames[:10], own) and torch.equal(frames[13:], own), "lossless: every frame is there once"
    begun = read_audio(clip)
    assert begun is not None
    tone = begun.waveform[..., :9600]
    assert torch.allclose(sound.waveform[..., :9600], tone, atol=1e-6)
    assert torch.allclose(sound.waveform[..., 12480:], tone, atol=1e-6), "each sound begins with its picture"
    assert run(line) == 1 and run(["concat", str(clip), "-o", str(tmp_path / "x.mp4")]) == 2


@pytest.mark.slow
def test_3840_x_2176_fits_a_card_of_24_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published LTX-2.3 by its headers; the table of docs/large.md."""
    model, card = "ltx-2.3-22b", 24e9
    parts = [path.stem for path in (MANIFESTS / model).glob("*.json") if "upscaler" not in path.stem]
    whole = write_header(tmp_path / "distilled.safetensors", [manifest(model, name) for name in parts])
    larger = write_header(tmp_path / "upscaler.safetensors", [manifest(model, "spatial_upscaler")])
    files = ModelFiles(str(whole), str(whole), spatial_upsampler=str(larger))
    monkeypatch.setattr(ModelLedger, "text_tokens", 1024)
    monkeypatch.setattr(ModelLedger, "free_bytes", lambda self: int(card))
    monkeypatch.setattr(validation, "validate_plan", lambda *_: None)  # there is no text encoder
    monkeypatch.setattr(cost, "text_weights", lambda _: {})
    ledger = ModelLedger(files, dtype=torch.bfloat16, device="cuda", policy="streamed")
    plan = DistilledPipeline(ledger).enable_4k_mode().plan("a kettle begins to whistle", num_frames=257)
    assert plan.stages[2].tiles == ((1, 0), (2, 4), (3, 4)) and plan.shape[1:4] == (257, 2176, 3840)
    counted = cost_of(plan, ledger)
    assert counted.peak < 0.8 * card
    page = (MANIFESTS.parents[1] / "docs" / "large.md").read_text()
    for phase in counted.phases:
        if phase.name in ("stage 1", "stage 2", "stage 3", "video"):
            weights, work = sum(phase.weights.values()) / 1e9, phase.work
            assert f"| {weights:.2f} | {work.activations / 1e9:.1f} | {work.flops / 1e15:.1f} |" in page, phase.name
