"""Examples that the networks learn from: clips of the toy world, each a pure function of (seed, position, slot)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer
from ltx_tiny.world.captions import caption
from ltx_tiny.world.code import scene_code
from ltx_tiny.world.drawing import draw_lines
from ltx_tiny.world.motion import camera, track
from ltx_tiny.world.picture import Window, draw
from ltx_tiny.world.scene import SECONDS, Scene, sample_scene
from ltx_tiny.world.sound import play
from ltx_trainer.pretrain.data import Stage, stack
from ltx_trainer.pretrain.gemma import TURN, TURN_END
from ltx_trainer.validation_config import DEFAULT_NEGATIVE_PROMPT

FPS = 25.0
DRAWN_SHARE = 0.08  # of the encoder's clips, so that it can encode what an in-context adapter is given
HARD_SHARE = 0.5  # of the decoder's clips that are chosen for what is hard to draw
SPINNING_SHARE = 0.3  # of these; in all others the camera moves
CHAT_SHARE = 0.5  # of what the language model reads
FRAMES = 49


@dataclass(frozen=True)
class VideoExamples:
    """Short stretches of clips for the video VAE: ``video`` uint8 ``[3, frames, side, side]`` and its ``code``.

    ``drawable`` says whether a decoder of clips can draw it: 0 for a line drawing.
    A stage that says ``window`` has a part of each picture around the body. That is for a decoder: what a code says of
    a body cannot be seen in a part of it.
    """

    seed: int
    part: str = "train"
    drawn_share: float = 0.0  # of clips that are drawings
    hard_share: float = 0.0  # of clips that are chosen for what is hard to draw

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        scene = sample_scene(rng, self.part)
        if rng.random() < self.hard_share:
            hard = mark_goes_round if rng.random() < SPINNING_SHARE else boards_move
            while not hard(scene):
                scene = sample_scene(rng, self.part)
        start = float(rng.uniform(0.0, SECONDS - stage.frames / FPS))
        view = (scene, stage.frames, stage.side, stage.side, FPS, start)
        if rng.random() < self.drawn_share:
            return seen(draw_lines(*view), scene_code(*view, drawing=True), drawable=0.0)
        window = window_at_body(rng, scene, stage, start) if stage.window else None
        return seen(draw(*view, window), scene_code(*view, window))


def mark_goes_round(scene: Scene) -> bool:
    return scene.body.motion == "spins"


def boards_move(scene: Scene) -> bool:
    return scene.camera != "still"


def seen(video: NDArray[np.uint8], code: NDArray[np.float32], drawable: float = 1.0) -> dict[str, Tensor]:
    """Frames ``[F, H, W, 3]`` and their code as an example."""
    return {"video": as_tensor(video), "code": torch.from_numpy(code), "drawable": torch.tensor(drawable)}


def window_at_body(rng: np.random.Generator, scene: Scene, stage: Stage, start: float) -> Window:
    """The part of a stage's pictures to show: near where the body is at ``start`` seconds, in most cases some of it."""
    instant = np.array([start])
    path, view = track(scene, scene.body, instant), camera(scene, instant)
    middle = np.array([path.y[0], path.x[0] - view.x[0]]) * view.zoom[0] + 0.5 + rng.uniform(-0.3, 0.3, 2)
    top, left = np.clip(middle * stage.side - stage.window / 2, 0, stage.side - stage.window).astype(int)
    return Window(int(top), int(left), stage.window, stage.window)


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


def as_tensor(video: NDArray[np.uint8]) -> Tensor:
    """``[F, H, W, 3]`` to ``[3, F, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(video.transpose(3, 0, 1, 2)))


def held_out_clips(count: int, frames: int, side: int, seed: int = 7) -> dict[str, Tensor]:
    """Clips of triples never trained on, from half a second in, as ``video`` and ``code``, stacked."""
    rngs = (np.random.default_rng((seed, number)) for number in range(count))
    views = [(sample_scene(rng, "held_out"), frames, side, side, FPS, 0.5) for rng in rngs]
    return stack([seen(draw(*view), scene_code(*view)) for view in views])


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
    """Captions as token rows for the language model: ``input_ids`` ``[tokens]``, padded on the right with 0.

    Half of them are chats in which a caption that says little is answered by one of the same scene that says all.
    """

    seed: int
    tokenizer: GemmaTokenizer
    part: str = "train"

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        scene = sample_scene(rng, self.part)
        text = spoken(scene, rng, dropout=0.02, leave_out=0.5)
        if rng.random() < CHAT_SHARE:
            asked, answer = caption(scene, rng, rng.uniform(0.3, 2.0)).text, caption(scene, rng, 0.0).text
            text = f"{TURN}{asked}{TURN_END}{TURN}{answer}{TURN_END}"
        ids = self.tokenizer.tokenizer.encode(text).ids[: stage.tokens]
        return {"input_ids": torch.tensor([*ids, *[0] * (stage.tokens - len(ids))])}


def captions(count: int, seed: int) -> list[str]:
    """Captions of training scenes, to learn a tokenizer from."""
    rngs = (np.random.default_rng((seed, number)) for number in range(count))
    return [*(caption(sample_scene(rng, "train"), rng).text for rng in rngs), DEFAULT_NEGATIVE_PROMPT]
