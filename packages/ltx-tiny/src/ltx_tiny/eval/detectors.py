"""Looks at and listens to a clip, and compares it with what was asked: attributes, timing, and sound against sight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_core.errors import ConfigError
from ltx_tiny.eval.hearing import RATE, Hearing, envelope, find_onsets, listen, resample
from ltx_tiny.eval.sight import Sight, look

Array = NDArray[np.floating[Any]]

ATTRIBUTES = ("colour", "shape", "size", "motion", "background", "camera", "sound", "pitch")
EDGE = 0.08  # seconds at either end in which events are not timed


@dataclass(frozen=True)
class Result:
    """An answer: what was asked and what was found. Lags are sound after sight, in milliseconds, one per event."""

    stated: Mapping[str, str]
    found: Mapping[str, str | None]
    lags_ms: tuple[float, ...]
    tie: float | None  # correlation of what should move together in sight and sound; None if nothing should
    outline: float = 0.0  # median overlap of the body with the best-fitting true shape
    jitter: float = 0.0  # mean change of that overlap from frame to frame

    @property
    def correct(self) -> dict[str, bool]:
        """For each stated attribute, whether it was found."""
        return {name: self.found[name] == value for name, value in self.stated.items()}

    @property
    def passed(self) -> bool:
        """Whether everything stated was found."""
        return all(self.correct.values())

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers; an event without any sound has lag None."""
        lags = [round(lag, 2) if np.isfinite(lag) else None for lag in self.lags_ms]
        tie = None if self.tie is None else round(self.tie, 4)
        return {
            "stated": dict(self.stated),
            "found": dict(self.found),
            "correct": self.correct,
            "lags_ms": lags,
            "tie": tie,
            "outline": round(self.outline, 4),
            "jitter": round(self.jitter, 4),
        }


def examine(
    video: NDArray[np.uint8],
    audio: NDArray[np.float32],
    stated: Mapping[str, str],
    fps: float = 25.0,
    rate: int = RATE,
) -> Result:
    """Compare a clip with the attributes its prompt states.

    ``video`` is uint8 ``[F, H, W, 3]``, ``audio`` ``[2, S]`` in [-1, 1] at ``rate`` Hz, ``stated`` as in
    ``Caption.stated``. Raises ``ConfigError`` for a misshapen clip or an attribute the world does not have.
    """
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise ConfigError(f"video is {video.dtype} {video.shape}, expected uint8 [F, H, W, 3]")
    unknown = sorted(set(stated) - set(ATTRIBUTES))
    if unknown:
        raise ConfigError(f"stated attribute is {unknown[0]!r}, expected one of {', '.join(ATTRIBUTES)}")
    sight, hearing = look(video, fps), listen(audio, rate)
    found = {name: getattr(sight, name) for name in ("colour", "shape", "size", "motion", "background", "camera")}
    found |= {"sound": hearing.sound, "pitch": hearing.pitch}
    lags = find_lags(sight.events, hearing.onsets, len(video) / fps)
    outline = float(np.median(sight.outline)) if len(sight.outline) else 0.0
    jitter = float(np.abs(np.diff(sight.outline)).mean()) if len(sight.outline) > 1 else 0.0
    return Result(dict(stated), found, lags, find_tie(sight, hearing), outline, jitter)


def find_lags(events: Array, onsets: Array, seconds: float) -> tuple[float, ...]:
    """For each event away from the ends, the nearest onset less the event in ms; infinite where there is no onset."""
    timed = events[(events > EDGE) & (events < seconds - EDGE)]
    return tuple(_nearest(onsets, event) for event in timed)


def find_tie(sight: Sight, hearing: Hearing) -> float | None:
    """Correlation in [-1, 1] of place with x, of pitch with height, or of loudness with size."""
    path = sight.path
    if sight.motion.startswith("slides"):
        seen, heard = path.screen_x, hearing.place
    elif sight.motion in ("rises", "falls"):
        seen, heard = -path.y, np.log2(np.maximum(hearing.frequency, 1.0))
    elif sight.motion in ("grows", "shrinks"):
        seen, heard = path.radius, np.log10(hearing.loudness + 1e-5)
    else:
        return None
    there = np.flatnonzero(path.seen)
    if len(hearing.at) < 4:
        return 0.0
    at_sound = np.interp(hearing.at, there / path.fps, seen[there])
    if np.std(heard) < 1e-9 or np.std(at_sound) < 1e-9:
        return 0.0
    return float(np.corrcoef(at_sound, heard)[0, 1])


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB of two pictures or videos of values 0..255."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10.0 * float(np.log10(255.0**2 / error))


def log_mel(audio: NDArray[Any], rate: int = RATE, bins: int = 64) -> Array:
    """Natural logarithm of mel magnitudes, floored at 1e-5: ``[C, T, bins]``; 64 ms windows every 10 ms."""
    audio = np.pad(resample(np.asarray(audio, dtype=np.float64), rate), ((0, 0), (512, 512)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(audio, 1024, axis=1)[:, ::160] * np.hanning(1025)[:-1]
    magnitude = np.abs(np.fft.rfft(windows, axis=2))
    edges = 700.0 * (10.0 ** (np.linspace(0.0, 2595.0 * np.log10(1.0 + RATE / 1400.0), bins + 2) / 2595.0) - 1.0)
    hertz = np.arange(513) * RATE / 1024
    up = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(np.minimum(up, down), 0.0) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return np.log(np.maximum(magnitude @ filters.T, 1e-5))


def log_mel_error(a: NDArray[Any], b: NDArray[Any], rate: int = RATE) -> float:
    """Mean absolute difference of the log-mels of two waveforms, over their common length."""
    samples = min(a.shape[-1], b.shape[-1])
    return float(np.mean(np.abs(log_mel(a[..., :samples], rate) - log_mel(b[..., :samples], rate))))


def onset_shifts(before: NDArray[Any], after: NDArray[Any], rate: int = RATE) -> tuple[float, ...]:
    """For each onset before, the nearest onset after less it, in ms; infinite where there is none."""
    first, second = (
        find_onsets(*envelope(resample(np.asarray(wave, dtype=np.float64), rate))) for wave in (before, after)
    )
    return tuple(_nearest(second, onset) for onset in first)


def _nearest(onsets: Array, instant: float) -> float:
    """The onset nearest to an instant less it, in ms; infinite without onsets."""
    return 1000.0 * float(min(onsets - instant, key=abs)) if len(onsets) else np.inf
