"""Encoding large pictures in overlapping pieces, blended linearly where they overlap."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.common.tiling import Interval
from ltx_core.model.video_vae.tiling import Span, TilePlan, tiled_encode
from ltx_core.types import SpatioTemporalScaleFactors

TILE, OVERLAP = 512, 128  # pixels


def encode_in_tiles(
    encode: Callable[[Tensor], Tensor],
    video: Tensor,
    factors: SpatioTemporalScaleFactors,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """``encode`` of ``[B, 3, F, H, W]`` in square tiles of ``tile`` pixels that overlap by ``overlap``.

    The last tile of each axis ends at the picture's edge. Raises `ConfigError` for tiles of no whole latent cells.
    """
    frames, *sides = video.shape[2:]
    whole = Span.on(Interval(0, factors.latent_frames(frames)), factors.time, True)
    axes: list[tuple[Span, ...]] = [(whole,)]
    for side, factor in zip(sides, (factors.height, factors.width), strict=True):
        if tile % factor or overlap % factor or not 0 <= overlap < tile:
            raise ConfigError(
                f"tiles are {tile} with overlap {overlap}, expected multiples of {factor}, overlap smaller"
            )
        intervals = _ending_at_the_edge(side // factor, tile // factor, overlap // factor)
        axes.append(tuple(Span.on(interval, factor, False) for interval in intervals))
    plan = TilePlan(*axes)
    return encode(video) if len(plan.tiles) == 1 else tiled_encode(encode, video, plan)


def _ending_at_the_edge(cells: int, tile: int, overlap: int) -> list[Interval]:
    """Tiles of an axis; the last is moved back so that it ends with the picture."""
    if cells <= tile:
        return [Interval(0, cells)]
    starts = [*range(0, cells - tile, tile - overlap), cells - tile]
    return [
        Interval(start, start + tile, overlap if start else 0, overlap if start + tile < cells else 0)
        for start in starts
    ]
