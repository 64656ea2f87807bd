"""Sight of one body in a clip: its place, size, shape, colour and turning over time, and its motion as a word.

The stage is known, so the empty stage is fitted to each frame and what remains is the body. Nothing is learned; every
number comes from the definition of the world or from the geometry of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.eval.outline import outline_fits
from ltx_tiny.eval.path import Path, find_events, find_motion
from ltx_tiny.eval.stage import UNKNOWN, Array, Pixels, camera_move, find_background, find_camera, reduce, remains
from ltx_tiny.world.picture import MARK, distance, grid
from ltx_tiny.world.scene import COLOURS, RADIUS, SHAPES

CONTRAST = 32.0  # least distance of a body from the stage, 0..441
SMALLEST = 0.006  # of the squared side of the picture
CROP = 48  # samples across a body's crop
REACH = 1.5  # half the width of the crop, in radii of the disc of the same area
MAX_COLOUR_ERROR = 50.0
MAX_SHAPE_ERROR = 0.27
WHOLE = 0.9  # presence from which an outline is looked at


@dataclass(frozen=True)
class Sight:
    """A body that was seen; words are ``UNKNOWN`` where nothing fits."""

    path: Path
    background: str = UNKNOWN
    camera: str = UNKNOWN
    colour: str = UNKNOWN
    shape: str = UNKNOWN
    size: str = UNKNOWN
    motion: str = UNKNOWN
    outline: Array = field(
        default_factory=lambda: np.zeros(0)
    )  # overlap with the best-fitting true shape, of every other frame
    events: Array = field(default_factory=lambda: np.zeros(0))  # seconds: impacts, turns or appearances


@dataclass(frozen=True)
class _Blob:
    """The rest of each frame without its stage; screen units, each ``[F]``."""

    x: Array
    y: Array
    radius: Array  # of the disc of the same area
    presence: Array  # 0 = gone, 1 = fully there
    seen: NDArray[np.bool_]
    contrast: float


def look(video: NDArray[np.uint8], fps: float) -> Sight:
    """Look at a clip, uint8 ``[F, H, W, 3]``."""
    pixels = reduce(video)
    nothing = Path.empty(len(video), fps)
    background = find_background(pixels)
    if background == UNKNOWN:
        return Sight(nothing)
    pan, zoom = find_camera(pixels, background)
    move = camera_move(pan, zoom)
    rest = remains(pixels, background, pan, zoom)
    blob = _locate(rest)
    if blob.seen.sum() < 3:
        return Sight(nothing, background, move)
    crops = _crops(np.concatenate([pixels, rest[..., None]], axis=-1)[blob.seen], blob)
    colour, cover = crops[..., :3], np.clip(crops[..., 3] / blob.contrast, 0.0, 1.0)
    shape = find_shape(_firm(cover))
    taken = shape if shape != UNKNOWN else "ball"
    radius = blob.radius / zoom / np.sqrt(_features(taken)[1] / np.pi)
    path = Path(
        x=_where(blob.seen, blob.x / zoom + pan),
        y=_where(blob.seen, blob.y / zoom),
        radius=_where(blob.seen, radius),
        angle=_where(blob.seen, _turning(colour, _firm(cover), taken), scatter=True),
        screen_x=_where(blob.seen, blob.x),
        presence=blob.presence,
        fps=fps,
    )
    motion = find_motion(path)
    size = find_size(path, motion)
    outline = find_outline(_firm(cover)[blob.presence[blob.seen] > WHOLE][::2])
    painted = find_colour(colour, cover)
    return Sight(path, background, move, painted, shape, size, motion, outline, find_events(path, motion))


def _locate(rest: Pixels) -> _Blob:
    """Find the one compact thing among what remains."""
    side = min(rest.shape[1:])
    x, y = grid(*rest.shape[1:])
    few = max(side * side // 270, 8)
    brightest = np.partition(rest.reshape(len(rest), -1), -few, axis=1)[:, -few:].mean(axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(brightest, 8, mode="edge"), 17)
    presence = brightest / np.maximum(windows.max(axis=1), 1.5 * CONTRAST)
    strong = rest[presence > 0.7]
    strong = strong[strong > CONTRAST]
    contrast = float(np.median(strong)) if len(strong) else 255.0
    cover = np.clip(rest / contrast, 0.0, 1.0)
    # The least of three rows removes the thin line that a slightly misplaced horizon leaves.
    body = np.pad(np.minimum(np.minimum(cover[:, :-2], cover[:, 1:-1]), cover[:, 2:]), ((0, 0), (1, 1), (0, 0)))
    near = body > 0.5
    for _ in range(4):
        count = np.maximum(near.sum(axis=(1, 2)), 1)
        cx, cy = near.sum(axis=1) @ x / count, near.sum(axis=2) @ y / count
        squared = (x - cx[:, None])[:, None, :] ** 2 + (y - cy[:, None])[:, :, None] ** 2
        spread = np.maximum((near * squared).sum(axis=(1, 2)) / count, 0.03**2)
        near = (body > 0.5) & (squared < 5.5 * spread[:, None, None])
    whole = np.where(squared < 6.5 * spread[:, None, None], _firm(cover), 0.0)
    area = np.maximum(whole.sum(axis=(1, 2)), 1e-9)
    filled = _fill(whole)
    total = np.maximum(filled.sum(axis=(1, 2)), 1e-9)
    cx, cy = filled.sum(axis=1) @ x / total, filled.sum(axis=2) @ y / total
    seen = (presence > 0.55) & (count / side**2 > SMALLEST)
    return _Blob(cx, cy, np.sqrt(area / np.pi) / side, presence, seen, contrast)


def _crops(layers: Pixels, blob: _Blob) -> Pixels:
    """Each seen body at the same size, upright as filmed: ``[N, CROP, CROP, C]`` by bilinear sampling."""
    height, width = layers.shape[1:3]
    side = min(height, width)
    offsets = _crop_axis() * blob.radius[blob.seen, None]
    columns = np.clip((blob.x[blob.seen, None] + offsets) * side + width / 2 - 0.5, 0.0, width - 1.001)
    rows = np.clip((blob.y[blob.seen, None] + offsets) * side + height / 2 - 0.5, 0.0, height - 1.001)
    column, row = columns.astype(int), rows.astype(int)
    u = (columns - column)[:, None, :, None].astype(np.float32)
    v = (rows - row)[:, :, None, None].astype(np.float32)
    frame = np.arange(len(layers))[:, None, None]
    row, column = row[:, :, None], column[:, None, :]
    above = layers[frame, row, column] * (1 - u) + layers[frame, row, column + 1] * u
    below = layers[frame, row + 1, column] * (1 - u) + layers[frame, row + 1, column + 1] * u
    return above * (1 - v) + below * v


def find_shape(cover: Pixels) -> str:
    """The shape whose angular moments and hole are nearest to those of the covers ``[N, CROP, CROP]``."""
    seen = np.median(_moments(cover), axis=0)
    errors = {shape: float(np.linalg.norm(seen - _features(shape)[0])) for shape in SHAPES}
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < MAX_SHAPE_ERROR else UNKNOWN


def find_outline(cover: Pixels) -> Array:
    """Overlap of covers ``[N, CROP, CROP]`` with the one true shape that fits them best: ``[N]``."""
    if not len(cover):
        return np.zeros(0)
    few = cover[:: max(len(cover) // 3, 1)]

    def fits(covers: Pixels, shape: str) -> Array:
        return outline_fits(covers if shape == "ring" else _fill(covers), _crop_axis(), shape)

    return fits(cover, max(SHAPES, key=lambda shape: float(np.median(fits(few, shape)))))


def find_colour(colour: Pixels, cover: Pixels) -> str:
    """A histogram of the nearest palette colours, up to shading, over the inside of the body."""
    inside = colour[cover > 0.9]
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    shading = np.clip(inside @ palette.T / np.sum(palette**2, axis=1), 0.5, 1.15)
    errors = np.linalg.norm(inside[:, None] - np.minimum(shading[..., None] * palette, 255.0), axis=-1)
    votes = np.bincount(errors.argmin(axis=1)[errors.min(axis=1) < MAX_COLOUR_ERROR], minlength=len(palette))
    return list(COLOURS)[int(votes.argmax())] if votes.max() > 0.5 * len(inside) else UNKNOWN


def find_size(path: Path, motion: str) -> str:
    """Small or large, at the start for what grows or shrinks."""
    radii = path.radius[np.isfinite(path.radius)]
    radius = float(np.median(radii[:5] if motion in ("grows", "shrinks") else radii))
    return "small" if radius < np.sqrt(RADIUS["small"] * RADIUS["large"]) else "large"


def _turning(colour: Pixels, cover: Pixels, shape: str) -> Array:
    """The direction of the pale mark in each crop, radians clockwise from the top.

    Highlights and reflections make the body paler on one side; where the paleness goes round, it is measured from the
    centre of its circle, so that they do not count.
    """
    body = _fill(cover)
    whiteness = colour.min(axis=-1)
    plain = float(np.median(whiteness[cover > 0.9]))
    pale = body * (whiteness - plain) / (235.0 - plain)
    axis = _crop_axis()
    weight = body.sum(axis=(1, 2)) + 1e-6
    across, down = pale.sum(axis=1) @ axis / weight, pale.sum(axis=2) @ axis / weight
    basis = np.stack([2.0 * across, 2.0 * down, np.ones_like(across)], axis=1)
    centre_x, centre_y, rest = np.linalg.lstsq(basis, across**2 + down**2, rcond=None)[0]
    away, dot = MARK.get(shape, MARK["other"])
    unit = np.sqrt(_features(shape)[1] / np.pi)
    if np.sqrt(max(rest + centre_x**2 + centre_y**2, 0.0)) > 0.4 * away * dot**2 / unit**3:
        across, down = across - centre_x, down - centre_y
    return np.arctan2(across, -down)


def _fill(cover: Pixels) -> Pixels:
    """Covers in which what has cover on all four sides is covered too."""
    sides = [np.maximum.accumulate(cover, axis=axis) for axis in (1, 2)]
    sides += [np.flip(np.maximum.accumulate(np.flip(cover, axis), axis=axis), axis) for axis in (1, 2)]
    return np.minimum.reduce(sides)


@cache
def _features(shape: str) -> tuple[Array, float]:
    """The moments of a perfect body, and its area where its radius is 1."""
    fine = (np.arange(400, dtype=np.float32) + 0.5) / 400 * 3.0 - 1.5
    area = float(np.mean(distance(shape, fine, fine[:, None]) < 0.0) * 9.0)
    axis = (_crop_axis() * np.sqrt(area / np.pi)).astype(np.float32)
    pixel = float(axis[1] - axis[0])
    cover = np.clip(0.5 - distance(shape, axis, axis[:, None]) / (2.0 * pixel), 0.0, 1.0)
    return _moments(cover[None])[0], area


def _moments(cover: Pixels) -> Array:
    """Strength of the 3, 4 and 5-fold angular moments, and the emptiness of the middle: ``[N, 4]``."""
    axis = _crop_axis()
    z = axis + 1j * axis[:, None]
    squared = np.abs(z) ** 2
    reach = squared < REACH**2
    weight = np.sum(cover * squared**2 * reach, axis=(1, 2)) + 1e-9
    turns = np.exp(1j * np.angle(z))
    folds = [np.abs(np.sum(cover * squared**2 * reach * turns**n, axis=(1, 2))) / weight for n in (3, 4, 5)]
    middle = squared < 0.3**2
    return np.stack([*folds, 0.5 * (1.0 - cover[:, middle].mean(axis=1))], axis=1)


def _firm(cover: Pixels) -> Pixels:
    """Covers with what is faint taken for nothing and what is nearly full for full."""
    return np.clip((cover - 0.2) / 0.6, 0.0, 1.0)


def _crop_axis() -> Array:
    return ((np.arange(CROP) + 0.5) / CROP * 2.0 - 1.0) * REACH


def _where(seen: NDArray[np.bool_], values: Array, scatter: bool = False) -> Array:
    """``values`` where something is seen, nan elsewhere; ``scatter`` if they are given for those frames alone."""
    out = np.full(len(seen), np.nan)
    out[seen] = values if scatter else values[seen]
    return out
