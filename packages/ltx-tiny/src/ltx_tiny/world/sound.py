"""The sound of a scene: clean partials, tied to what the body does and placed left or right by where it is on screen.

Knocks, ticks and beeps start at the instants of ``motion.events``; hums, glides and swells follow the track.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.motion import camera, events, progress, track
from ltx_tiny.world.scene import RADIUS, Body, Scene

Wave = NDArray[np.float32]

SAMPLE_RATE = 16000  # Hz
PITCH_HZ = {"low": 200.0, "middle": 450.0, "high": 1000.0}
KNOCK_BY_SIZE = {"small": 1.15, "large": 0.87}
HUM_HZ = {"small": 165.0, "large": 130.0}
SWELL_HZ = 330.0
GLIDE_HZ = (300.0, 1200.0)  # at the lowest and the highest place
PAN_WIDTH = 1.7  # how far the sound moves when the body crosses the screen; 1 = hard left to hard right
HUM_WIDTH = 1.47  # times as wide is the hum of what slides, which then goes from side to side
SWELL_POWER = 4.4  # what grows or shrinks is as loud as its size to this power
TAIL = 0.5  # seconds after which a pulse is silent
KNOCKS = {  # partials of an impact: ratio to the pitch, strength, seconds to fall by 1/e
    "ball": ((1.0, 1.0, 0.06), (2.0, 0.25, 0.035)),
    "box": ((1.0, 1.0, 0.045), (2.6, 0.45, 0.03), (4.1, 0.15, 0.02)),
    "triangle": ((1.0, 1.0, 0.075), (2.76, 0.45, 0.07)),
    "star": ((1.0, 1.0, 0.07), (2.0, 0.45, 0.06), (3.0, 0.3, 0.045)),
    "ring": ((1.0, 1.0, 0.065), (3.0, 0.45, 0.05)),
}
TICK = ((2000.0, 1.0, 0.018), (3100.0, 0.5, 0.012))  # Hz, strength, seconds
BEEP = (0.14, 0.02)  # seconds held, seconds to fade
HARMONICS = {  # strengths of the harmonics of what sounds on
    "hum": (1.0, 0.6, 0.4, 0.2),
    "glide": (1.0, 0.25),
    "swell": (1.0, 0.45, 0.2),
    "tone": (1.0, 0.2, 0.08),
    "beep": (1.0, 0.2),
}
LOUDNESS = {"knock": 0.5, "tick": 0.4, "beep": 0.3, "hum": 0.25, "glide": 0.28, "swell": 0.4, "tone": 0.25}


def play(scene: Scene, seconds: float, rate: int = SAMPLE_RATE) -> Wave:
    """The sound of a scene: float32 ``[2, S]`` in [-1, 1] at ``rate`` Hz, left channel first."""
    t = np.arange(round(seconds * rate)) / rate
    out = np.zeros((2, len(t)))
    view = camera(scene, t)
    for body in scene.bodies:
        path = track(scene, body, t)
        width = PAN_WIDTH * (HUM_WIDTH if body.motion.startswith("slides") else 1.0)
        left_right = np.clip((path.x - view.x) * view.zoom * width + 0.5, 0.0, 1.0) * (np.pi / 2)
        out += _voice(scene, body, t) * np.stack([np.cos(left_right), np.sin(left_right)])
    return np.clip(out / np.sqrt(max(len(scene.bodies), 1)), -1.0, 1.0).astype(np.float32)


def _voice(scene: Scene, body: Body, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sound of one body, before it is placed: ``[S]``."""
    if body.motion in ("bounces", "spins", "blinks"):
        out = np.zeros_like(t)
        if len(t):
            for instant in events(body, -TAIL, float(t[-1])):
                first, last = np.searchsorted(t, (instant, instant + TAIL))
                out[first:last] += _pulse(body, t[first:last] - instant)
        return out
    rising = np.minimum(t / 0.02, 1.0)
    if body.motion.startswith("slides"):
        return LOUDNESS["hum"] * rising * _still_after(scene, t) * _steady(HUM_HZ[body.size], t, "hum")
    if body.motion in ("rises", "falls"):
        height = progress(scene, t) if body.motion == "rises" else 1.0 - progress(scene, t)
        pitch = GLIDE_HZ[0] * (GLIDE_HZ[1] / GLIDE_HZ[0]) ** height
        turns = np.cumsum(pitch) * (t[1] - t[0] if len(t) > 1 else 0.0)
        return LOUDNESS["glide"] * rising * _still_after(scene, t) * _harmonics(turns, "glide")
    if body.motion in ("grows", "shrinks"):
        size = track(scene, body, t).radius / RADIUS["large"]
        return LOUDNESS["swell"] * rising * size**SWELL_POWER * _steady(SWELL_HZ, t, "swell")
    if body.pitch is None:
        return np.zeros_like(t)
    return LOUDNESS["tone"] * rising * _steady(PITCH_HZ[body.pitch], t, "tone")


def _pulse(body: Body, since: NDArray[np.float64]) -> NDArray[np.float64]:
    """One knock, tick or beep at times since it began."""
    attack = np.minimum(since / 0.002, 1.0)
    if body.motion == "blinks":
        held, fade = BEEP
        shape = np.minimum(since / 0.005, 1.0) * np.clip(1.0 - (since - held) / fade, 0.0, 1.0)
        return LOUDNESS["beep"] * shape * _steady(PITCH_HZ[body.pitch or "middle"], since, "beep")
    if body.motion == "spins":
        return LOUDNESS["tick"] * attack * _partials(TICK, 1.0, since)
    pitch = PITCH_HZ[body.pitch or "middle"] * KNOCK_BY_SIZE[body.size]
    return LOUDNESS["knock"] * attack * _partials(KNOCKS[body.shape], pitch, since)


def _partials(
    partials: tuple[tuple[float, float, float], ...], pitch: float, t: NDArray[np.float64]
) -> NDArray[np.float64]:
    waves = [level * np.exp(-t / fall) * np.sin(2 * np.pi * ratio * pitch * t) for ratio, level, fall in partials]
    return np.sum(waves, axis=0) / sum(level for _, level, _ in partials)


def _steady(pitch: float, t: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    return _harmonics(pitch * t, kind)


def _harmonics(turns: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """A sum of harmonics whose fundamental has made ``turns`` cycles."""
    levels = HARMONICS[kind]
    waves = [level * np.sin(2 * np.pi * (k + 1) * turns) for k, level in enumerate(levels)]
    return np.sum(waves, axis=0) / sum(levels)


def _still_after(scene: Scene, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 while a one-way motion lasts, then a short fade to 0."""
    return np.clip(1.0 - (t - scene.seconds) / 0.05, 0.0, 1.0)
