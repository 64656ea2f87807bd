"""A scene as numbers on the grid of a latent: what the video VAE is taught to say and the transformer denoises.

A learned latent is spread over all its channels and every cell describes its own pixels; cells that disagree tear an
outline. Here every cell says what the empty stage looks like and where on it the cell lies, and every cell near the
body says the same few things of it: what it is, how large, turned and coloured, where the cell lies seen from it, and
how deep inside the outline it is. All of it is smooth, redundant and easy to denoise, and a decoder that draws from it
cannot draw half a star. What bends from cell to cell, such as floor boards, is left to the decoder.

A latent frame stands for 8 frames (the first for one). What moves is given as the cosine transform of its means over
four pairs of frames, so that what is still takes one channel and leaves the others near nothing. Of the depth within a
cell the mean and the slopes are given. Whoever says a code is some hundredths to a tenth off in every channel: what is
small and matters, such as the slope of an outline, is said louder (`GAINS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.drawing import INK, PAPER, drawable
from ltx_tiny.world.motion import GROUND_Y, camera, track
from ltx_tiny.world.picture import Window, backdrop, distance
from ltx_tiny.world.scene import COLOURS, SHAPES, Scene

Float = NDArray[np.floating[Any]]

CELL = 32  # pixels
SPAN = 8  # frames of a latent frame
PAIRS = 4  # of these frames
HALVES = np.array([[1, 1, 1, 1], [-1, -1, 1, 1]]) / 4  # [2, 4]: mean of four quarters' colours, and top to bottom
QUARTER = CELL / 4  # pixels from a cell's middle to a quarter's, along either axis
POINTS = (-0.375, -0.125, 0.125, 0.375)  # cells from a cell's middle, along either axis
MARGIN = 1.7  # cells from a body or its shadow to where nothing is said of it
DEEPEST = 1.5  # cells
WIDEST_SHADOW = 1.25  # radii
WAVE_GAINS = ((1.3, 5.0), (8.0, 20.0), (12.0, 25.0), (12.0, 25.0))  # of a cell's depth and its slopes, by wave in time
DEPTHS = {  # whether down, whether across, wave in time: mean and slopes of a cell's depth, and how loud they are
    (down, across, i): gains[down + across]
    for i, gains in enumerate(WAVE_GAINS)
    for down, across in ((0, 0), (0, 1), (1, 0))
}
CHANNELS = (
    *(f"stage {colour}{how}" for colour in ("red", "green", "blue") for how in ("", " down")),
    *("stage x", "stage x change", "stage y", "stage y change", "scale"),
    "near",
    *(f"depth {down}{across} {i}" for down, across, i in DEPTHS),
    *(f"own {axis} {i}" for axis in "xy" for i in range(PAIRS)),
    *("cosine", "sine", "cosine change", "sine change", "x", "y", *(f"there {i}" for i in range(PAIRS))),
    *("red", "green", "blue", *(f"shape {i}" for i in range(4))),
)
LOUDER = {"stage x change": 2.0, "stage y change": 6.0, "scale": 6.0}
LOUDER |= {"sine": 3.0, "cosine change": 3.0, "sine change": 3.0, "there 1": 5.0, "there 2": 8.0, "there 3": 20.0}
LOUDER |= {f"own {axis} {i}": gain for axis in "xy" for i, gain in ((1, 5.0), (2, 20.0), (3, 50.0))}
LOUDER |= {f"depth {down}{across} {i}": gain for (down, across, i), gain in DEPTHS.items()}
LOUDER |= {f"stage {colour} down": 15.0 for colour in ("red", "green", "blue")}
GAINS: Float = np.array([LOUDER.get(name, 1.0) for name in CHANNELS])
DOUBTED = {name: 0.3 for name in CHANNELS if name.startswith("depth") or name.endswith(" down")}
DOUBTED |= dict.fromkeys(("stage x", "stage y", "scale"), 0.04)
DOUBTS: Float = np.array([DOUBTED.get(name, 0.1) for name in CHANNELS])  # how far off a guess may be


def simplex(count: int) -> Float:
    """Points ``[count, count - 1]`` at equal distances, of mean 0 and spread 1 along each axis."""
    centred = np.eye(count) - 1.0 / count
    axes = np.linalg.svd(centred)[2][: count - 1]
    points = centred @ axes.T
    return points / points.std(axis=0)


SHAPE_POINTS = simplex(len(SHAPES))
WAVES = np.cos(np.pi / 4 * np.outer(np.arange(4), np.arange(4) + 0.5))  # of four values: their mean and three waves
TRANSFORM = WAVES * np.array([[0.25], [0.5], [0.5], [0.5]])  # of four pairs of frames
MEAN_AND_SLOPE = WAVES[:2] / np.sum(WAVES[:2] ** 2, axis=1, keepdims=True) ** 0.5 / 2  # [2, 4], of a cell's points


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
    drawing: bool = False,
) -> NDArray[np.float32]:
    """The code ``[len(CHANNELS), 1 + (F - 1) / 8, h, w]`` of a clip or of a window of it; arguments as ``draw``.

    ``frames`` must be ``8k + 1``. The code of a drawing says a black stage and a white body.
    """
    grid, scene = Grid.of(height, width, window), drawable(scene) if drawing else scene
    instants = np.maximum(np.arange(-SPAN + 1, frames), 0).reshape(-1, SPAN)  # of each latent frame
    t = start + instants / fps
    layers = np.concatenate([_stage(scene, grid, t), _body(scene, grid, t)])
    code: NDArray[np.float32] = (layers * GAINS[:, None, None, None]).astype(np.float32)
    if drawing:
        near = code[CHANNELS.index("near")]
        for number, name in enumerate(CHANNELS):
            if name in ("red", "green", "blue"):
                code[number] = (INK / 98.0 - 1.3) * near
            elif name.startswith(("stage red", "stage green", "stage blue")):
                code[number] = PAPER / 127.5 - 1.0 if name.count(" ") == 1 else 0.0
    return code


def _stage(scene: Scene, grid: Grid, t: Float) -> Float:
    """The empty stage at every cell, the cell's place on it and its scale: ``[11, f, h, w]``."""
    side = min(grid.height, grid.width)
    view = camera(scene, t)  # [f, 8]
    shape = (len(t), len(grid.rows), len(grid.columns))
    x, y = (grid.columns - grid.width / 2) / side, (grid.rows - grid.height / 2) / side
    across = x / view.zoom[..., None] + view.x[..., None]  # [f, 8, w]
    down = y / view.zoom[..., None]
    zoom = view.zoom.mean(axis=1)[:, None]
    quarters = np.array([-QUARTER, QUARTER]) / side / zoom[..., None]
    columns, rows = (values.mean(axis=1)[..., None] + quarters for values in (across, down))  # [f, w or h, 2]
    seen = [
        backdrop(scene.background, c.ravel().astype(np.float32), r.ravel().astype(np.float32))
        for c, r in zip(columns, rows, strict=True)
    ]
    colours = np.stack(seen).reshape(len(t), shape[1], 2, shape[2], 2, 3) / 127.5 - 1.0
    quartered = colours.transpose(5, 2, 4, 0, 1, 3).reshape(3, 4, *shape)
    layers = list(np.einsum("sq,cq...->cs...", HALVES, quartered).reshape(6, *shape))
    for values, axis in ((across, 1), (down, 2)):
        mean, change = values.mean(axis=1) / 0.3, (values[:, -1] - values[:, 0]) / 0.05
        layers += [np.broadcast_to(np.expand_dims(layer, axis), shape) for layer in (mean, change)]
    scale = np.log2(side * zoom / 256.0)[..., None]
    return np.stack([*layers, np.broadcast_to(scale, shape)])


