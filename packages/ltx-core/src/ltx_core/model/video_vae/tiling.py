"""Tiled decoding and encoding: overlapping pieces of a clip one after another, blended where they overlap.

A tiled result differs from the whole one wherever the network looks across a seam. Time needs no tiles: streaming gives
the whole result exactly. Tiles in space bound the memory of large pictures.

Axes are always in the order frames, height, width. In time a tile's first latent frame stands for one pixel frame, so
every tile but the first takes one latent frame more on its left, whose output gets weight zero.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.common.tiling import Interval, TileCountConfig, causal, split_by_size, trapezoidal_mask_1d
from ltx_core.types import SpatioTemporalScaleFactors

if TYPE_CHECKING:
    from ltx_core.model.video_vae.video_vae import DecodeConditioning, VideoDecoder

AXES = ("frames", "height", "width")
HALO = 4  # latent cells decoded around a tile: what lies beyond changes it by less than half a level of 255
COMPLEMENTARY_TOLERANCE = 1e-5
WEIGHT_FLOOR = 1e-8

Cells = tuple[int, int, int]  # latent frames, height, width


@dataclass(frozen=True)
class TileSizeConfig:
    """Tiles per axis as (size, overlap) in frames or pixels; (0, 0) leaves an axis whole."""

    frames: tuple[int, int] = (80, 24)
    height: tuple[int, int] = (768, 64)
    width: tuple[int, int] = (768, 64)

    @classmethod
    def for_long_side(
        cls,
        height: int,
        width: int,
        tile: int = 768,
        overlap: int = 64,
        frames: tuple[int, int] = (80, 24),
        factor: int = 32,
    ) -> TileSizeConfig:
        """Tiles of ``tile`` pixels along the longer side, and in proportion along the shorter one."""
        longest, smallest = max(height, width) // factor, max(2, overlap // factor + 1)

        def couple(side: int) -> tuple[int, int]:
            cells = max(smallest, round((tile // factor) * (side // factor) / longest))
            return max(cells * factor, max(2 * factor, overlap + factor)), overlap

        return cls(frames, couple(height), couple(width))

    def axes(self) -> tuple[tuple[int, int], ...]:
        return self.frames, self.height, self.width

    def check(self, factors: SpatioTemporalScaleFactors) -> None:
        """Refuse sizes the latent grid cannot hold: ``overlap < tile``, ``tile >= 2 * factor``, both multiples."""
        for name, (tile, overlap), factor in zip(AXES, self.axes(), factors, strict=True):
            if tile == 0 and overlap == 0:
                continue
            fits = 0 <= overlap < tile and tile >= 2 * factor and tile % factor == overlap % factor == 0
            if not fits:
                expected = f"multiples of {factor}, at least {2 * factor}, with a smaller overlap"
                given = f"{name} tiles are {tile} with overlap {overlap}"
                raise ConfigError(f"{given}, expected {expected}; or 0 and 0 for no tiles")

    def split(self, cells: Cells, factors: SpatioTemporalScaleFactors) -> list[list[Interval]]:
        """Intervals of each axis of a latent ``(frames, height, width)``."""
        self.check(factors)
        return [
            split_by_size(dim, max(tile // factor, max(2, overlap // factor + 1)), overlap // factor)
            if tile
            else [Interval(0, dim)]
            for dim, (tile, overlap), factor in zip(cells, self.axes(), factors, strict=True)
        ]


Tiling = TileSizeConfig | TileCountConfig


def announced_chunks(frames: int, tiling: Tiling | None) -> int:
    """Number of pieces in time to announce for a clip of ``frames`` frames; sometimes more than a decode yields."""
    if tiling is None:
        return 1
    if isinstance(tiling, TileCountConfig):
        return tiling.frames[0]
    tile, overlap = tiling.frames
    return math.ceil((frames - 1) / (tile - overlap)) if tile else 1


@dataclass(frozen=True)
class Span:
    """One tile along one axis: where it lies on the latent and on the pixel grid, and its blend ramps there."""

    cells: Interval
    pixels: Interval
    is_time: bool

    @classmethod
    def on(cls, cells: Interval, factor: int, is_time: bool) -> Span:
        """Map latent cells ``[a, b)`` to pixels ``[a*f, b*f)`` or frames ``[a*f, 1 + (b-1)*f)``."""
        left, right = cells.left_ramp * factor, cells.right_ramp * factor
        if not is_time:
            return cls(cells, Interval(cells.start * factor, cells.end * factor, left, right), is_time)
        left = left - factor + 1 if left else 0
        return cls(cells, Interval(cells.start * factor, 1 + (cells.end - 1) * factor, left, right), is_time)

    def mask(self, on_pixels: bool) -> Tensor:
        """Float32 blend weights on the pixel or on the latent grid."""
        part = self.pixels if on_pixels else self.cells
        return trapezoidal_mask_1d(part.length, part.left_ramp, part.right_ramp, left_starts_from_0=self.is_time)


Tile = tuple[Span, Span, Span]


@dataclass(frozen=True)
class TilePlan:
    """All tiles of a clip as a grid, with the weights they are blended by."""

    frames: tuple[Span, ...]
    height: tuple[Span, ...]
    width: tuple[Span, ...]

    @classmethod
    def of(cls, cells: Cells, tiling: Tiling | None, factors: SpatioTemporalScaleFactors) -> TilePlan:
        """Lay tiles over a latent ``(frames, height, width)``; None means one tile."""
        if tiling is None:
            tiling = TileCountConfig()
        if isinstance(tiling, TileSizeConfig):
            frames, height, width = tiling.split(cells, factors)
        else:
            frames, height, width = tiling.split(cells)
        return cls(
            tuple(Span.on(part, factors.time, True) for part in causal(frames)),
            tuple(Span.on(part, factors.height, False) for part in height),
            tuple(Span.on(part, factors.width, False) for part in width),
        )

    @property
    def axes(self) -> tuple[tuple[Span, ...], ...]:
        return self.frames, self.height, self.width

    @property
    def tiles(self) -> list[Tile]:
        """In order of execution: time slowest, width fastest."""
        return [(t, h, w) for t in self.frames for h in self.height for w in self.width]

    def complementary(self, on_pixels: bool) -> bool:
        """Whether the masks sum to one everywhere, so that blending needs no division."""
        sums = (_sum_masks(spans, on_pixels) for spans in self.axes)
        return all(bool(((total - 1).abs() <= COMPLEMENTARY_TOLERANCE).all()) for total in sums)

    def weights(self, on_pixels: bool, device: torch.device) -> list[dict[Span, Tensor]]:
        """The blend weights of each axis' spans, which sum to one over the spans at every place.

        The summed weight of a grid of tiles is the product of its axes' sums, so dividing each axis is enough.
        """
        weights, divide = [], not self.complementary(on_pixels)
        for spans in self.axes:
            masks = {span: span.mask(on_pixels) for span in spans}
            if divide:
                total = _sum_masks(spans, on_pixels).clamp_min(WEIGHT_FLOOR)
                masks = {span: mask / total[_slice(span, on_pixels)] for span, mask in masks.items()}
            weights.append({span: mask.to(device) for span, mask in masks.items()})
        return weights


def cells_of_tile(tile: Tile) -> tuple[slice, slice, slice]:
    """The cells of the latent grid that a tile covers."""
    t, h, w = (_slice(span, False) for span in tile)
    return t, h, w


def pixels_of_tile(tile: Tile) -> tuple[slice, slice, slice]:
    """The frames and pixels that a tile covers."""
    t, h, w = (_slice(span, True) for span in tile)
    return t, h, w


def _slice(span: Span, on_pixels: bool) -> slice:
    part = span.pixels if on_pixels else span.cells
    return slice(part.start, part.end)


def _sum_masks(spans: Sequence[Span], on_pixels: bool) -> Tensor:
    total = torch.zeros(_slice(spans[-1], on_pixels).stop)
    for span in spans:
        total[_slice(span, on_pixels)] += span.mask(on_pixels)
    return total


@torch.no_grad()
def tiled_decode(
    decoder: VideoDecoder, latent: Tensor, tiling: Tiling | None, conditioning: DecodeConditioning | None = None
) -> Iterator[Tensor]:
    """Decode a latent tile by tile into chunks of frames ``[B, 3, f, H, W]``, accumulated in the latent's dtype.

    Each tile of a timestep-conditioned decoder draws its own noise.
    """
    plan = TilePlan.of(_cells(latent), tiling, decoder.scale_factors)

    def decode(tile: Tile) -> Tensor:
        return decoder(latent[(..., *cells_of_tile(tile))], conditioning)

    yield from blend_tiles(plan, decode, latent, decoder.config.out_channels)


def blend_tiles(plan: TilePlan, decode: Callable[[Tile], Tensor], like: Tensor, channels: int) -> Iterator[Tensor]:
    """Chunks of frames ``[B, channels, f, H, W]``, accumulated in the dtype and on the device of ``like`` ``[B, ...]``.

    Tiles of one time interval form a group; the frames that no later group touches are yielded when it is done.
    """
    frame_weights, height_weights, width_weights = plan.weights(True, like.device)
    sides = plan.height[-1].pixels.end, plan.width[-1].pixels.end
    carried: Tensor | None = None
    for index, t in enumerate(plan.frames):
        shape = (like.shape[0], channels, t.pixels.length, *sides)
        canvas = torch.zeros(shape, dtype=like.dtype, device=like.device)
        if carried is not None:
            canvas[:, :, : carried.shape[2]] = carried
        for h in plan.height:
            for w in plan.width:
                pixels = decode((t, h, w)).to(canvas.device)
                weight = _outer(frame_weights[t], height_weights[h], width_weights[w])
                canvas[..., _slice(h, True), _slice(w, True)] += pixels * weight
        done = plan.frames[index + 1].pixels.start - t.pixels.start if index + 1 < len(plan.frames) else canvas.shape[2]
        carried = canvas[:, :, done:].clone()
        yield canvas[:, :, :done]


@torch.no_grad()
def tiled_encode(encode: Callable[[Tensor], Tensor], video: Tensor, plan: TilePlan) -> Tensor:
    """``encode`` of ``[B, 3, F, H, W]`` tile by tile, blended in float32 into a latent of the dtype that it gives.

    The video may stay elsewhere: each tile is given on its own.
    """
    total: Tensor | None = None
    weights: list[dict[Span, Tensor]] = []
    for tile in plan.tiles:
        latent = encode(video[(..., *pixels_of_tile(tile))])
        if total is None:
            sides = [spans[-1].cells.end for spans in plan.axes]
            total = torch.zeros(*latent.shape[:2], *sides, device=latent.device)
            weights = plan.weights(False, latent.device)
        mask = _outer(*(axis[span] for axis, span in zip(weights, tile, strict=True)))
        total[(..., *cells_of_tile(tile))] += latent.float() * mask
    assert total is not None
    return total.to(latent.dtype)


def balanced_tiling(height: int, width: int, most: int, overlap: int = 2 * HALO) -> TileCountConfig:
    """Tiles in space, alike in size, of at most ``most`` cells each, for a latent of ``height`` x ``width`` cells.

    Those that decode the least area, else, where none are small enough, the smallest; a side of a tile is at least
    twice the overlap, so that no more than four times the picture is decoded.
    """
    choices = []
    for rows in range(1, max(height // overlap - 1, 1) + 1):
        for columns in range(1, max(width // overlap - 1, 1) + 1):
            decoded = (height + overlap * (rows - 1)) * (width + overlap * (columns - 1))
            tall, wide = (-(-(n + overlap * (k - 1)) // k) for n, k in ((height, rows), (width, columns)))
            choices.append((max(tall * wide - most, 0), decoded, rows * columns, rows, columns))
    *_, rows, columns = min(choices)
    axis = {1: (1, 0)}
    return TileCountConfig(height=axis.get(rows, (rows, overlap)), width=axis.get(columns, (columns, overlap)))


@torch.no_grad()
def stream_tiles(
    decoder: VideoDecoder, latent: Tensor, tiling: TileCountConfig, conditioning: DecodeConditioning | None = None
) -> Iterator[Tensor]:
    """Decode tiles in space one after another, each streamed in time, into frames ``[B, 3, 1, H, W]``.

    Neighbours meet in the middle of what they share: exact where that is the receptive field of the network on either
    side. Memory is that of one tile; what tiles decode to waits in a temporary file until the last of them is done.
    Raises ``ConfigError`` for a tiling that cuts time, and where the disk lacks the room.
    """
    if tiling.frames != (1, 0):
        raise ConfigError(f"frames are cut into {tiling.frames[0]} tiles, expected 1: time is streamed")
    factors, (batch, _, *cells) = decoder.scale_factors, latent.shape
    frames, height, width = 1 + (cells[0] - 1) * factors.time, cells[1] * factors.height, cells[2] * factors.width
    _check_room((frames, height, width), batch * 3 * frames * height * width * latent.element_size())
    _, rows, columns = tiling.split(_cells(latent))
    with tempfile.TemporaryFile() as file:
        places = []
        for h, w in itertools.product(rows, columns):
            (top, bottom), (left, right) = _own_pixels(h, factors.height), _own_pixels(w, factors.width)
            places.append((file.tell(), slice(top, bottom), slice(left, right)))
            inside = slice(top - h.start * factors.height, bottom - h.start * factors.height)
            beside = slice(left - w.start * factors.width, right - w.start * factors.width)
            part = latent[:, :, :, h.start : h.end, w.start : w.end]
            for chunk in decoder.decode_streaming(part, conditioning):
                own = chunk[..., inside, beside].movedim(2, 0).contiguous()
                file.write(own.view(torch.uint8).cpu().numpy().data)
        for number in range(frames):
            canvas = torch.empty(batch, 3, height, width, dtype=latent.dtype)
            for start, h_slice, w_slice in places:
                own = torch.empty_like(canvas[..., h_slice, w_slice], memory_format=torch.contiguous_format)
                data = own.view(torch.uint8).numpy()
                file.seek(start + number * data.nbytes)
                file.readinto(data.data)
                canvas[..., h_slice, w_slice] = own
            yield canvas[:, :, None].to(latent.device)


def _own_pixels(tile: Interval, factor: int) -> tuple[int, int]:
    """The pixels of an axis that a tile delivers: up to the middle of what it shares with its neighbours."""
    start, end = tile.start + tile.left_ramp // 2, tile.end - (tile.right_ramp - tile.right_ramp // 2)
    return start * factor, end * factor


def _check_room(shape: Cells, size: int) -> None:
    """Refuse frames that the folder of temporary files has no room for."""
    folder = tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free) < size:
        need = f"{' x '.join(map(str, shape))} frames wait in {size / 1e9:.1f} GB of {folder}"
        raise ConfigError(f"{need}, which has {free / 1e9:.1f} GB; let TMPDIR name a larger disk")


def _cells(latent: Tensor) -> Cells:
    return latent.shape[2], latent.shape[3], latent.shape[4]


def _outer(t: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """``[T, H, W]`` products of three ramps."""
    return t[:, None, None] * (h[:, None] * w)
