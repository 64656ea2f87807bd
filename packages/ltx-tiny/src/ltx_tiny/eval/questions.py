"""The eval: prompts drawn beforehand, a clip for each, and what the detectors make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.eval.detectors import Result, examine, find_lags, log_mel_error, onset_shifts, psnr
from ltx_tiny.eval.hearing import RATE, listen
from ltx_tiny.eval.report import finite
from ltx_tiny.eval.sheet import Clip
from ltx_tiny.world.captions import Caption, caption
from ltx_tiny.world.motion import events
from ltx_tiny.world.render import render
from ltx_tiny.world.scene import Scene, sample_scene

Video = NDArray[np.uint8]  # [F, H, W, 3]
Audio = NDArray[np.float32]  # [2, S] in [-1, 1]
Generate = Callable[..., tuple[Video, Audio]]  # of a prompt and a seed

EVAL_SEED = 20_000
LEAVE_OUT = 0.1  # eval prompts say nearly everything


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


def questions(count: int, seed: int = EVAL_SEED, part: str | None = "held_out") -> list[Question]:
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
class Trip:
    """Agreement of one clip with itself after being encoded and decoded."""

    psnr_db: float
    outline: float  # median overlap of the body with the best-fitting true shape, afterwards
    jitter: float  # mean change of that overlap from frame to frame
    log_mel_error: float
    shifts_ms: tuple[float, ...]  # of its onsets, where the sound comes in pulses
    heard_ms: tuple[float, ...]  # of the same onsets before the trip, against the instants they were made at

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; None for what cannot be said in numbers."""
        numbers = {"psnr_db": self.psnr_db, "log_mel_error": self.log_mel_error}
        numbers |= {"outline": self.outline, "jitter": self.jitter}
        lists = {"shifts_ms": self.shifts_ms, "heard_ms": self.heard_ms}
        return {name: finite(value) for name, value in numbers.items()} | {
            name: [finite(value) for value in values] for name, values in lists.items()
        }


def reconstruct(
    scenes: Iterable[Scene],
    through_video: Callable[[Video], Video],
    through_audio: Callable[[Audio], Audio],
    frames: int = 49,
    side: int = 256,
) -> Iterator[Trip]:
    """Render scenes, pass them through a video and an audio chain, and compare as they come."""
    for scene in scenes:
        video, audio = render(scene, frames, side, side)
        after = through_audio(audio)
        shifts: tuple[float, ...] = ()
        heard: tuple[float, ...] = ()
        if scene.body.motion in ("bounces", "spins", "blinks"):
            shifts = onset_shifts(audio, after)
            seconds = audio.shape[1] / RATE
            heard = find_lags(events(scene.body, 0.0, seconds), listen(audio).onsets, seconds)
        seen = through_video(video)
        steadiness = examine(seen, audio, {})
        yield Trip(psnr(video, seen), steadiness.outline, steadiness.jitter, log_mel_error(audio, after), shifts, heard)
