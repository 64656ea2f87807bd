"""The frames of slower references, and masks on latent grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_media.containers import open_file, origin
from ltx_media.images import is_image, open_image
from ltx_media.video import probe_video

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


def weights_on_grid(frames: Tensor, grid: tuple[int, int, int], factors: SpatioTemporalScaleFactors) -> Tensor:
    """Weights ``[F, 1, H, W]`` in [0, 1] as means of the cells of a latent grid ``(F', H', W')``; one frame is for all.

    The first latent frame covers one frame, each other one ``factors.time``; frames it lacks count as the last.
    """
    cells = F.avg_pool2d(frames, (factors.height, factors.width))[:, 0]
    count = (grid[0] - 1) * factors.time + 1
    cells = torch.cat((cells, cells[-1:].expand(max(count - len(cells), 0), -1, -1)))[:count]
    return torch.cat((cells[:1], cells[1:].unflatten(0, (grid[0] - 1, factors.time)).mean(dim=1)))


def alpha_planes(path: Path, count: int, fps: float, start: float = 0.0) -> Tensor:
    """Opacity of a picture or a video, ``[F, 1, H, W]`` in [0, 1]. Raises `MediaError` where it has no alpha."""
    if not probe_video(path).transparent:
        raise MediaError(f"{path} has no alpha channel, which its loss mask is to be")
    if is_image(path):
        with open_image(path) as image:
            alpha = np.array(image.convert("RGBA").getchannel("A"))
        return torch.from_numpy(alpha)[None, None].float() / 255
    planes: list[Tensor] = []
    with open_file(path, "read alpha") as source:
        for frame in source.decode(source.streams.video[0]):
            at = (frame.time or 0.0) - origin(source) - start
            while len(planes) < count and at >= (len(planes) - 0.5) / fps:
                planes.append(torch.from_numpy(frame.to_ndarray(format="rgba")[..., 3].copy()))
            if len(planes) == count:
                break
    return torch.stack(planes)[:, None].float() / 255


def audio_mask(mask: Tensor, steps: int) -> Tensor:
    """A mask over time ``[n]`` on ``steps`` latent steps: float32 of 0 and 1, from the nearest earlier value."""
    return (F.interpolate(mask.float()[None, None], steps, mode="nearest")[0, 0] > MASK_THRESHOLD).float()
