"""A long or large video's tokens in overlapping tiles, each small enough for one transformer call.

::

    helper = VideoModalityTilingHelper(tiling, tools)
    transformer = TiledTransformer(transformer, helper)  # for the denoising loop, like the one it is made of

All passes of a step run for each tile, and each pass is blended on a canvas of its own. Guidance, held tokens and the
sampler's step work on the canvas, and noise is drawn for it once, so that tiles leave no trace where they agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ltx_core.conditioning.tools import LatentTools
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.common.tiling import Interval, TileCountConfig, partition_of_unity, product
from ltx_core.model.transformer.modality import Modality, TimestepGroups
from ltx_core.sampling.denoisers import Transformer
from ltx_core.types import VideoLatentShape

#: Intervals of latent cells along (frames, height, width).
Box = tuple[Interval, ...]
HEARD = 1.0  # seconds of sound that a tile hears before and after its own time


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
    video_tools: LatentTools[VideoLatentShape]

    def boxes(self) -> list[Box]:
        """(frames, height, width) of every tile in latent cells, frames slowest."""
        shape = self.video_tools.target_shape
        return product(*self.tiling.split((shape.frames, shape.height, shape.width)))

    def tiles(self, positions: Tensor) -> list[TokenTile]:
        """All tiles for a sequence at ``positions`` ``[B, 3, N, 2]``, target tokens first.

        A tile keeps the appended tokens that overlap its box in all axes for any sample, and those before time 0.
        """
        shape = self.video_tools.target_shape
        boxes, cells = self.boxes(), (shape.frames, shape.height, shape.width)
        blends = partition_of_unity(self.tiling.split(cells), cells)
        indices = [self._generated_indices(box, positions.device) for box in boxes]
        total = self.video_tools.token_count
        kept = torch.stack([self._overlaps(positions, own, total) for own in indices])  # [tiles, N - total]
        shares = 1 / kept.sum(dim=0).clamp(min=1).float()
        tiles = []
        for box, own, keep, blend in zip(boxes, indices, kept, blends, strict=True):
            appended = keep.nonzero().flatten() if len(keep) else own[:0]
            weights = torch.cat((blend.flatten().to(shares), shares[appended]))
            tiles.append(TokenTile(box, torch.cat((own, appended + total)), len(own), weights))
        return tiles

    def tile_modality(self, modality: Modality, tile: TokenTile, normalize_positions: bool = True) -> Modality:
        """The tile's part of ``modality``, by default with positions counted from the tile's own start."""
        part = take_tokens(modality, tile.keep_indices)
        if not normalize_positions:
            return part
        starts = part.positions[:, :, : tile.num_generated, 0].amin(dim=2)  # [B, 3]
        return replace(part, positions=part.positions - starts[:, :, None, None])

    def blend(self, result: Tensor, tile: TokenTile, output: Tensor) -> Tensor:
        """Add a tile's result ``[B, n, D]`` by its weights into ``output`` ``[B, N, D]``, which is returned."""
        weighted = result.to(output.dtype) * tile.blend_weights[:, None].to(output.dtype)
        return output.index_add_(1, tile.keep_indices, weighted)

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


@dataclass(frozen=True)
class TiledTransformer:
    """x0 of a video too large for one call: one call of ``transformer`` for each tile, blended on a canvas in float32.

    The sound is frozen: it is heard around each tile's time and comes back as it is. Positions stay those of the whole
    clip, so that picture, sound and appended tokens keep their distances, and those of a stage are the same at every
    step: which tokens a tile has is read from the device once.
    """

    transformer: Transformer
    helper: VideoModalityTilingHelper
    seen: list[tuple[TokenTile, Tensor | None]] = field(default_factory=list)  # each with the sound's tokens it hears

    def __call__(
        self, video: Modality, audio: Modality | None = None, perturbations: BatchedPerturbationConfig | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, N, D]`` of the video, and the sound's latent."""
        canvas = torch.zeros_like(video.latent, dtype=torch.float32)
        if not self.seen:
            self.seen.extend((tile, self._near(tile, video, audio)) for tile in self.helper.tiles(video.positions))
        for tile, near in self.seen:
            part = self.helper.tile_modality(video, tile, normalize_positions=False)
            heard = audio if audio is None or near is None else take_tokens(audio, near)
            x0, _ = self.transformer(video=part, audio=heard, perturbations=perturbations)
            assert x0 is not None
            self.helper.blend(x0, tile, canvas)
        return canvas.to(video.latent.dtype), None if audio is None else audio.latent

    def _near(self, tile: TokenTile, video: Modality, audio: Modality | None) -> Tensor | None:
        """The sound's tokens within `HEARD` seconds of a tile ``[n]``, and those before time 0; None for all."""
        if audio is None or self.helper.tiling.frames[0] == 1:
            return None
        spans, times = video.positions[:, 0, tile.keep_indices[: tile.num_generated]], audio.positions[0, 0]
        start, end = spans[..., 0].min() - HEARD, spans[..., 1].max() + HEARD
        near = ((times[:, 1] > start) & (times[:, 0] < end)) | (times[:, 0] < 0)
        return near.nonzero().flatten()


def take_tokens(modality: Modality, keep: Tensor | slice) -> Modality:
    """Some of a stream's tokens."""
    tokens = modality.latent.shape[1]
    parts: dict[str, Any] = {"latent": modality.latent[:, keep], "positions": modality.positions[:, :, keep]}
    if modality.timesteps.ndim > 1 and modality.timesteps.shape[1] == tokens:
        parts["timesteps"] = modality.timesteps[:, keep]
        if (groups := modality.timestep_groups) is not None:
            index = None if groups.index is None else groups.index[:, keep]
            parts["timestep_groups"] = TimestepGroups(parts["timesteps"], groups.values, index)
    if (mask := modality.attention_mask) is not None:
        rows = mask if mask.shape[1] == 1 else mask[:, keep]
        parts["attention_mask"] = rows[:, :, keep]
    if modality.keyframes_mask is not None:
        parts["keyframes_mask"] = modality.keyframes_mask[:, keep]
    return replace(modality, **parts)
