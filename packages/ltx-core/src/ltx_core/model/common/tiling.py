"""Cutting one axis into overlapping intervals, and the ramps that blend the pieces together again.

Neighbouring tiles share ``overlap`` cells; over the shared cells one tile fades out while the other fades in. With
equal ramps the two weights sum to one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltx_core.errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """Cells ``[start, end)`` of one axis; the first ``left_ramp`` and last ``right_ramp`` cells are blended."""

    start: int
    end: int
    left_ramp: int = 0
    right_ramp: int = 0

    @property
    def length(self) -> int:
        return self.end - self.start


def split_by_size(dim: int, size: int, overlap: int, min_tile_size: int | None = None) -> list[Interval]:
    """Cut ``dim`` cells into intervals of ``size`` cells that share ``overlap`` cells.

    The last interval ends at ``dim`` and may be short. With ``min_tile_size`` a short last interval grows to the left,
    which widens both ramps of that seam. Raises ``ConfigError`` when an interval stays below ``min_tile_size`` or a
    ramp is longer than its interval.
    """
    if dim <= size or (min_tile_size is not None and dim < min_tile_size):
        return [Interval(0, dim)]
    if not 0 <= overlap < size:
        raise ConfigError(f"tile overlap is {overlap}, expected 0 to {size - 1} for tiles of {size}")
    step = size - overlap
    count = (dim + size - 2 * overlap - 1) // step
    intervals = [
        Interval(i * step, min(i * step + size, dim), overlap if i else 0, overlap if i < count - 1 else 0)
        for i in range(count)
    ]
    return _grow_last(intervals, min_tile_size) if min_tile_size is not None else intervals


def _grow_last(intervals: list[Interval], min_tile_size: int) -> list[Interval]:
    """Let a short last interval grow to the left, and refuse layouts that ``min_tile_size`` cannot save."""
    last = intervals[-1]
    if last.length < min_tile_size and len(intervals) > 1:
        start = last.end - min_tile_size
        overlap = intervals[-2].end - start
        intervals[-2] = replace(intervals[-2], right_ramp=overlap)
        intervals[-1] = replace(last, start=start, left_ramp=overlap)
    for tile in intervals:
        name, left, right = f"tile [{tile.start}, {tile.end})", tile.left_ramp, tile.right_ramp
        if tile.length < min_tile_size:
            raise ConfigError(f"{name} is {tile.length} long, expected at least {min_tile_size}")
        if max(left, right) > tile.length:
            raise ConfigError(f"{name} has ramps of {left} and {right}, longer than the tile itself")
    return intervals


def split_by_count(dim: int, n: int, overlap: int) -> list[Interval]:
    """Cut ``dim`` cells into ``n`` intervals that share ``overlap`` cells; lengths differ by at most one.

    Raises ``ConfigError`` when ``n`` exceeds ``dim`` or the intervals are no longer than the overlap.
    """
    if not 1 <= n <= dim:
        raise ConfigError(f"tile count is {n}, expected 1 to {dim} for an axis of {dim}")
    if n == 1:
        return [Interval(0, dim)]
    size, remainder = divmod(dim + overlap * (n - 1), n)
    if overlap < 0 or size <= overlap:
        raise ConfigError(f"tile overlap is {overlap}, expected 0 to {dim - n} for {n} tiles on an axis of {dim}")
    starts = [i * (size - overlap) + min(i, remainder) for i in range(n)]
    return [
        Interval(start, start + size + (i < remainder), overlap if i else 0, overlap if i < n - 1 else 0)
        for i, start in enumerate(starts)
    ]


def causal(intervals: Sequence[Interval]) -> list[Interval]:
    """The same cut for a causal time axis: every interval but the first starts one cell earlier.

    A tile's first latent frame is read as the first frame of a clip, so it is sacrificed: its weight is zero (see
    ``trapezoidal_mask_1d(..., left_starts_from_0=True)``).
    """
    return [
        replace(tile, start=tile.start - 1, left_ramp=tile.left_ramp + 1) if i else tile
        for i, tile in enumerate(intervals)
    ]


def trapezoidal_mask_1d(
    length: int, left_ramp: int, right_ramp: int, left_starts_from_0: bool = False, device: torch.device | None = None
) -> Tensor:
    """Blend weights ``[length]`` in float32: a rise over ``left_ramp`` cells, ones, a fall over ``right_ramp`` cells.

    The rise is ``i / (left_ramp + 1)``, i = 1..left_ramp, or ``i / left_ramp``, i = 0..left_ramp-1 with
    ``left_starts_from_0``; the fall mirrors the first form. Ramps are clipped to ``length`` and multiply where they
    meet.
    """
    left, right = (min(max(ramp, 0), length) for ramp in (left_ramp, right_ramp))
    mask = torch.ones(length, device=device)
    if left and left_starts_from_0:
        mask[:left] = torch.linspace(0, 1, left + 1, device=device)[:-1]
    elif left:
        mask[:left] = torch.linspace(0, 1, left + 2, device=device)[1:-1]
    if right:
        mask[length - right :] *= torch.linspace(1, 0, right + 2, device=device)[1:-1]
    return mask.clamp_(0, 1)


def rectangular_mask_1d(length: int, left_zeros: int, right_zeros: int) -> Tensor:
    """Weights ``[length]`` in float32: ones between ``left_zeros`` and ``right_zeros`` zeros at the ends."""
    mask = torch.ones(length)
    mask[:left_zeros] = 0
    mask[max(length - right_zeros, 0) :] = 0
    return mask


def partition_of_unity(axes: Sequence[Sequence[Interval]], dims: Sequence[int], smooth: bool = False) -> list[Tensor]:
    """Blend weights of every tile of a grid, each in the shape of its own box, first axis slowest.

    A tile's raw weight is the product of its trapezoids (``smooth``: of their smoothstep); weights are divided by their
    sum at each cell, so that they sum to one wherever ramps meet. Float64.
    """
    tiles = product(*axes)
    raw = [_box_weights(tile, smooth) for tile in tiles]
    total = torch.zeros(tuple(dims), dtype=torch.float64)
    for tile, weights in zip(tiles, raw, strict=True):
        total[box_slices(tile)] += weights
    return [weights / total[box_slices(tile)] for tile, weights in zip(tiles, raw, strict=True)]


def box_slices(tile: Sequence[Interval]) -> tuple[slice, ...]:
    """Slices that cut a tile out of the whole grid."""
    return tuple(slice(axis.start, axis.end) for axis in tile)


def _box_weights(tile: Sequence[Interval], smooth: bool) -> Tensor:
    weights = torch.ones((), dtype=torch.float64)
    for axis in tile:
        ramp = torch.ones(axis.length, dtype=torch.float64)
        for length, ends in ((axis.left_ramp, False), (axis.right_ramp, True)):
            rise = torch.arange(1, min(length, axis.length) + 1, dtype=torch.float64) / (length + 1)
            rise = rise * rise * (3 - 2 * rise) if smooth else rise
            if ends:
                ramp[axis.length - len(rise) :] *= rise.flip(0)
            else:
                ramp[: len(rise)] *= rise
        weights = weights[..., None] * ramp
    return weights


def product(*axes: Sequence[Interval]) -> list[tuple[Interval, ...]]:
    """All tiles of a grid, the first axis slowest and the last fastest."""
    return list(itertools.product(*axes))


@dataclass(frozen=True)
class TileCountConfig:
    """Tiles per axis as (number of tiles, overlap in latent cells); (1, 0) leaves an axis whole."""

    frames: tuple[int, int] = (1, 0)
    height: tuple[int, int] = (1, 0)
    width: tuple[int, int] = (1, 0)

    def split(self, cells: tuple[int, int, int]) -> list[list[Interval]]:
        """Intervals of each axis of a latent ``(frames, height, width)``; ``ConfigError`` where they do not fit."""
        axes = zip(cells, (self.frames, self.height, self.width), strict=True)
        return [split_by_count(dim, count, overlap) for dim, (count, overlap) in axes]
