"""A long or large video's tokens in overlapping tiles, each small enough for one transformer call.

helper = VideoModalityTilingHelper(tiling, tools)
for tile in helper.tiles(modality.positions):
    helper.blend(model(helper.tile_modality(modality, tile)), tile, output)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.model.common.tiling import Interval, TileCountConfig, product, trapezoidal_mask_1d
from ltx_core.model.transformer.modality import Modality, TimestepGroups

#: Intervals of latent cells along (frames, height, width).
Box = tuple[Interval, ...]


@dataclass(frozen=True)
class TokenTile:
    """The tokens of one tile: the generated ones of its box, then the appended ones that it keeps."""

    box: Box  # latent cells
    keep_indices: Tensor  # [n] into the whole sequence
    num_generated: int
    blend_weights: Tensor  # [n]: how much of each token's result is this tile's


@dataclass(frozen=True)
class VideoModalityTilingHelper:
    """Cuts a video's token sequence into tiles and blends their results."""

    tiling: TileCountConfig
    video_tools: VideoLatentTools

    def boxes(self) -> list[Box]:
        """(frames, height, width) of every tile in latent cells, frames slowest."""
        shape = self.video_tools.target_shape
        return product(*self.tiling.split((shape.frames, shape.height, shape.width)))

    def tiles(self, positions: Tensor) -> list[TokenTile]:
        """All tiles for a sequence at ``positions`` ``[B, 3, N, 2]``, target tokens first.

        A tile keeps the appended tokens that overlap its box in all axes for any sample, and those before time 0.
        """
        boxes = self.boxes()
        indices = [self._generated_indices(box, positions.device) for box in boxes]
        total = self.video_tools.token_count
        kept = torch.stack([self._overlaps(positions, own, total) for own in indices])  # [tiles, N - total]
        shares = 1 / kept.sum(dim=0).clamp(min=1).float()
        tiles = []
        for box, own, keep in zip(boxes, indices, kept, strict=True):
            appended = keep.nonzero().flatten()
            weights = torch.cat((_box_mask(box, positions.device), shares[appended]))
            tiles.append(TokenTile(box, torch.cat((own, appended + total)), len(own), weights))
        return tiles

    def tile_modality(self, modality: Modality, tile: TokenTile, normalize_positions: bool = True) -> Modality:
        """The tile's part of ``modality``, by default with positions counted from the tile's own start."""
        keep, tokens = tile.keep_indices, modality.latent.shape[1]
        positions = modality.positions[:, :, keep]
        if normalize_positions:
            starts = positions[:, :, : tile.num_generated, 0].amin(dim=2)  # [B, 3]
            positions = positions - starts[:, :, None, None]
        parts: dict[str, Any] = {"latent": modality.latent[:, keep], "positions": positions}
        if modality.timesteps.ndim > 1 and modality.timesteps.shape[1] == tokens:
            parts["timesteps"] = modality.timesteps[:, keep]
            groups = modality.timestep_groups
            if groups is not None:
                index = None if groups.index is None else groups.index[:, keep]
                parts["timestep_groups"] = TimestepGroups(parts["timesteps"], groups.values, index)
        if (mask := modality.attention_mask) is not None:
            rows = mask if mask.shape[1] == 1 else mask[:, keep]
            parts["attention_mask"] = rows[:, :, keep]
        if modality.keyframes_mask is not None:
            parts["keyframes_mask"] = modality.keyframes_mask[:, keep]
        return replace(modality, **parts)

    def blend(self, result: Tensor, tile: TokenTile, output: Tensor) -> Tensor:
        """Add a tile's result ``[B, n, D]`` by its weights into ``output`` ``[B, N, D]``, which is returned."""
        weighted = result * tile.blend_weights[:, None].to(result.dtype)
        return output.index_add_(1, tile.keep_indices, weighted.to(output.dtype))

    def _generated_indices(self, box: Box, device: torch.device) -> Tensor:
        shape = self.video_tools.target_shape
        grid = torch.arange(shape.token_count, device=device).view(shape.frames, shape.height, shape.width)
        frames, height, width = (slice(axis.start, axis.end) for axis in box)
        return grid[frames, height, width].flatten()

    @staticmethod
    def _overlaps(positions: Tensor, own: Tensor, total: int) -> Tensor:
        generated, appended = positions[:, :, own], positions[:, :, total:]
        start, end = (
            generated[..., 0].amin(dim=2, keepdim=True),
            generated[..., 1].amax(dim=2, keepdim=True),
        )  # [B, 3, 1]
        inside = ((appended[..., 0] < end) & (appended[..., 1] > start)).all(dim=1)  # [B, M]
        return (inside | (appended[:, 0, :, 0] < 0)).any(dim=0)


def _box_mask(box: Box, device: torch.device) -> Tensor:
    """Blend weights of a box's tokens, ``[frames * height * width]``."""
    frames, height, width = (
        trapezoidal_mask_1d(axis.length, axis.left_ramp, axis.right_ramp, device=device) for axis in box
    )
    return (frames[:, None, None] * height[:, None] * width).flatten()
