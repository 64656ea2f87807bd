"""The path of a body over time, what motion it is, and when it hits, turns or appears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.motion import FADE

Array = NDArray[np.floating[Any]]

UNKNOWN = "unknown"
MOST_REVERSALS = 4.5  # a second; what bounces turns round about three times


@dataclass(frozen=True)
class Path:
    """A body frame by frame, each ``[F]``: stage units without the camera's motion, nan where nothing is seen."""

    x: Array
    y: Array
    radius: Array
    angle: Array  # radians, clockwise, 0 = mark on top, not unwrapped
    screen_x: Array  # with the camera's motion
    presence: Array  # 0 = gone, 1 = fully there
    fps: float

    @classmethod
    def empty(cls, frames: int, fps: float) -> Path:
        """A path of nothing."""
        none = np.full(frames, np.nan)
        return cls(none, none, none, none, none, np.zeros(frames), fps)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Frames that show the body, ``[F]``."""
        return np.isfinite(self.x)


def find_motion(path: Path) -> str:
    """The one motion that fits a path, or ``UNKNOWN``."""
    seen = path.seen
    gone = path.presence < 0.3
    if gone.sum() >= 2 and seen.sum() >= 4 and not np.all(gone[np.argmax(gone) :]):
        steady = np.ptp(path.x[seen]) < 0.12 and np.ptp(path.y[seen]) < 0.12
        return "blinks" if steady else UNKNOWN
    if seen.mean() < 0.85 or seen.sum() < 5:
        return UNKNOWN
    x, y, radius = (_median3(values[seen]) for values in (path.x, path.y, path.radius))
    turn = np.unwrap(path.angle[seen])
    scale = np.log(np.mean(radius[-4:]) / np.mean(radius[:4]))
    across, down = x[-1] - x[0], y[-1] - y[0]
    wandering = np.abs(np.diff(y)).sum()
    if abs(scale) > 0.26:
        return "grows" if scale > 0 else "shrinks"
    if abs(across) > 0.25:
        return "slides right" if across > 0 else "slides left"
    if np.ptp(y) > 0.1 and wandering > 1.6 * abs(down):
        return "bounces" if _reversals(y) < MOST_REVERSALS * len(y) / path.fps + 1 else UNKNOWN
    if abs(down) > 0.17:
        return "falls" if down > 0 else "rises"
    if abs(turn[-1] - turn[0]) > 1.2 * np.pi:
        return "spins"
    return "stays still" if np.ptp(x) < 0.1 and np.ptp(y) < 0.1 and np.ptp(turn) < 0.5 * np.pi else UNKNOWN


def _reversals(values: Array) -> int:
    """Number of times a track turns round, not counting the smallest steps."""
    steps = np.diff(values)
    signs = np.sign(steps[np.abs(steps) > 0.01])
    return int(np.count_nonzero(np.diff(signs)))


def find_events(path: Path, motion: str) -> Array:
    """The instants, in seconds, at which the motion should sound."""
    if motion == "bounces":
        return _impacts(path)
    if motion == "spins":
        return _turns(path)
    if motion == "blinks":
        return _appearances(path)
    return np.zeros(0)


def _impacts(path: Path) -> Array:
    """Between frames: where two arcs of the same gravity meet at their lowest point."""
    frames = np.flatnonzero(path.seen)
    y = path.y[frames]
    found: list[tuple[int, float]] = []
    for i in range(2, len(y) - 2):
        low = y[max(i - 4, 0) : i + 5]
        if y[i] < low.max() or np.ptp(low) < 0.05 or (found and i - found[-1][0] < 4):
            continue
        around = slice(max(i - 5, 0), i + 6)
        found.append((i, _meeting(frames[around], y[around], float(frames[i]))))
    return np.array([instant for _, instant in found]) / path.fps


def _meeting(t: NDArray[Any], y: Array, guess: float) -> float:
    """The instant c that best fits y = a - b |t - c| + d (t - c)^2."""
    best, instant = np.inf, guess
    for c in guess + np.arange(-1.2, 1.21, 0.05):
        basis = np.stack([np.ones(len(t)), np.abs(t - c), (t - c) ** 2], axis=1)
        fit = np.linalg.lstsq(basis, y, rcond=None)[0]
        error = float(np.sum((basis @ fit - y) ** 2))
        if error < best:
            best, instant = error, float(c)
    return instant


def _turns(path: Path) -> Array:
    """Instants at which the mark passes the top, from the smoothed angle."""
    frames = np.flatnonzero(path.seen)
    turns = np.unwrap(path.angle[frames]) / (2.0 * np.pi)
    smooth = np.array([_local(frames, turns, i) for i in range(len(turns))])
    whole = np.floor(smooth)
    steps = np.flatnonzero(np.diff(whole))
    part = (np.maximum(whole[steps], whole[steps + 1]) - smooth[steps]) / (smooth[steps + 1] - smooth[steps])
    return (frames[steps] + part * (frames[steps + 1] - frames[steps])) / path.fps


def _local(t: NDArray[Any], values: Array, i: int) -> float:
    """A straight line through the seven values around one, at that one."""
    around = slice(max(i - 3, 0), i + 4)
    return float(np.polyval(np.polyfit(t[around] - t[i], values[around], 1), 0.0))


def _appearances(path: Path) -> Array:
    """Instant at which a fading-in body began to appear: half there, less half the fade."""
    p = path.presence
    rises = np.flatnonzero((p[:-1] < 0.5) & (p[1:] >= 0.5))
    half = rises + (0.5 - p[rises]) / (p[rises + 1] - p[rises])
    return half / path.fps - FADE / 2


def _median3(values: Array) -> Array:
    padded = np.pad(values, 1, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), axis=1)
