"""Sizes, frame canvases, tiles and windows that pipelines plan with. Sizes are (width, height) only where said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from ltx_core.errors import ConfigError
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape
from ltx_pipelines.planning.plan import (
    CarriedKeyframes,
    Condition,
    ImageCondition,
    KeyframeSlots,
    StagePlan,
    Tiles,
    Window,
)

TIME_FACTOR = 8  # pixel frames per latent frame
TILE_TOKENS = 2**16  # at most, of one tile
TILE_OVERLAP = 4  # latent cells that neighbouring tiles share
CANVAS_SEGMENTS = (24, 32)  # frames between the keyframes of a canvas


def align_resolution(
    height: int, width: int, mode: Literal["center_crop", "reflect_pad"], step: int
) -> tuple[int, int]:
    """The (height, width) to generate at: multiples of ``step`` inside the size (crop) or around it (pad)."""
    rounded = {"center_crop": math.floor, "reflect_pad": math.ceil}[mode]
    return max(rounded(height / step), 1) * step, max(rounded(width / step), 1) * step


def balanced_tile_split(count: int) -> tuple[int, int]:
    """``count`` as rows x columns, rows <= columns, as square as its divisors allow."""
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return rows, count // rows


def tiles_of(shape: VideoPixelShape, factors: SpatioTemporalScaleFactors, side: int) -> Tiles:
    """The fewest tiles of at most ``side`` pixels in height and width, and in time only where they are too many tokens.

    Neighbours share `TILE_OVERLAP` cells, less where that is more than a third of a tile.
    """
    cells = shape.height // factors.height, shape.width // factors.width
    height, width = (_tiles(dim, max(side // factor, 1)) for dim, factor in zip(cells, factors[1:], strict=True))
    tall, wide = (_longest(dim, *axis) for dim, axis in zip(cells, (height, width), strict=True))
    frames = factors.latent_frames(shape.frames)
    return _tiles(frames, max(TILE_TOKENS // (tall * wide), 3 * TILE_OVERLAP)), height, width


def apart_tiles(shape: VideoPixelShape, factors: SpatioTemporalScaleFactors, wanted: Tiles) -> Tiles:
    """The tiles along each axis, as far as it has the cells for them and for what they share."""
    cells = factors.latent_frames(shape.frames), shape.height // factors.height, shape.width // factors.width
    frames, height, width = (
        (count, min(overlap, dim - count)) if dim > count else (1, 0)
        for dim, (count, overlap) in zip(cells, wanted, strict=True)
    )
    return frames, height, width


def _tiles(cells: int, most: int) -> tuple[int, int]:
    """(number of tiles, overlap) of an axis whose tiles hold at most ``most`` cells."""
    if cells <= most:
        return 1, 0
    overlap = min(TILE_OVERLAP, max(most // 3, 1))
    count = -(-(cells - overlap) // max(most - overlap, 1))
    return count, overlap


def _longest(cells: int, count: int, overlap: int) -> int:
    """Cells of the longest of ``count`` tiles."""
    return -(-(cells + overlap * (count - 1)) // count)


@dataclass(frozen=True)
class Canvas:
    """A clip padded to whole segments, with a generated keyframe at the end of each."""

    frames: int
    segment: int
    keyframes: tuple[int, ...]

    @classmethod
    def of(cls, frames: int) -> Canvas:
        """The canvas of an 8k+1 clip: segments of 24 or 32 frames, whichever pads less (32 on a tie)."""
        if frames < TIME_FACTOR + 1 or (frames - 1) % TIME_FACTOR:
            nearest = max((frames - 1 + TIME_FACTOR // 2) // TIME_FACTOR, 1) * TIME_FACTOR + 1
            raise ConfigError(f"frames is {frames}, expected {TIME_FACTOR}k+1, at least 9; nearest valid: {nearest}")
        content = frames - 1
        segment = min(CANVAS_SEGMENTS, key=lambda size: (-content % size, -size))
        padded = content + -content % segment
        return cls(padded + 1, segment, tuple(range(segment, padded + 1, segment)))


@dataclass(frozen=True)
class TemporalTile:
    """A window of a clip, generated on its own between carried keyframes; frame numbers are those of the clip."""

    pixel_start: int
    pixel_end: int  # the last frame, inclusive
    anchors: tuple[int, ...]  # carried keyframes inside the window
    slots: tuple[int, ...]  # keyframes to generate, halfway between carried ones
    dropped_latents: int  # latent frames at its start that the tile before delivers

    @property
    def latent_start(self) -> int:
        return self.pixel_start // TIME_FACTOR

    @property
    def latent_end(self) -> int:
        return self.pixel_end // TIME_FACTOR + 1


def temporal_tiles(seams: Sequence[int], count: int) -> list[TemporalTile]:
    """Divide the segments between the frames 0 and ``seams`` into at most ``count`` runs, longer runs first.

    Every tile but the first also covers the segment before its run, whose latent frames it drops at the end.
    """
    segments = list(pairwise((0, *seams)))
    count = min(count, len(segments))
    shortest, longer = divmod(len(segments), count)
    tiles, first = [], 0
    for index in range(count):
        end = first + shortest + (index < longer)
        covered = segments[max(first - 1, 0) : end]
        start, stop = covered[0][0], covered[-1][1]
        tiles.append(
            TemporalTile(
                pixel_start=start,
                pixel_end=stop,
                anchors=tuple(seam for seam in seams if start <= seam <= stop),
                slots=tuple((left + right) // 2 for left, right in covered),
                dropped_latents=(covered[0][1] - start) // TIME_FACTOR + 1 if first else 0,
            )
        )
        first = end
    return tiles


# Windows: each is a run of the transformer over a part of the frames of a clip --------------------------------------


def runs(stage: StagePlan) -> list[StagePlan]:
    """The runs of the transformer a stage is made of."""
    return [window_stage(stage, number) for number in range(len(stage.windows))] or [stage]


def window_stage(stage: StagePlan, number: int) -> StagePlan:
    """A window as a stage of its own, whose frames count from its start. Its sampler draws noise of its own."""
    window, video, sampler = stage.windows[number], stage.streams["video"], stage.sampler
    conditions = [inside for condition in video.conditions if (inside := _inside(condition, window)) is not None]
    return replace(
        stage,
        shape=stage.shape._replace(frames=window.last - window.first + 1),
        streams={**stage.streams, "video": replace(video, conditions=tuple(conditions))},
        sampler=sampler if sampler.seed is None else replace(sampler, seed=sampler.seed + number),
        windows=(),
        window=window,
        delivered=None,
    )


def _inside(condition: Condition, window: Window) -> Condition | None:
    """The condition with its frames counted from the window's start; None where none of them lies in it."""
    match condition:
        case ImageCondition(frame_idx=frame):
            inside = window.first <= frame <= window.last and frame >= window.first_new
            return replace(condition, frame_idx=frame - window.first) if inside else None
        case KeyframeSlots(pixel_frame_indices=frames) | CarriedKeyframes(pixel_frame_indices=frames):
            local = tuple(frame - window.first for frame in frames if window.first <= frame <= window.last)
            return replace(condition, pixel_frame_indices=local) if local else None
    return condition


# The size of LTX-Video clips ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaddedSize:
    """A size and the smallest around it that the model can hold: sides multiples of 32, frames 8k+1."""

    asked: VideoPixelShape
    padded: VideoPixelShape

    @classmethod
    def of(cls, asked: VideoPixelShape, factors: SpatioTemporalScaleFactors) -> PaddedSize:
        return cls(asked, factors.covering(asked))

    @property
    def top(self) -> int:
        """Rows above the picture; a surplus row is below it."""
        return (self.padded.height - self.asked.height) // 2

    @property
    def left(self) -> int:
        """Columns left of the picture; a surplus column is right of it."""
        return (self.padded.width - self.asked.width) // 2