def _body(scene: Scene, grid: Grid, t: Float) -> Float:
    """Channels that tell of the body in the cells near it: ``[38, f, h, w]``."""
    body, view, side = scene.body, camera(scene, t), min(grid.height, grid.width)
    path, zoom = track(scene, body, t), view.zoom * side
    x, y = (path.x - view.x) * zoom + grid.width / 2, path.y * zoom + grid.height / 2  # pixels, [f, 8]
    ground = GROUND_Y * zoom + grid.height / 2
    radius, cos, sin = (
        values[..., None, None].astype(np.float32)
        for values in (path.radius * zoom / CELL, np.cos(path.angle), np.sin(path.angle))
    )
    u = ((grid.columns - x[..., None, None]) / CELL).astype(np.float32)  # [f, 8, 1, w]
    v, foot = (((grid.rows[:, None] - height[..., None, None]) / CELL).astype(np.float32) for height in (y, ground))
    distance_to_it = np.hypot(u, np.clip(0.0, foot, v))  # to the line from its centre to its shadow
    reach = WIDEST_SHADOW * radius + MARGIN
    there = np.minimum(3.0 * path.alpha.max(axis=1), 1.0)[:, None, None]
    near = np.clip(reach - distance_to_it, 0.0, 1.0).max(axis=1) * there  # [f, h, w]

    def own(right: float, below: float) -> tuple[Float, Float]:
        """A point of every cell as the body sees it: upright, in radii."""
        across, down = np.broadcast_arrays((u + right) / radius, (v + below) / radius)
        return across * cos + down * sin, down * cos - across * sin

    said: list[Float] = [np.ones_like(near)]
    points = [
        DEEPEST - np.clip(distance(body.shape, *own(right, below)) * radius, -DEEPEST, DEEPEST)
        for below, right in product(POINTS, POINTS)
    ]
    depths = np.stack([_pairs(depth) for depth in points], axis=1).reshape(PAIRS, 4, 4, *near.shape)
    waves = np.einsum("dr,ac,irc...->dai...", MEAN_AND_SLOPE, MEAN_AND_SLOPE, depths)
    said += [waves[wave] for wave in DEPTHS]
    said += [layer / 1.5 for values in own(0.0, 0.0) for layer in _pairs(values)]
    for values in (_mean, _change):
        said += [values(cos / radius), values(sin / radius)]
    said += [_mean(u) / 2, _mean(v) / 2]
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
    means = values.reshape(len(values), PAIRS, 2, *values.shape[2:]).mean(axis=2)
    return np.einsum("kp,fp...->kf...", TRANSFORM, means)
