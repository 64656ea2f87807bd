"""Clips from a transformer in training: the shared denoising loop, decoded, for the eval's detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning.tools import AudioLatentTools, LatentTools, VideoLatentTools
from ltx_core.model.audio_vae.audio_vae import AudioDecoder, decode_audio
from ltx_core.model.audio_vae.vocoder import Vocoder
from ltx_core.model.transformer.model import X0Model
from ltx_core.model.video_vae.video_vae import VideoDecoder
from ltx_core.sampling.denoisers import GuidedDenoiser
from ltx_core.sampling.loop import denoise
from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer
from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx_tiny.eval.code import read_code
from ltx_tiny.eval.detectors import examine
from ltx_tiny.eval.questions import questions
from ltx_tiny.eval.sheet import Clip, write_sheet
from ltx_tiny.examples import FPS, FRAMES
from ltx_trainer.pretrain.transformer import TransformerTrainer


@dataclass(frozen=True)
class Decoders:
    """From latents to a clip."""

    video: VideoDecoder
    audio: AudioDecoder
    vocoder: Vocoder

    def clip(self, prompt: str, latents: Mapping[str, Tensor]) -> Clip:
        """One clip ``{video [1, ...], audio [1, ...]}``; sound at the vocoder's rate."""
        pixels = self.video(latents["video"]).float().clamp(-1, 1)[0]
        frames = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
        sound = decode_audio(latents["audio"], self.audio, self.vocoder)
        return Clip(prompt, frames, sound.waveform.float().cpu().numpy().astype(np.float32), sound.sampling_rate)


@dataclass(frozen=True)
class SampleSettings:
    """Settings of validation clips; a guidance scale of 1 makes none of the second predictions."""

    sigmas: tuple[float, ...]
    guidance_scale: float = 3.0
    side: int = 128
    frames: int = FRAMES
    count: int = 4


@dataclass(frozen=True)
class SampleJudge:
    """Answers the first held-out questions and reports the share of stated attributes that were found.

    Without decoders, what latents say is read from them, and no sheet is written.
    """

    decoders: Decoders | None
    tokenizer: GemmaTokenizer
    settings: SampleSettings

    def __call__(self, trainer: TransformerTrainer, step: int, folder: Path) -> dict[str, float]:
        """Write a contact sheet; figures are shares right by attribute."""
        asked = questions(self.settings.count)
        latents = sample(trainer, self.tokenizer, [q.caption.text for q in asked], self.settings)
        right: dict[str, list[bool]] = {}
        clips = []
        for row, question in enumerate(asked):
            stated = question.caption.stated
            if self.decoders is None:
                found = read_code(latents["video"][row].float().cpu().numpy(), FPS)
                correct = {name: found[name] == stated[name] for name in found if name in stated}
            else:
                one = {name: x[row : row + 1] for name, x in latents.items()}
                clips.append(clip := self.decoders.clip(question.caption.text, one))
                correct = examine(clip.video, clip.audio, stated, FPS, clip.rate).correct
            for name, is_right in correct.items():
                right.setdefault(name, []).append(is_right)
        if clips:
            folder.mkdir(parents=True, exist_ok=True)
            write_sheet(folder / f"step_{step:06d}.png", clips)
        return {f"eval_{name}": sum(found) / len(found) for name, found in right.items()}


@torch.no_grad()
def sample(
    trainer: TransformerTrainer, tokenizer: GemmaTokenizer, prompts: Sequence[str], settings: SampleSettings
) -> dict[str, Tensor]:
    """Latents ``{video [B, C, F, H, W], audio [B, C, L, M]}`` of prompts, guided away from the empty prompt."""
    count, device = len(prompts), trainer.device
    tokens = tokenizer([*prompts, *[""] * count])
    both = trainer.contexts({"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask})
    contexts = {name: context[:count].float() for name, context in both.items()}
    guidance = MultiModalGuiderParams(cfg_scale=settings.guidance_scale)
    guiders = {name: MultiModalGuider(guidance, context[count:].float()) for name, context in both.items()}
    shape = VideoPixelShape(count, settings.frames, settings.side, settings.side, FPS)
    tools: dict[str, LatentTools] = {
        "video": VideoLatentTools(VideoLatentPatchifier(), VideoLatentShape.from_pixel_shape(shape), FPS),
        "audio": AudioLatentTools(AudioPatchifier(), AudioLatentShape.from_video_pixel_shape(shape)),
    }
    noiser = GaussianNoiser(torch.Generator(device).manual_seed(0))
    states = {name: noiser(tool.create_initial_state(device, torch.float32)) for name, tool in tools.items()}
    denoiser = GuidedDenoiser(contexts, guiders)
    for step in denoise(X0Model(trainer.transformer), denoiser, states, torch.tensor(settings.sigmas)):
        states = dict(step.states)
    return {name: tools[name].unpatchify(state).latent for name, state in states.items()}
