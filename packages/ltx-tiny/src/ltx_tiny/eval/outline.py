"""Outline of a body: the overlap of what is seen with the best-fitting true shape, frame by frame.

A lump can have the angular moments of a star; it does not have its outline. Nothing is learned: the true shape is
moved, sized and turned until it covers what is seen best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.picture import CORNERS, distance

Array = NDArray[np.floating[Any]]

STEPS = ((0.04, 0.08), (0.015, 0.03))  # of place and size in radii, of angles in radians


def outline_fits(cover: Array, axis: Array, shape: str) -> Array:
    """Overlap ``[N]`` (intersection over union, 0 to 1) of covers ``[N, C, C]`` with a true shape.

    ``axis`` ``[C]`` are the places of the samples from a first guess of the body's middle, in any unit.
    """
    return np.array([_fit(one, axis, shape) for one in cover])


def _fit(cover: Array, axis: Array, shape: str) -> float:
    pixel = float(axis[1] - axis[0])
    area = float(cover.sum()) * pixel**2
    found = _first(cover, axis, shape, area)
    best = _overlap(cover, axis, shape, found)
    for place, turn in STEPS:
        steps = (place * found[2], place * found[2], place * found[2], turn)
        for _ in range(3):
            before = best
            for number, step in enumerate(steps):
                for sign in (-1.0, 1.0):
                    tried = [*found[:number], found[number] + sign * step, *found[number + 1 :]]
                    overlap = _overlap(cover, axis, shape, tried)
                    if overlap > best:
                        best, found = overlap, tried
            if best == before:
                break
    return best


def _first(cover: Array, axis: Array, shape: str, area: float) -> list[float]:
    """Middle, radius and angle from moments."""
    total = cover.sum() + 1e-9
    x, y = float(cover.sum(axis=0) @ axis / total), float(cover.sum(axis=1) @ axis / total)
    angle = 0.0
    if shape in CORNERS:
        corners, *_, turned = CORNERS[shape]
        z = (axis - x) + 1j * (axis - y)[:, None]
        angle = (
            float(np.angle(np.sum(cover * np.abs(z) ** 2 * np.exp(1j * corners * np.angle(z))))) / corners
        ) + np.pi / 2
        angle += turned
    return [x, y, float(np.sqrt(area / unit_area(shape))), angle]


def _overlap(cover: Array, axis: Array, shape: str, placed: Sequence[float]) -> float:
    x, y, radius, angle = placed
    cos, sin = np.cos(angle), np.sin(angle)
    across, down = (axis - x) / radius, ((axis - y) / radius)[:, None]
    outline = distance(shape, across * cos + down * sin, down * cos - across * sin)
    true = np.clip(0.5 - outline * radius / float(axis[1] - axis[0]), 0.0, 1.0)
    return float(np.minimum(true, cover).sum() / (np.maximum(true, cover).sum() + 1e-9))


def unit_area(shape: str) -> float:
    """The area of a body of radius 1."""
    fine = ((np.arange(400) + 0.5) / 400 * 3.0 - 1.5).astype(np.float32)
    return float(np.mean(distance(shape, fine, fine[:, None]) < 0.0) * 9.0)
