"""Validation samples: what conditions hold, what guidance needs, the files that are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.golden.case import TINY_CHECKPOINT
from tests.tiny_training import CHANNELS, make_config, write_dataset, write_model

from ltx_core.errors import ConfigError
from ltx_core.types import Audio, VideoPixelShape
from ltx_media.audio import read_audio
from ltx_media.video import probe_video
from ltx_media.writer import write_video
from ltx_trainer.inference import make_samples
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.trainer import LtxvTrainer
from ltx_trainer.validation_config import (
    SamplePrefix,
    SampleReference,
    SampleSpatialCrop,
    SampleSuffix,
    ValidationConfig,
)
from ltx_trainer.validation_sampler import EncodedCondition, PreparedSample, ValidationSampler

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "inference.py"
SHAPE = VideoPixelShape(1, 17, 64, 96, 25.0)  # latent 3 x 2 x 3, 17 audio steps


@pytest.fixture
def sampler(tmp_path):
    files = write_model(tmp_path / "model.safetensors", layers=2), write_dataset(tmp_path / "data")
    trainer = LtxvTrainer(make_config(*files, tmp_path / "out"))
    config = ValidationConfig(inference_steps=2, stg_blocks=(1,))
    return ValidationSampler(config, trainer.transformer, trainer.files.scale_factors(), torch.float32)


def prepared(*conditions):
    contexts = [{"video": torch.randn(1, 8, 16), "audio": torch.randn(1, 8, 8)} for _ in range(2)]
    return PreparedSample(SHAPE, 3, *contexts, conditions)


def conditioned(sampler, sample):
    return {name: start.condition("cpu", torch.float32) for name, start in sampler.starts(sample).items()}


def held(state):
    return (state.denoise_mask[0, :, 0] == 0).nonzero().flatten().tolist()


class TestStates:
    def test_a_suffix_holds_the_last_frames_and_a_crop_whole_cells(self, sampler):
        video, audio = torch.randn(1, CHANNELS, 1, 2, 3), torch.randn(1, 8, 4, 2)
        ends = (
            EncodedCondition(SampleSuffix(type="suffix", video="a.mp4"), video),
            EncodedCondition(SampleSuffix(type="suffix", audio="a.wav"), audio),
        )
        states = conditioned(sampler, prepared(*ends))
        assert held(states["video"]) == list(range(12, 18))
        assert held(states["audio"]) == [13, 14, 15, 16]
        tail = states["audio"].clean_latent[0, 13:].unflatten(1, (8, 2))
        assert torch.equal(tail, audio[0].transpose(0, 1))
        crop = SampleSpatialCrop(type="spatial_crop", video="a.mp4", spatial_region=(0, 31, 40, 96))
        states = conditioned(sampler, prepared(EncodedCondition(crop, torch.randn(1, CHANNELS, 3, 2, 3))))
        assert held(states["video"]) == [0, 1, 2, 6, 7, 8, 12, 13, 14]

    def test_references_come_last_whatever_their_place_in_the_list(self, sampler):
        reference = SampleReference(type="reference", video="a.mp4", downscale_factor=1)
        prefix = SamplePrefix(type="prefix", video="a.mp4")
        latent = torch.randn(1, CHANNELS, 3, 2, 3)
        sample = prepared(EncodedCondition(reference, latent), EncodedCondition(prefix, latent[:, :, :1]))
        state = conditioned(sampler, sample)["video"]
        assert held(state) == [*range(6), *range(18, 36)]
        assert state.keyframes_mask[0, :, 0].nonzero().flatten().tolist() == list(range(6))

    def test_held_content_comes_out_untouched_and_seeds_repeat(self, sampler):
        latent = torch.randn(1, CHANNELS, 1, 2, 3)
        sample = prepared(EncodedCondition(SamplePrefix(type="prefix", video="a.mp4"), latent))
        first, second = sampler.latents(sample), sampler.latents(sample)
        torch.testing.assert_close(first["video"][:, :, :1], latent)
        assert all(torch.equal(first[name], second[name]) for name in ("video", "audio"))

    def test_each_modality_is_guided_by_its_own_scales(self, sampler):
        from dataclasses import replace

        config = sampler.config.model_copy(update={"audio_cfg_scale": 1.0, "video_stg_scale": 0.0})
        sampler = replace(sampler, config=config)
        sample = prepared()
        starts = sampler.starts(sample)
        video, audio = sampler.guiders(sample, starts).values()
        assert video.do_unconditional_generation() and not video.do_perturbed_generation()
        assert audio.do_perturbed_generation() and audio.negative_context is None
        alone = {"video": starts["video"]}
        assert not sampler.guiders(sample, alone)["video"].do_isolated_modality_generation()


@pytest.fixture
def clip(tmp_path):
    frames = torch.randint(0, 255, (17, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "clip.mp4", frames, 25.0, Audio(torch.rand(2, 16000) - 0.5, 16000))
    return str(tmp_path / "clip.mp4")


def test_files_of_every_kind_of_condition_are_encoded_and_samples_written(tmp_path, clip):
    picture = str(tmp_path / "picture.png")
    Image.new("RGB", (96, 64), (90, 30, 40)).save(picture)
    conditions = (
        [
            {"type": "first_frame", "image_or_video": clip},
            {"type": "reference", "video": clip, "include_in_output": True},
            {"type": "suffix", "audio": clip, "duration": 0.2},
            {"type": "keyframe_image", "image_or_video": picture, "frame": -1},
            {"type": "keyframe_image", "image_or_video": clip, "frame": 8},
        ],
        [{"type": "audio_to_video", "audio": clip}],
        [
            {"type": "spatial_crop", "video": clip, "spatial_region": [0, 0, 32, 64]},
            {"type": "mask", "audio": clip, "mask": clip},
        ],
        [],
    )
    samples = [{"prompt": "a red boat", "conditions": each} for each in conditions]
    samples[-1]["video_dims"] = [64, 64, 1]
    config = ValidationConfig(
        samples=samples, video_dims=(96, 64, 17), frame_rate=25, inference_steps=1, stg_blocks=(1,)
    )
    files = ModelFiles.of(TINY_CHECKPOINT / "ltx-2-tiny.safetensors", TINY_CHECKPOINT / "gemma-3-tiny")
    written = make_samples(files, config, tmp_path / "out" / "step_000000")
    names = [
        f"step_000000_{i}{end}"
        for i, kind in ((1, ".mp4"), (2, ".mp4"), (3, ".mp4"), (4, ".png"))
        for end in (kind, "_sheet.png")
    ]
    assert [path.name for path in written] == names
    info = probe_video(written[0])
    assert (info.width, info.height, info.frames, info.fps) == (192, 64, 17, 25.0)
    assert read_audio(written[2]).duration == pytest.approx(0.68, abs=0.1)
    assert Image.open(written[6]).size == (64, 64)


def test_the_inference_script_makes_a_clip(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("{video_dims: [64, 64, 9], inference_steps: 1, generate_video: false, stg_blocks: null}")
    command = [
        sys.executable,
        str(SCRIPT),
        "--prompt",
        "rain",
        "--config",
        str(settings),
        "--output",
        str(tmp_path / "a"),
    ]
    command += ["--model-path", str(TINY_CHECKPOINT / "ltx-2-tiny.safetensors")]
    command += ["--text-encoder-path", str(TINY_CHECKPOINT / "gemma-3-tiny")]
    command += ["--lora", f"{TINY_CHECKPOINT / 'distilled-lora-tiny.safetensors'}:0.5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "a_1.wav"), str(tmp_path / "a_1_sheet.png")]


def test_no_sample_is_an_error(tmp_path):
    files = ModelFiles.of(TINY_CHECKPOINT / "ltx-2-tiny.safetensors")
    with pytest.raises(ConfigError, match="there is no sample to make"):
        make_samples(files, ValidationConfig(), tmp_path / "a")
