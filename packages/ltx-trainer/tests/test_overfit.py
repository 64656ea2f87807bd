"""A very small model learns four clips with sound by heart, and makes them again from their captions."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny_training import BINS, CHANNELS, FPS, FRAMES, SIDE, STEPS, TOKENS, make_config, write_clip, write_model

from ltx_core.types import VideoPixelShape
from ltx_trainer.run_log import LOG_NAME, read_csv_log
from ltx_trainer.trainer import LtxvTrainer
from ltx_trainer.validation_config import ValidationConfig
from ltx_trainer.validation_sampler import PreparedSample, ValidationSampler

CLIPS, WIDTH = 4, 96


def clip(index):
    """A disc that moves its own way, grey, in patches of 4 x 4 pixels, and a tone; both within [-1, 1]."""
    rows, columns = torch.meshgrid(torch.arange(4 * SIDE), torch.arange(4 * SIDE), indexing="ij")
    frames = []
    for time in range(FRAMES):
        angle = math.pi * (index / 2 + time / 3)
        y, x = 2 * SIDE - 0.5 + 2.5 * math.sin(angle), 2 * SIDE - 0.5 + 2.5 * math.cos(angle)
        frames.append(torch.tanh(2.5 - (rows - y).square() - (columns - x).square()))
    pixels = torch.stack(frames).unflatten(2, (SIDE, 4)).unflatten(1, (SIDE, 4))  # [F, H, 4, W, 4]
    video = pixels.permute(2, 4, 0, 1, 3).reshape(CHANNELS, FRAMES, SIDE, SIDE)
    wave = torch.sin(torch.arange(STEPS * 8 * BINS) * (0.2 + 0.15 * index) + index)
    audio = wave.view(STEPS, 8, BINS).transpose(0, 1)
    return video, audio


def caption(index):
    generator = torch.Generator().manual_seed(100 + index)
    return {
        "video_prompt_embeds": torch.randn(TOKENS, WIDTH, generator=generator),
        "audio_prompt_embeds": torch.randn(TOKENS, WIDTH, generator=generator),
        "prompt_attention_mask": torch.ones(TOKENS, dtype=torch.int64),
    }


def psnr(got, want):
    return 10 * math.log10(4 / float((got - want).square().mean()))  # values span 2


def correlation(got, want):
    return float(torch.corrcoef(torch.stack((got.flatten(), want.flatten())))[0, 1])


def prepare(tmp_path, steps, **changes):
    model = write_model(tmp_path / "model.safetensors", width=WIDTH, audio_width=WIDTH, layers=2)
    for index in range(CLIPS):
        write_clip(tmp_path / "data", f"clip_{index}", caption(index), *clip(index))
    optimization = {
        "steps": steps,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "scheduler_type": "cosine",
        "warmup_steps": 20,
    }
    changes = {"model": {"training_mode": "full"}, "optimization": optimization, **changes}
    return LtxvTrainer(make_config(model, tmp_path / "data", tmp_path / "out", **changes))


def loss_fell_tenfold(output, names):
    rows = read_csv_log(output / LOG_NAME)
    for name in names:
        values = [value for _, key, value in rows if key == f"train/{name}"]
        start, end = sum(values[:5]) / 5, sum(values[-20:]) / 20
        assert end < start / 10, f"{name} went from {start:.3f} to {end:.3f}"


@torch.no_grad()
def sample(trainer, index, **config):
    """The clip of a caption, made without guidance."""
    neutral = {
        f"{m}_{k}": v
        for m in ("video", "audio")
        for k, v in (("cfg_scale", 1), ("stg_scale", 0), ("modality_guidance_scale", 1))
    }
    section = ValidationConfig(inference_steps=20, guidance_rescale=0, **{**neutral, **config})
    factors = trainer.files.scale_factors()
    sampler = ValidationSampler(section, trainer.transformer.eval(), factors, torch.float32)
    contexts = trainer.objective.contexts({name: value[None] for name, value in caption(index).items()})
    frames = (FRAMES - 1) * factors.time + 1
    shape = VideoPixelShape(1, frames, SIDE * factors.height, SIDE * factors.width, FPS)
    return sampler.latents(PreparedSample(shape, 5, contexts, {}))


@pytest.mark.slow
def test_four_clips_with_sound_are_learned_and_made_again(tmp_path):
    trainer = prepare(tmp_path, steps=1500)
    trainer.train(live=False)
    loss_fell_tenfold(tmp_path / "out", ("loss_video", "loss_audio"))
    for index in range(CLIPS):
        made = sample(trainer, index)
        video, audio = clip(index)
        assert psnr(made["video"][0], video) > 25, index
        assert correlation(made["audio"][0], audio) > 0.9, index
