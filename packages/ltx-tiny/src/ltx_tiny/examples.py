"""What the networks learn from: clips of the toy world, each a pure function of (seed, position, slot)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer
from ltx_tiny.world.captions import caption
from ltx_tiny.world.motion import camera, track
from ltx_tiny.world.picture import Window, draw
from ltx_tiny.world.scene import SECONDS, Scene, sample_scene
from ltx_tiny.world.sound import play
from ltx_trainer.pretrain.data import Stage
from ltx_trainer.validation_config import DEFAULT_NEGATIVE_PROMPT

FPS = 25.0
FULL_SIDE, HALF_SIDE = 256, 128  # pixels of a finished clip, and of the first stage of generation
FRAMES = 49
FULL_SIZE_SHARE = 0.5  # of crops, that come out of full-size pictures; the rest come out of half-size ones
NEAR_BODY_SHARE = 0.75  # of crops, that lie where the body is


@dataclass(frozen=True)
class VideoExamples:
    """Pieces of clips for the video VAE: ``video`` uint8 ``[3, frames, side, side]``."""

    seed: int
    part: str = "train"

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        scene = sample_scene(rng, self.part)
        start = float(rng.uniform(0.0, SECONDS - stage.frames / FPS))
        rendered = FULL_SIDE if rng.random() < FULL_SIZE_SHARE else max(HALF_SIDE, stage.side)
        top, left = crop_corner(scene, start, rendered, stage.side, rng)
        window = Window(top, left, stage.side, stage.side)
        return {"video": as_tensor(draw(scene, stage.frames, rendered, rendered, FPS, start, window))}


@dataclass(frozen=True)
class SoundExamples:
    """Pieces of sound for the audio VAE and the vocoder: ``waveform`` float32 ``[2, samples]`` at 16 kHz."""

    seed: int
    samples: int
    part: str = "train"

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        wave = play(sample_scene(rng, self.part), FRAMES / FPS)
        first = int(rng.integers(0, max(wave.shape[1] - self.samples, 0) + 1))
        return {"waveform": torch.from_numpy(wave[:, first : first + self.samples].copy())}


def crop_corner(scene: Scene, start: float, rendered: int, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """(top, left) of a square crop, mostly about where the body is at ``start`` seconds."""
    room = rendered - side
    if room <= 0:
        return 0, 0
    if rng.random() > NEAR_BODY_SHARE:
        return int(rng.integers(room + 1)), int(rng.integers(room + 1))
    t = np.array([start])
    path, view = track(scene, scene.body, t), camera(scene, t)
    x, y = (path.x[0] - view.x[0]) * view.zoom[0], path.y[0] * view.zoom[0]
    jitter = rng.uniform(-0.2, 0.2, 2)
    top = (y + jitter[0] + 0.5) * rendered - side / 2
    left = (x + jitter[1] + 0.5) * rendered - side / 2
    return int(np.clip(top, 0, room)), int(np.clip(left, 0, room))


def as_tensor(video: NDArray[np.uint8]) -> Tensor:
    """``[F, H, W, 3]`` to ``[3, F, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(video.transpose(3, 0, 1, 2)))


def held_out_clips(count: int, frames: int, side: int, seed: int = 7) -> Tensor:
    """Clips of triples never trained on, from half a second in: uint8 ``[B, 3, F, side, side]``."""
    rngs = (np.random.default_rng((seed, number)) for number in range(count))
    scenes = [sample_scene(rng, "held_out") for rng in rngs]
    return torch.stack([as_tensor(draw(scene, frames, side, side, FPS, 0.5)) for scene in scenes])


def held_out_sound(count: int, samples: int, seed: int = 7) -> Tensor:
    """Sound of triples never trained on: float32 ``[B, 2, samples]``."""
    rngs = (np.random.default_rng((seed, number)) for number in range(count))
    waves = [play(sample_scene(rng, "held_out"), FRAMES / FPS)[:, :samples] for rng in rngs]
    return torch.from_numpy(np.stack(waves))


def spoken(scene: Scene, rng: np.random.Generator, dropout: float, leave_out: float) -> str:
    """A caption of a scene; now and then nothing, or what is asked to be avoided, as guidance puts in its place."""
    text = caption(scene, rng, leave_out).text
    if rng.random() >= dropout:
        return text
    return "" if rng.random() < 0.5 else DEFAULT_NEGATIVE_PROMPT


@dataclass(frozen=True)
class CaptionExamples:
    """Captions as token rows for the language model: ``input_ids`` ``[tokens]``, padded on the right with 0."""

    seed: int
    tokenizer: GemmaTokenizer
    part: str = "train"

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        text = spoken(sample_scene(rng, self.part), rng, dropout=0.02, leave_out=0.5)
        ids = self.tokenizer.tokenizer.encode(text).ids[: stage.tokens]
        return {"input_ids": torch.tensor([*ids, *[0] * (stage.tokens - len(ids))])}


def captions(count: int, seed: int) -> list[str]:
    """Captions of training scenes, to learn a tokenizer from."""
    rngs = (np.random.default_rng((seed, number)) for number in range(count))
    return [*(caption(sample_scene(rng, "train"), rng).text for rng in rngs), DEFAULT_NEGATIVE_PROMPT]
