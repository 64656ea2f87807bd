"""Encoding large pictures in overlapping pieces, blended linearly where they overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.types import SpatioTemporalScaleFactors

TILE, OVERLAP = 512, 128  # pixels
WEIGHT_FLOOR = 1e-8


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
    for factor in (factors.height, factors.width):
        if tile % factor or overlap % factor or not 0 <= overlap < tile:
            raise ConfigError(
                f"tiles are {tile} with overlap {overlap}, expected multiples of {factor}, overlap smaller"
            )
    height, width = video.shape[-2:]
    rows = _starts(height, tile, overlap)
    columns = _starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return encode(video)
    total: Tensor | None = None
    weights = torch.zeros(height // factors.height, width // factors.width)
    for top in rows:
        for left in columns:
            latent = encode(video[..., top : top + tile, left : left + tile])
            vertical = _ramps(latent.shape[-2], overlap // factors.height, top > 0, top + tile < height)
            horizontal = _ramps(latent.shape[-1], overlap // factors.width, left > 0, left + tile < width)
            weight = vertical[:, None] * horizontal
            if total is None:
                total = latent.new_zeros((*latent.shape[:-2], *weights.shape), dtype=torch.float32)
            place = (
                slice(top // factors.height, top // factors.height + latent.shape[-2]),
                slice(left // factors.width, left // factors.width + latent.shape[-1]),
            )
            total[..., *place] += latent.float() * weight.to(latent.device)
            weights[place] += weight
    assert total is not None
    return (total / (weights + WEIGHT_FLOOR).to(total.device)).to(latent.dtype)


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin; the last is moved back so that it ends with the picture."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def _ramps(cells: int, overlap: int, before: bool, after: bool) -> Tensor:
    """Weights of a tile's cells: rising over an overlap with a tile before, falling over one with a tile after."""
    weight = torch.ones(cells)
    ramp = torch.arange(1, overlap + 1) / (overlap + 1)
    if before and overlap:
        weight[:overlap] *= ramp[:cells]
    if after and overlap:
        weight[-overlap:] *= ramp.flip(0)[-cells:]
    return weight
