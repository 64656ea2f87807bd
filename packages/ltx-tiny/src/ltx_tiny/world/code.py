"""A scene as numbers on the grid of a latent: what the video VAE is taught to say and the transformer denoises.

A learned latent is spread over all its channels and every cell describes its own pixels; cells that disagree tear an
outline. Here every cell near the body says the same few things of it (where it is from here, how large, turned, lit and
coloured it is), and every cell says where on the stage it lies. All of it is smooth, redundant and easy to denoise, and
a decoder that draws from it cannot draw half a star.

A latent frame stands for 8 frames (the first for one). What moves is given as the cosine transform of its means over
four pairs of frames, so that what is still takes one channel and leaves the others near nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.motion import GROUND_Y, camera, track
from ltx_tiny.world.picture import Window
from ltx_tiny.world.scene import BACKGROUNDS, COLOURS, SHAPES, Scene

Float = NDArray[np.floating[Any]]

CELL = 32  # pixels
SPAN = 8  # frames of a latent frame
MARGIN = 1.7  # cells from a body or its shadow to where nothing is said of it
WIDEST_SHADOW = 1.25  # radii
CHANNELS = (
    *(f"background {i}" for i in range(5)),
    *("stage x", "stage x change", "stage y", "stage y change", "scale"),
    "near",
    *("x", "x change", *(f"y {i}" for i in range(4)), "radius", "radius change"),
    *("cosine", "sine", "cosine change", "sine change", *(f"there {i}" for i in range(4))),
    *("red", "green", "blue", *(f"shape {i}" for i in range(4))),
)


def simplex(count: int) -> Float:
    """Points ``[count, count - 1]`` at equal distances, of mean 0 and spread 1 along each axis."""
    centred = np.eye(count) - 1.0 / count
    axes = np.linalg.svd(centred)[2][: count - 1]
    points = centred @ axes.T
    return points / points.std(axis=0)


BACKGROUND_POINTS, SHAPE_POINTS = simplex(len(BACKGROUNDS)), simplex(len(SHAPES))
PAIRS = np.cos(np.pi / 4 * np.outer(np.arange(4), np.arange(4) + 0.5)) * np.array([[0.25], [0.5], [0.5], [0.5]])


@dataclass(frozen=True)
class Grid:
    """The cells of a window of a picture: their centres in pixels, and the picture's size."""

    columns: Float  # [w]
    rows: Float  # [h]
    height: int
    width: int

    @classmethod
    def of(cls, height: int, width: int, window: Window | None = None) -> Grid:
        """The grid whose first cell begins at the window's corner."""
        window = window or Window(0, 0, height, width)
        columns = window.left + CELL * (np.arange(window.width // CELL) + 0.5)
        rows = window.top + CELL * (np.arange(window.height // CELL) + 0.5)
        return cls(columns, rows, height, width)


def scene_code(
    scene: Scene,
    frames: int,
    height: int,
    width: int,
    fps: float,
    start: float = 0.0,
    window: Window | None = None,
) -> NDArray[np.float32]:
    """The code ``[len(CHANNELS), 1 + (F - 1) / 8, h, w]`` of a clip or of a window of it; arguments as ``draw``.

    ``frames`` must be ``8k + 1``.
    """
    grid = Grid.of(height, width, window)
    instants = np.maximum(np.arange(-SPAN + 1, frames), 0).reshape(-1, SPAN)  # of each latent frame
    t = start + instants / fps
    stage = _stage(scene, grid, t)
    body = _body(scene, grid, t)
    return np.concatenate([stage, body]).astype(np.float32)


def _stage(scene: Scene, grid: Grid, t: Float) -> Float:
    """Background, place on the stage and scale of every cell: ``[10, f, h, w]``."""
    side = min(grid.height, grid.width)
    view = camera(scene, t)  # [f, 8]
    x, y = (grid.columns - grid.width / 2) / side, (grid.rows - grid.height / 2) / side
    shape = (len(t), len(y), len(x))
    across = x / view.zoom[..., None] + view.x[..., None]  # [f, 8, w]
    down = y / view.zoom[..., None]
    background = BACKGROUND_POINTS[BACKGROUNDS.index(scene.background)]
    layers = [np.broadcast_to(value, shape) for value in background]
    for values, axis in ((across, 1), (down, 2)):
        mean, change = values.mean(axis=1) / 0.3, (values[:, -1] - values[:, 0]) / 0.05
        layers += [np.broadcast_to(np.expand_dims(layer, axis), shape) for layer in (mean, change)]
    scale = np.log2(side * view.zoom.mean(axis=1) / 256.0)[:, None, None]
    return np.stack([*layers, np.broadcast_to(scale, shape)])


def _body(scene: Scene, grid: Grid, t: Float) -> Float:
    """What is said of the body by the cells near it: ``[24, f, h, w]``."""
    body, view, side = scene.body, camera(scene, t), min(grid.height, grid.width)
    path = track(scene, body, t)
    x = (path.x - view.x) * view.zoom * side + grid.width / 2  # pixels, [f, 8]
    y, ground = ((height * view.zoom * side + grid.height / 2) for height in (path.y, np.full_like(path.y, GROUND_Y)))
    radius = path.radius * view.zoom * side / CELL
    u = (x[..., None, None] - grid.columns) / CELL  # [f, 8, 1, w]
    v, foot = ((values[..., None, None] - grid.rows[:, None]) / CELL for values in (y, ground))  # [f, 8, h, 1]
    distance = np.hypot(u, np.clip(0.0, v, foot))  # to the line from the centre to the shadow
    reach = WIDEST_SHADOW * radius[..., None, None] + MARGIN
    there = np.minimum(3.0 * path.alpha.max(axis=1), 1.0)[:, None, None]
    near = np.clip(reach - distance, 0.0, 1.0).max(axis=1) * there  # [f, h, w]
    angles = np.stack([np.cos(path.angle), np.sin(path.angle)])[:, :, [0, -1]]  # [2, f, 2]
    spread = np.ones_like(near)
    said: list[Float] = [spread, _mean(u) / 2, _change(u)]
    said += [layer / (2 if i == 0 else 1) for i, layer in enumerate(_pairs(v))]
    said += [(_mean(radius[..., None, None]) - 1.3) * 1.5, _change(radius[..., None, None]) * 4]
    said += [value[:, None, None] for value in (*angles.mean(axis=2), *((angles[..., 1] - angles[..., 0]) / 2))]
    alpha = _pairs(path.alpha[..., None, None])
    said += [2 * alpha[0] - 1, *alpha[1:]]
    said += list(np.array(COLOURS[body.colour]) / 98.0 - 1.3)
    said += list(SHAPE_POINTS[SHAPES.index(body.shape)])
    return np.stack([np.broadcast_to(layer, near.shape) * near for layer in said])


def _mean(values: Float) -> Float:
    return values.mean(axis=1)


def _change(values: Float) -> Float:
    return values[:, -1] - values[:, 0]


def _pairs(values: Float) -> Float:
    """The cosine transform ``[4, f, ...]`` of the means over pairs of ``[f, 8, ...]``; the first is the mean."""
    means = values.reshape(len(values), 4, 2, *values.shape[2:]).mean(axis=2)
    return np.einsum("kp,fp...->kf...", PAIRS, means)
