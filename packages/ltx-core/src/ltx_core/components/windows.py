"""Windows of a long clip: their beginnings and ends in latents, pixel frames and audio tokens.

Video latent 0 is one pixel frame, each later one eight; audio token 0 is one mel frame, each later one four. So both
streams are one short cell followed by equal ones, and what can be exact between them is the stride of the windows:
``s`` latents last ``8 s / fps`` seconds, which is ``200 s / fps`` tokens. Torch-free; all arithmetic is in fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ltx_core.errors import ConfigError

FRAMES_PER_LATENT = 8
TOKENS_PER_SECOND = 25
Span = tuple[float, float]  # seconds [start, end)


@dataclass(frozen=True)
class Window:
    """Half-open intervals of one window in the whole clip; overlaps are those with the window before."""

    latents: tuple[int, int]
    frames: tuple[int, int]  # pixel frames
    audio: tuple[int, int]  # audio tokens
    overlap_latents: int = 0
    overlap_frames: int = 0
    overlap_audio: int = 0


@dataclass(frozen=True)
class WindowPlan:
    """A clip of ``requested_frames``, generated as ``frames`` (8k+1) in ``windows`` and cut."""

    fps: Fraction
    requested_frames: int
    latents: int
    audio_tokens: int
    grid: int  # latents; a stride that is a multiple of it is a whole number of audio tokens
    window_latents: int
    stride: int  # latents; 0 where one window holds the clip
    windows: tuple[Window, ...]

    @property
    def frames(self) -> int:
        return pixel_frames(self.latents)


def pixel_frames(latents: int) -> int:
    """Pixel frames of a clip of so many latents."""
    return FRAMES_PER_LATENT * (latents - 1) + 1


def audio_tokens(frames: int, fps: Fraction) -> int:
    """Audio tokens of a clip, rounded half to even in doubles as the networks were trained."""
    return round(frames / float(fps) * TOKENS_PER_SECOND)


def stride_grid(fps: Fraction) -> int:
    """The smallest stride in latents that is a whole number of audio tokens."""
    return (FRAMES_PER_LATENT * TOKENS_PER_SECOND / fps).denominator


def plan_windows(
    fps: Fraction,
    seconds: Fraction,
    window: Fraction,
    overlap: Fraction,
    last: Literal["short", "full"] = "short",
    align: Literal["exact", "nearest"] = "exact",
) -> WindowPlan:
    """Cut ``seconds`` into windows of at most ``window`` seconds that share at least ``overlap`` seconds.

    ``last`` "full" moves the last window back until it is as long as the others; ``align`` "nearest" allows starts up
    to 20 ms off the audio grid. Raises `ConfigError` when no stride fits, naming the smallest window that would do.
    """
    if min(fps, seconds, window) <= 0 or overlap < 0:
        asked = f"{seconds} s in {window} s with {overlap} s shared at {fps} fps"
        raise ConfigError(f"window plan of {asked}: not positive")
    requested = max(round(seconds * fps), 1)
    total = -(-(requested - 1) // FRAMES_PER_LATENT) + 1
    tokens = audio_tokens(pixel_frames(total), fps)
    size = max(round(window * fps) - 1, 0) // FRAMES_PER_LATENT + 1
    shared = max(1, -(-overlap * fps // FRAMES_PER_LATENT))
    grid = stride_grid(fps) if align == "exact" else 1
    stride = 0 if size >= total else (size - int(shared)) // grid * grid
    if size < total and stride < grid:
        smallest = f"{float(pixel_frames(int(shared) + grid) / fps):.3f} s"
        asked = f"for an overlap of {float(overlap):g} s at {float(fps):g} fps"
        raise ConfigError(f"window is {float(window):g} s, expected at least {smallest} {asked}")
    bounds = _bounds(total, size, stride, grid, last)
    return WindowPlan(fps, requested, total, tokens, grid, size, stride, _windows(bounds, fps, total, tokens))


def _bounds(total: int, size: int, stride: int, grid: int, last: str) -> list[tuple[int, int]]:
    if size >= total:
        return [(0, total)]
    starts = list(range(0, total - size + stride, stride))
    if last == "full":
        starts[-1] = min(starts[-1], -(-(total - size) // grid) * grid)
    return [(start, min(start + size, total)) for start in starts]


def _windows(bounds: Sequence[tuple[int, int]], fps: Fraction, total: int, tokens: int) -> tuple[Window, ...]:
    windows: list[Window] = []
    for start, end in bounds:
        first_token = round(FRAMES_PER_LATENT * TOKENS_PER_SECOND * start / fps)
        end_token = tokens if end == total else first_token + audio_tokens(pixel_frames(end - start), fps)
        first_frame = FRAMES_PER_LATENT * start - 7 if start else 0
        shared = (0, 0, 0)
        if windows:
            before = windows[-1]
            shared = (before.latents[1] - start, before.frames[1] - first_frame, before.audio[1] - first_token)
        frames = (first_frame, pixel_frames(end))
        windows.append(Window((start, end), frames, (first_token, end_token), *shared))
    return tuple(windows)


def latent_span(index: int, fps: Fraction) -> Span:
    """Seconds of a video latent of the whole clip."""
    start = FRAMES_PER_LATENT * index - 7 if index else 0
    return float(start / fps), float((FRAMES_PER_LATENT * index + 1) / fps)


def token_span(index: int) -> Span:
    """Seconds of an audio token of the whole clip."""
    return (0.04 * index - 0.03 if index else 0.0), 0.04 * index + 0.01


def window_spans(
    window: Window, fps: Fraction, layout: Literal["absolute", "kept", "rebuilt"] = "rebuilt"
) -> tuple[list[Span], list[Span]]:
    """Seconds of each video and audio token of a window.

    ``absolute``: as in the whole clip. ``kept``: the same, counted from the start of the window. ``rebuilt``: like
    ``kept``, and the first video token is one frame, the first audio token one mel frame, as in a fresh clip.
    """
    video = [latent_span(index, fps) for index in range(*window.latents)]
    audio = [token_span(index) for index in range(*window.audio)]
    if layout == "absolute":
        return video, audio
    zero = float(FRAMES_PER_LATENT * window.latents[0] / fps)
    video = [(start - zero, end - zero) for start, end in video]
    audio = [(start - zero, end - zero) for start, end in audio]
    if layout == "rebuilt":
        video[0] = (0.0, video[0][1])
        audio[0] = (audio[0][1] - 0.01, audio[0][1])
    return video, audio


def anchor_spans(latents: int, fps: Fraction) -> list[Span]:
    """Seconds of ``latents`` anchor latents that stand before time zero; the last one ends at it."""
    return [
        (float(FRAMES_PER_LATENT * (index - latents) / fps), float(FRAMES_PER_LATENT * (index + 1 - latents) / fps))
        for index in range(latents)
    ]


def decoded_seconds(tokens: int) -> float:
    """Seconds of sound that so many audio tokens decode to: one mel frame for the first, four for each other."""
    return max(4 * tokens - 3, 0) / 100
