"""The exam: prompts drawn beforehand, a clip for each, and what the detectors make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.exam.detectors import Result, examine, log_mel_error, onset_shifts, psnr
from ltx_tiny.exam.hearing import RATE
from ltx_tiny.exam.report import Spread
from ltx_tiny.exam.sheet import Clip
from ltx_tiny.world.captions import Caption, caption
from ltx_tiny.world.render import render
from ltx_tiny.world.scene import Scene, sample_scene

Video = NDArray[np.uint8]  # [F, H, W, 3]
Audio = NDArray[np.float32]  # [2, S] in [-1, 1]
Generate = Callable[[str, int], tuple[Video, Audio]]

EXAM_SEED = 20_000
LEAVE_OUT = 0.1  # exam prompts say nearly everything


@dataclass(frozen=True)
class Question:
    """A prompt, the scene it was written for, and the seed to answer it with."""

    caption: Caption
    scene: Scene
    seed: int


@dataclass(frozen=True)
class Answer:
    """A question, the clip it was answered with and what was found in it."""

    question: Question
    clip: Clip
    result: Result

    def to_json(self) -> dict[str, Any]:
        """The record of one clip, without the clip."""
        question = self.question
        return {
            "prompt": question.caption.text,
            "seed": question.seed,
            **self.result.to_json(),
            "scene": question.scene.to_json(),
        }


def questions(count: int, seed: int = EXAM_SEED, part: str | None = "held_out") -> list[Question]:
    """The first ``count`` questions of a seed; more questions begin with the same ones."""
    asked = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = sample_scene(rng, part)
        asked.append(Question(caption(scene, rng, LEAVE_OUT), scene, seed + number))
    return asked


def take(generate: Generate, asked: Iterable[Question], fps: float = 25.0, rate: int = RATE) -> Iterator[Answer]:
    """Answer questions with ``generate(prompt, seed) -> (video, audio)`` and examine each clip as it comes."""
    for question in asked:
        video, audio = generate(question.caption.text, question.seed)
        result = examine(video, audio, question.caption.stated, fps, rate)
        yield Answer(question, Clip(question.caption.text, video, audio, rate), result)


def ceiling(asked: Iterable[Question], frames: int = 49, height: int = 256, width: int = 256) -> Iterator[Answer]:
    """The same questions answered by the renderer: what the detectors find at best."""
    for question in asked:
        video, audio = render(question.scene, frames, height, width)
        clip = Clip(question.caption.text, video, audio)
        yield Answer(question, clip, examine(video, audio, question.caption.stated))


@dataclass(frozen=True)
class Reconstruction:
    """How much of a clip survives being encoded and decoded."""

    psnr_db: tuple[float, ...]
    log_mel_error: tuple[float, ...]
    onset_shift_ms: Spread

    @property
    def mean_psnr_db(self) -> float:
        return float(np.mean(self.psnr_db))


def reconstruct(
    scenes: Sequence[Scene],
    through_video: Callable[[Video], Video],
    through_audio: Callable[[Audio], Audio],
    frames: int = 49,
    side: int = 256,
) -> Reconstruction:
    """Render scenes, pass them through a video and an audio chain, and compare; onsets where sound comes in pulses."""
    ratios: list[float] = []
    errors: list[float] = []
    shifts: list[float] = []
    for scene in scenes:
        video, audio = render(scene, frames, side, side)
        after = through_audio(audio)
        ratios.append(psnr(video, through_video(video)))
        errors.append(log_mel_error(audio, after))
        if scene.body.motion in ("bounces", "spins", "blinks"):
            shifts += onset_shifts(audio, after)
    return Reconstruction(tuple(ratios), tuple(errors), Spread.of_lags(shifts))
