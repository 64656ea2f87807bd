"""Fitting pictures to the size a model works at. Pictures are ``[N, C, h, w]``, values keep their range."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def center_crop_fit(pictures: Tensor, height: int, width: int) -> Tensor:
    """Scale ``[N, C, h, w]`` to cover ``height x width`` and cut the centre out.

    Bilinear without antialiasing, sizes rounded up, offsets rounded down. uint8 stays uint8.
    """
    h, w = pictures.shape[-2:]
    scale = max(height / h, width / w)
    pictures = _resize(pictures, math.ceil(h * scale), math.ceil(w * scale))
    top, left = (pictures.shape[-2] - height) // 2, (pictures.shape[-1] - width) // 2
    return pictures[..., top : top + height, left : left + width]


def reflect_pad_fit(pictures: Tensor, height: int, width: int, shrink: int = 1) -> Tensor:
    """Shrink ``[N, C, h, w]`` until ``height x width`` holds it, then fill bottom and right with its mirror image.

    ``shrink`` is by how much at least. Pictures are never enlarged. Where the fill is not smaller than the picture the
    last row and column repeat instead.
    """
    h, w = pictures.shape[-2:]
    scale = min(height / h, width / w, 1 / shrink)
    if scale < 1:
        pictures = _resize(pictures, round(h * scale), round(w * scale))
        h, w = pictures.shape[-2:]
    bottom, right = height - h, width - w
    mode = "reflect" if bottom < h and right < w else "replicate"
    return F.pad(pictures, (0, right, 0, bottom), mode=mode)


def long_side_fit(pictures: Tensor, long_side: int) -> Tensor:
    """Scale ``[N, C, h, w]`` so that its longer side is ``long_side``; the other side is rounded down."""
    h, w = pictures.shape[-2:]
    scale = long_side / max(h, w)
    return center_crop_fit(pictures, max(int(h * scale), 1), max(int(w * scale), 1))


def to_signed(pictures: Tensor) -> Tensor:
    """Values 0..255 as float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def covering_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """``(height, width)`` scaled to cover ``target`` exactly on one side; the other is truncated to whole pixels."""
    (height, width), (target_height, target_width) = size, target
    if width * target_height > height * target_width:
        return target_height, max(int(width * target_height / height), target_width)
    return max(int(height * target_width / width), target_height), target_width


def resize_and_crop(
    frames: Tensor, height: int, width: int, mode: str = "bicubic", crop: tuple[float, float] = (0.5, 0.5)
) -> Tensor:
    """Scale ``[N, C, h, w]`` to cover ``height x width`` and cut that out.

    ``mode`` is bicubic (antialiased) or nearest; ``crop`` is where to cut, from 0 (top, left) to 1 (bottom, right).
    """
    size = covering_size((frames.shape[-2], frames.shape[-1]), (height, width))
    if size != tuple(frames.shape[-2:]):
        options = {"antialias": True, "align_corners": False} if mode == "bicubic" else {}
        frames = F.interpolate(frames, size, mode=mode, **options)
    top, left = int((size[0] - height) * crop[0]), int((size[1] - width) * crop[1])
    return frames[..., top : top + height, left : left + width]


def _resize(pictures: Tensor, height: int, width: int) -> Tensor:
    if pictures.shape[-2:] == (height, width):
        return pictures
    return F.interpolate(pictures, (height, width), mode="bilinear", align_corners=False)
