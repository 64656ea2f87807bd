"""Attributes of a generated video latent, read from its code without decoding it.

The words are those the detectors use on pictures, so that a transformer can be judged before there is a decoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.eval.path import UNKNOWN, Path, find_motion
from ltx_tiny.eval.sight import find_size
from ltx_tiny.eval.stage import camera_move
from ltx_tiny.world.code import CELL, CHANNELS, GAINS, PAIRS, QUARTER, SHAPE_POINTS, TRANSFORM
from ltx_tiny.world.picture import backdrop
from ltx_tiny.world.scene import BACKGROUNDS, COLOURS, SHAPES

Float = NDArray[np.floating[Any]]

NEAR = 0.5  # from which a cell is believed
GONE = 0.25  # share of cells of the whole clip's mean, below which a body is taken to be gone


def read_code(code: Float, fps: float) -> dict[str, str]:
    """Colour, shape, size, motion, background and camera of a code ``[49 or more, f, h, w]`` of a square clip."""
    layers = code[: len(CHANNELS)].astype(np.float64) / GAINS[:, None, None, None]
    said = dict(zip(CHANNELS, layers, strict=True))
    side = CELL * code.shape[-1]
    pan, zoom = _camera(said, side)
    found = {"background": _background(said), "camera": camera_move(pan, zoom)}
    believed = said["near"] > NEAR
    counts = believed.sum(axis=(1, 2))
    seen = counts > max(GONE * counts.mean(), 1)
    if not seen.any():
        return {**found, "colour": UNKNOWN, "shape": UNKNOWN, "size": UNKNOWN, "motion": UNKNOWN}
    point = [_mean(said[f"shape {i}"], believed) for i in range(len(SHAPES) - 1)]
    found["shape"] = SHAPES[int(np.linalg.norm(SHAPE_POINTS - point, axis=1).argmin())]
    colour = (np.array([_mean(said[name], believed) for name in ("red", "green", "blue")]) + 1.3) * 98.0
    found["colour"] = min(COLOURS, key=lambda name: float(np.linalg.norm(np.array(COLOURS[name]) - colour)))
    path = _path(said, believed, side, fps, (pan, zoom))
    found["motion"] = find_motion(path)
    found["size"] = find_size(path, found["motion"])
    return found


def _camera(said: dict[str, Float], side: int) -> tuple[Float, Float]:
    """Place and zoom of the camera, once a latent frame."""
    middle = (np.arange(side // CELL) + 0.5) * CELL / side - 0.5
    zoom = 2.0 ** said["scale"].mean(axis=(1, 2)) * 256.0 / side
    pan = 0.3 * said["stage x"].mean(axis=(1, 2)) - middle.mean() / zoom
    return pan, zoom


def _background(said: dict[str, Float]) -> str:
    """The backdrop whose colours are nearest to those of all cells."""
    x, y = 0.3 * said["stage x"], 0.3 * said["stage y"]
    seen = np.stack([said[f"stage {c}"] - said[f"stage {c} down"] for c in ("red", "green", "blue")], axis=-1)
    shift = QUARTER / 256.0 / 2.0 ** said["scale"]

    def error(name: str) -> float:
        true = [
            backdrop(name, (across.mean(axis=0)).astype(np.float32), (down.mean(axis=1)).astype(np.float32))
            for across, down in zip(x, y - shift, strict=True)
        ]
        return float(np.abs(np.stack(true) / 127.5 - 1.0 - seen).mean())

    return min(BACKGROUNDS, key=error)


def _path(
    said: dict[str, Float], believed: NDArray[np.bool_], side: int, fps: float, camera: tuple[Float, Float]
) -> Path:
    """The body's path, four instants a latent frame, in stage units."""
    inverse = np.linalg.inv(TRANSFORM)
    across, down, there = (
        np.einsum("pk,kfhw->pfhw", inverse, np.stack([said[f"{name} {i}"] for i in range(PAIRS)]))
        for name in ("own x", "own y", "there")
    )
    there = there + 0.5 * (said["near"] - said["there 0"])  # "there 0" is 2a - 1: bring it to a
    half = (np.arange(PAIRS) + 0.5) / PAIRS - 0.5
    turn, tilt = (said[name] + half[:, None, None, None] * said[f"{name} change"] for name in ("cosine", "sine"))
    near = np.maximum(said["near"], NEAR)
    squared = np.maximum((turn / near) ** 2 + (tilt / near) ** 2, 1e-3)
    own_x, own_y = across * 1.5 / near, down * 1.5 / near
    u, v = (own_x * turn - own_y * tilt) / near / squared, (own_x * tilt + own_y * turn) / near / squared  # cells
    cells = (np.arange(side // CELL) + 0.5) * CELL / side - 0.5
    layers = {
        "x": cells - u * CELL / side,
        "y": cells[:, None] - v * CELL / side,
        "radius": CELL / side / np.sqrt(squared),
        "angle": np.arctan2(tilt, turn),
        "there": there / near,
    }
    tracks = {name: np.full((len(believed), PAIRS), np.nan) for name in layers}
    for f in np.flatnonzero(believed.any(axis=(1, 2))):
        for name, layer in layers.items():
            tracks[name][f] = np.median(layer[:, f][:, believed[f]], axis=1)
    later = {name: values[1:].ravel() for name, values in tracks.items()}  # the first frame stands for one instant
    pan, zoom = (np.repeat(values[1:], PAIRS) for values in camera)
    presence = np.nan_to_num(later["there"])
    gone = presence < 0.5
    places = {name: np.where(gone, np.nan, later[name]) for name in ("x", "y", "radius", "angle")}
    return Path(
        x=places["x"] / zoom + pan,
        y=places["y"] / zoom,
        radius=places["radius"] / zoom,
        angle=places["angle"],
        screen_x=places["x"],
        presence=presence,
        fps=fps / 2.0,
    )


def _mean(layer: Float, believed: NDArray[np.bool_]) -> float:
    return float(layer[believed].mean())
