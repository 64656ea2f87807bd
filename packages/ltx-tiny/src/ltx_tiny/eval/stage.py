"""The empty stage behind a clip: which background it is, how the camera moves, and what does not belong to it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.motion import HORIZON_Y
from ltx_tiny.world.picture import backdrop, grid
from ltx_tiny.world.scene import BACKGROUNDS

Array = NDArray[np.floating[Any]]
Pixels = NDArray[np.floating[Any]]

UNKNOWN = "unknown"
PANS = np.linspace(-0.15, 0.15, 31)  # places of the camera that are told apart
ZOOMS = np.exp(np.linspace(-0.21, 0.21, 29))
OTHER = 40.0  # of 255: what differs more is not the wall
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


def find_camera(pixels: Pixels, background: str) -> tuple[Array, Array]:
    """Place and zoom of the camera, each ``[F]``: from where the empty wall looks most like the one seen."""
    height, width = pixels.shape[1:3]
    places, walls = _walls(background, height, width)
    looked_at = np.arange(0, len(pixels), max(min(len(pixels) // 8, 4), 1))
    errors = [np.minimum(np.abs(walls - wall), OTHER).mean(axis=(1, 2, 3)) for wall in _wall(pixels[looked_at])]
    pan, zoom = places[np.argmin(errors, axis=1)].T
    return _line(pan, looked_at, len(pixels)), _line(zoom, looked_at, len(pixels))


@cache
def _walls(background: str, height: int, width: int) -> tuple[Array, Pixels]:
    """Places and zooms of a camera, ``[n, 2]``, and what it sees of the empty wall from there."""
    x, y = grid(height, width)
    places = np.array([(pan, zoom) for pan in PANS for zoom in ZOOMS], dtype=np.float32)
    seen = [_wall(backdrop(background, x / zoom + pan, y / zoom)[None]) for pan, zoom in places]
    return places, np.concatenate(seen)


def _wall(pixels: Pixels) -> Pixels:
    """Means of blocks of 2 x 8 pixels from the top to a little below the horizon: ``[F, rows, columns, 3]``."""
    frames, height, width, _ = pixels.shape
    rows = int(height / 2 + 1.5 * HORIZON_Y * min(height, width)) // 2
    cut = pixels[:, : 2 * rows, : width // 8 * 8]
    return cut.reshape(frames, rows, 2, width // 8, 8, 3).mean(axis=(2, 4))


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


def _line(values: Array, at: NDArray[np.intp], count: int) -> Array:
    """A path ``[count]`` with the world's own easing between two ends, fitted robustly to noisy values at frames."""
    u = np.arange(count) / max(count - 1, 1)
    eased = 0.5 * u + 0.5 * u * u * (3.0 - 2.0 * u)
    whole = np.stack([1.0 - eased, eased], axis=1)
    basis = whole[at]
    weight: Array = np.ones(len(values))
    ends: Array = np.zeros(2)
    for _ in range(4):
        ends = np.linalg.lstsq(basis * weight[:, None], values * weight, rcond=None)[0]
        error = np.abs(values - basis @ ends)
        weight = 1.0 / (1.0 + error / (1e-3 + np.median(error)))
    return whole @ ends
