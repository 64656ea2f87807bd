"""The empty stage behind a clip: which background it is, how the camera moves, and what does not belong to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.motion import GROUND_Y, HORIZON_Y
from ltx_tiny.world.picture import BOARD, VANISHING_Y, backdrop, grid
from ltx_tiny.world.scene import BACKGROUNDS

Array = NDArray[np.floating[Any]]
Pixels = NDArray[np.floating[Any]]

UNKNOWN = "unknown"
WORK_SIDE = 128  # pixels of the shorter side that are looked at
MAX_BACKDROP_ERROR = 40.0  # of 255, over the three channels


def reduce(video: NDArray[np.uint8]) -> Pixels:
    """Means of square blocks ``[F, h, w, 3]``, so that the shorter side is about ``WORK_SIDE``."""
    frames, height, width, _ = video.shape
    block = max(min(height, width) // WORK_SIDE, 1)
    bottom, right = height // block * block, width // block * block
    total = np.zeros((frames, height // block, width // block, 3), dtype=np.float32)
    for row in range(block):
        for column in range(block):
            total += video[:, row:bottom:block, column:right:block]
    return total / block**2


def find_background(pixels: Pixels) -> str:
    """The background whose empty stage is nearest along the border of the picture."""
    height, width = pixels.shape[1:3]
    rim = max(min(height, width) // 12, 1)
    border = np.zeros((height, width), dtype=bool)
    border[:rim] = border[:, :rim] = border[:, -rim:] = True
    seen = np.median(pixels[:: max(len(pixels) // 8, 1)][:, border], axis=0)
    x, y = grid(height, width)
    errors = {
        name: float(np.median(np.linalg.norm(seen - backdrop(name, x, y)[border], axis=-1))) for name in BACKGROUNDS
    }
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < MAX_BACKDROP_ERROR else UNKNOWN


def find_camera(pixels: Pixels) -> tuple[Array, Array]:
    """Place and zoom of the camera, each ``[F]``: the horizon gives the zoom, the floor boards the place."""
    height, width = pixels.shape[1:3]
    side = min(height, width)
    x, y = grid(height, width)
    zoom = _line(np.clip(_horizon(pixels, y) / HORIZON_Y, 0.8, 1.25))
    rows = np.flatnonzero(y > 0.5 - 8.0 / side)
    luminance = pixels[:, rows].mean(axis=-1)
    ripple = luminance / luminance.mean(axis=2, keepdims=True) - 1.0
    depth = (y[rows] / zoom[:, None] - VANISHING_Y) / (GROUND_Y - VANISHING_Y)  # [F, rows]
    across = (x / zoom[:, None])[:, None, :] / depth[:, :, None]
    wave = (ripple * np.hanning(width) * np.exp(-2j * np.pi * across / BOARD)).sum(axis=(1, 2))
    phase = np.unwrap(np.angle(1j * wave))
    pan = _line(phase * BOARD * depth.mean(axis=1) / (2.0 * np.pi))
    return pan, zoom


def camera_move(pan: Array, zoom: Array) -> str:
    """The name of a camera path."""
    shift, scale = pan[-1] - pan[0], np.log(zoom[-1] / zoom[0])
    if abs(scale) > 0.13:
        return "zooms in" if scale > 0 else "zooms out"
    if abs(shift) > 0.1:
        return "pans right" if shift > 0 else "pans left"
    return "still"


def remains(pixels: Pixels, background: str, pan: Array, zoom: Array) -> Pixels:
    """Distance of each pixel from any darkening of the empty stage, 0..441: ``[F, h, w]``."""
    x, y = grid(*pixels.shape[1:3])
    moving = np.ptp(pan) > 1e-3 or np.ptp(zoom) > 1e-3
    out = np.empty(pixels.shape[:3], dtype=np.float32)
    for f, frame in enumerate(pixels):
        if moving or f == 0:
            scale = np.float32(zoom[f])
            empty = backdrop(background, x / scale + np.float32(pan[f]), y / scale)
            power = np.einsum("hwc,hwc->hw", empty, empty)
        dark = np.clip(np.einsum("hwc,hwc->hw", frame, empty) / power, 0.3, 1.03)
        rest = frame - empty * dark[..., None]
        out[f] = np.sqrt(np.einsum("hwc,hwc->hw", rest, rest))
    return out


def _horizon(pixels: Pixels, y: Pixels) -> Array:
    """The height of the horizon at the left and right border, in screen units: ``[F]``."""
    side = min(pixels.shape[1:3])
    rim = max(side // 10, 2)
    band = np.flatnonzero(np.abs(y - HORIZON_Y) < 0.05)
    columns = np.concatenate([pixels[:, band, :rim], pixels[:, band, -rim:]], axis=2)
    wall, floor = columns[:, :2].mean(axis=1, keepdims=True), columns[:, -2:].mean(axis=1, keepdims=True)
    step = floor - wall
    power = np.maximum(np.sum(step * step, axis=-1), 1.0)
    on_floor = np.clip(np.sum((columns - wall) * step, axis=-1) / power, 0.0, 1.0)
    return y[band[-1]] + 0.5 / side - np.median(on_floor.sum(axis=1), axis=1) / side


def _line(values: Array) -> Array:
    """A path with the world's own easing between two ends, fitted robustly to noisy values."""
    u = np.linspace(0.0, 1.0, len(values))
    eased = 0.5 * u + 0.5 * u * u * (3.0 - 2.0 * u)
    basis = np.stack([1.0 - eased, eased], axis=1)
    weight: Array = np.ones(len(values))
    ends: Array = np.zeros(2)
    for _ in range(4):
        ends = np.linalg.lstsq(basis * weight[:, None], values * weight, rcond=None)[0]
        error = np.abs(values - basis @ ends)
        weight = 1.0 / (1.0 + error / (1e-3 + np.median(error)))
    return basis @ ends
