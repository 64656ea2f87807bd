"""Motion of a scene: the tracks of the bodies, the camera, and the instants that make a sound.

``track`` and ``events`` are what the pictures and the sounds are both made from, so they agree by construction; they
are also what the eval's detectors are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.scene import RADIUS, Body, Scene

Array = NDArray[np.floating[Any]]

GROUND_Y = 0.38  # where things stand
GRAVITY = 3.0  # per second squared
SLIDE = 0.17  # from the middle to either end
CLIMB = 0.25  # how far things rise or fall
HORIZON_Y = 0.15  # where the wall meets the floor
BLINK_ON = 0.55  # share of the period a blinking body can be seen
FADE = 0.08  # seconds a blinking body takes to appear or go
PAN = 0.1  # camera, from the middle to either end
ZOOM = 1.14  # camera, at its nearest; farthest is the inverse
FOOT = {
    "ball": 1.0,
    "box": 0.86,
    "triangle": 0.68,
    "star": 0.9338,
    "ring": 1.0,
}  # reach below the centre, in radii


@dataclass(frozen=True)
class Track:
    """A body over time, in stage units; each array is ``[T]``."""

    x: Array
    y: Array  # of the centre
    radius: Array
    angle: Array  # radians, clockwise
    alpha: Array  # 0 = gone, 1 = there


@dataclass(frozen=True)
class Camera:
    """Track of the camera; each array is ``[T]``. Screen = (stage - (x, 0)) * zoom."""

    x: Array
    zoom: Array


def progress(scene: Scene, t: Array) -> Array:
    """Progress of a one-way motion, 0 to 1, with a gentle start and end; it holds afterwards."""
    u = np.clip(t / scene.seconds, 0.0, 1.0)
    return 0.5 * u + 0.5 * u * u * (3.0 - 2.0 * u)


def track(scene: Scene, body: Body, t: Array) -> Track:
    """The body at the times ``t`` ``[T]``."""
    t = np.asarray(t, dtype=np.float64)
    p = progress(scene, t)
    x = np.full_like(t, body.x)
    angle = np.full_like(t, body.tilt)
    alpha = np.ones_like(t)
    radius = np.full_like(t, RADIUS[body.size])
    height: Array = np.zeros_like(t)
    cycles = t / body.period + body.phase
    if body.motion == "bounces":
        u = cycles % 1.0
        height = GRAVITY / 2 * body.period**2 * u * (1.0 - u)
    elif body.motion in ("slides left", "slides right"):
        x = body.x + SLIDE * (2.0 * p - 1.0) * (1 if body.motion == "slides right" else -1)
    elif body.motion == "rises":
        height = 0.02 + CLIMB * p
    elif body.motion == "falls":
        height = 0.02 + CLIMB * (1.0 - p)
    elif body.motion == "spins":
        height = height + 0.1 + body.y
        angle = 2.0 * np.pi * cycles
    elif body.motion in ("grows", "shrinks"):
        bigger = p if body.motion == "grows" else 1.0 - p
        radius = RADIUS["small"] + (RADIUS["large"] - RADIUS["small"]) * bigger
    elif body.motion == "blinks":
        height = height + 0.04 + body.y
        alpha = _blink((cycles % 1.0) * body.period, BLINK_ON * body.period)
    y = GROUND_Y - radius * FOOT[body.shape] - height
    return Track(x, y, radius, angle, alpha)


def _blink(since: Array, on: float) -> Array:
    """1 while on, with linear fades that start at 0 and at ``on``."""
    rising = np.clip(since / FADE, 0.0, 1.0)
    falling = np.clip((on - since) / FADE + 1.0, 0.0, 1.0)
    return np.minimum(rising, falling)


def camera(scene: Scene, t: Array) -> Camera:
    """The camera at the times ``t`` ``[T]``."""
    t = np.asarray(t, dtype=np.float64)
    swing = 2.0 * progress(scene, t) - 1.0
    x, zoom = np.zeros_like(t), np.ones_like(t)
    if scene.camera.startswith("pans"):
        x = PAN * swing * (1 if scene.camera == "pans right" else -1)
    elif scene.camera.startswith("zooms"):
        zoom = ZOOM ** (swing if scene.camera == "zooms in" else -swing)
    return Camera(x, zoom)


def events(body: Body, start: float, stop: float) -> Array:
    """The instants in [start, stop) that make a sound: impacts, turns (the mark at the top) or appearances."""
    if body.motion not in ("bounces", "spins", "blinks"):
        return np.zeros(0)
    first = np.ceil(start / body.period + body.phase)
    last = np.ceil(stop / body.period + body.phase)
    return (np.arange(first, last) - body.phase) * body.period
