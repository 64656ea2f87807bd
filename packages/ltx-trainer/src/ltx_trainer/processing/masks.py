"""The frames of slower references, and masks on latent grids."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ltx_core.types import SpatioTemporalScaleFactors

MASK_THRESHOLD = 0.5


def kept_frames(count: int, factor: int) -> list[int]:
    """Indices of the frames a slower reference keeps: the first, then every ``factor``-th from the second."""
    return [0, *range(1, count, factor)]


def video_mask(mask: Tensor, grid: tuple[int, int, int], factors: SpatioTemporalScaleFactors) -> Tensor:
    """A mask video ``[F, C, h, w]`` in [0, 1] on a latent grid ``(F', H', W')``: float32 of 0 and 1.

    The mean of each cell, then the maximum over groups of frames; frames it lacks count as 0.
    """
    frames, rows, columns = grid
    grey = mask.mean(dim=1, keepdim=True)
    grey = F.interpolate(grey, (rows * factors.height, columns * factors.width), mode="nearest")
    return _on_grid(grey, frames, factors)


def image_mask(mask: Tensor, grid: tuple[int, int, int], factors: SpatioTemporalScaleFactors) -> Tensor:
    """A mask picture ``[h, w]`` in [0, 1] on a latent grid ``(F', H', W')``, the same in every frame."""
    frames, rows, columns = grid
    size = (rows * factors.height, columns * factors.width)
    grey = F.interpolate(mask[None, None], size, mode="bilinear", antialias=True, align_corners=False)
    return _on_grid(grey.expand(frames * factors.time, -1, -1, -1), frames, factors)


def _on_grid(grey: Tensor, frames: int, factors: SpatioTemporalScaleFactors) -> Tensor:
    """``[F, 1, H, W]`` pooled to ``[frames, H', W']`` and thresholded."""
    cells = F.avg_pool2d(grey, (factors.height, factors.width))[:, 0]
    cells = F.pad(cells[: frames * factors.time], (0, 0, 0, 0, 0, max(frames * factors.time - len(cells), 0)))
    return (cells.unflatten(0, (frames, factors.time)).amax(dim=1) > MASK_THRESHOLD).float()


def audio_mask(mask: Tensor, steps: int) -> Tensor:
    """A mask over time ``[n]`` on ``steps`` latent steps: float32 of 0 and 1, from the nearest earlier value."""
    return (F.interpolate(mask.float()[None, None], steps, mode="nearest")[0, 0] > MASK_THRESHOLD).float()
