"""A very small model learns four clips with sound by heart, and makes them again from their captions."""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny_training import BINS, CHANNELS, FPS, FRAMES, SIDE, STEPS, TOKENS, make_config, write_clip, write_model

from ltx_core.types import VideoPixelShape
from ltx_trainer.precomputed import write_record
from ltx_trainer.run_log import LOG_NAME, read_csv_log
from ltx_trainer.trainer import LtxvTrainer
from ltx_trainer.validation_config import SampleMask, SampleReference, SampleVideoToAudio, ValidationConfig
from ltx_trainer.validation_sampler import EncodedCondition, PreparedSample, ValidationSampler

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
    """Features that tell the clips apart; index -1 is the caption of clips that share one."""
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


def prepare(tmp_path, steps, shared_caption=False, **changes):
    """A trainer over the four clips."""
    model = write_model(tmp_path / "model.safetensors", width=WIDTH, audio_width=WIDTH, layers=2)
    for index in range(CLIPS):
        video, audio = clip(index)
        name = f"clip_{index}"
        write_clip(tmp_path / "data", name, caption(-1 if shared_caption else index), video, audio)
        frames, height, width = video.shape[1:]
        grid = {"num_frames": frames, "height": height, "width": width, "fps": FPS}
        write_record(tmp_path / "data" / "reference_latents" / f"{name}.safetensors", {"latents": -video, **grid})
        write_record(tmp_path / "data" / "video_masks" / f"{name}.safetensors", {"mask": left_half(frames)})
    optimization = {
        "steps": steps,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "scheduler_type": "cosine",
        "warmup_steps": 20,
    }
    changes = {"model": {"training_mode": "full"}, "optimization": optimization, **changes}
    return LtxvTrainer(make_config(model, tmp_path / "data", tmp_path / "out", **changes))


def left_half(frames):
    mask = torch.zeros(frames, SIDE, SIDE)
    mask[:, :, : SIDE // 2] = 1
    return mask


def loss_fell_tenfold(output, names):
    rows = read_csv_log(output / LOG_NAME)
    for name in names:
        values = [value for _, key, value in rows if key == f"train/{name}"]
        start, end = sum(values[:5]) / 5, sum(values[-20:]) / 20
        assert end < start / 10, f"{name} went from {start:.3f} to {end:.3f}"


@torch.no_grad()
def sample(trainer, index, *conditions, **config):
    """The latents of a caption and conditions ``(condition, latent[, mask])``, made without guidance."""
    scales = (("cfg_scale", 1), ("stg_scale", 0), ("modality_guidance_scale", 1))
    neutral = {f"{modality}_{kind}": value for modality in ("video", "audio") for kind, value in scales}
    section = ValidationConfig(inference_steps=20, guidance_rescale=0, **{**neutral, **config})
    factors = trainer.files.scale_factors()
    sampler = ValidationSampler(section, trainer.transformer.eval(), factors, torch.float32)
    contexts = trainer.objective.contexts({name: value[None] for name, value in caption(index).items()})
    frames = (FRAMES - 1) * factors.time + 1
    shape = VideoPixelShape(1, frames, SIDE * factors.height, SIDE * factors.width, FPS)
    given = tuple(EncodedCondition(condition, latent[None], *mask) for condition, latent, *mask in conditions)
    return sampler.latents(PreparedSample(shape, 5, contexts, {}, given))


@pytest.mark.slow
def test_four_clips_with_sound_are_learned_and_made_again(tmp_path):
    trainer = prepare(tmp_path, steps=1000)
    trainer.train(live=False)
    loss_fell_tenfold(tmp_path / "out", ("loss_video", "loss_audio"))
    for index in range(CLIPS):
        made = sample(trainer, index)
        video, audio = clip(index)
        assert psnr(made["video"][0], video) > 25, index
        assert correlation(made["audio"][0], audio) > 0.9, index


@pytest.mark.slow
def test_sound_is_learned_for_given_pictures(tmp_path):
    strategy = {
        "name": "flexible",
        "video": {"is_generated": False, "latents_dir": "latents"},
        "audio": {"is_generated": True, "latents_dir": "audio_latents"},
    }
    trainer = prepare(tmp_path, 700, shared_caption=True, training_strategy=strategy)
    trainer.train(live=False)
    loss_fell_tenfold(tmp_path / "out", ("loss_audio",))
    for index in range(CLIPS):
        video, audio = clip(index)
        whole = SampleVideoToAudio(type="video_to_audio", video="clip.mp4")
        made = sample(trainer, -1, (whole, video), generate_video=False)
        assert torch.equal(made["video"][0], video)
        assert correlation(made["audio"][0], audio) > 0.9, index


@pytest.mark.slow
def test_an_ic_lora_learns_to_follow_its_reference(tmp_path):
    strategy = {
        "name": "flexible",
        "video": {
            "is_generated": True,
            "latents_dir": "latents",
            "conditions": [{"type": "reference", "latents_dir": "reference_latents"}],
        },
    }
    everything = ("to_k", "to_q", "to_v", "to_out.0", "net.0.proj", "net.2", "patchify_proj", "proj_out", "linear")
    trainer = prepare(
        tmp_path,
        700,
        shared_caption=True,
        training_strategy=strategy,
        model={"training_mode": "lora"},
        lora={"rank": 48, "alpha": 96, "target_modules": everything},
    )
    trainer.train(live=False)
    loss_fell_tenfold(tmp_path / "out", ("loss_video",))
    for index in range(CLIPS):
        video, _ = clip(index)
        reference = SampleReference(type="reference", video="reference.mp4")
        made = sample(trainer, -1, (reference, -video), generate_audio=False)
        assert psnr(made["video"][0], video) > 20, index


@pytest.mark.slow
def test_the_masked_part_is_kept_and_the_rest_filled_in(tmp_path):
    strategy = {
        "name": "flexible",
        "video": {
            "is_generated": True,
            "latents_dir": "latents",
            "conditions": [{"type": "mask", "mask_dir": "video_masks"}],
        },
    }
    trainer = prepare(tmp_path, 700, shared_caption=True, training_strategy=strategy)
    trainer.train(live=False)
    loss_fell_tenfold(tmp_path / "out", ("loss_video",))
    for index in range(CLIPS):
        video, _ = clip(index)
        mask = SampleMask(type="mask", video="clip.mp4", mask="mask.png")
        made = sample(trainer, -1, (mask, video, left_half(FRAMES)), generate_audio=False)
        half = SIDE // 2
        assert torch.equal(made["video"][0, ..., :half], video[..., :half])
        assert psnr(made["video"][0, ..., half:], video[..., half:]) > 20, index
