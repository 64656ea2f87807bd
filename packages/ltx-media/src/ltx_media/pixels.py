"""Decoded frames as plain upright pictures: square pixels, RGB, opaque, SDR unless HDR is wanted.

Also pictures made to fit the size a model works at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, Interpolation
from PIL import ImageColor
from torch import Tensor
from torch.nn import functional as F

from ltx_core.errors import ConfigError, nearest_hint
from ltx_media.color import Primaries, convert_primaries, hlg_to_linear, pq_to_linear, srgb_to_linear, tone_map

HD_HEIGHT = 720  # untagged pictures of at least this height use the BT.709 matrix, smaller ones BT.601
COLORSPACE_UNSPECIFIED = 2
TRANSFERS: dict[int, Literal["PQ", "HLG"]] = {16: "PQ", 18: "HLG"}  # by code point of ITU-T H.273
SQUARE = 0.01  # share by which pixels may differ from squares and still count as such
YUV_WHITE = 255 * 256  # what libswscale makes of white in 16 bits
# Its default for 8 bits darkens by a code or two.
ACCURATE = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


@dataclass(frozen=True)
class Look:
    """Settings that sources are read with."""

    background: str = "black"  # behind transparent pictures, by name or as #rrggbb
    hdr: bool = False  # scene-linear light instead of sRGB codes


SDR_LOOK = Look()


def quarter_turn(frame: av.VideoFrame) -> int:
    """Degrees counter-clockwise that turn a stored frame upright: 0, 90, 180 or 270."""
    return round(frame.rotation / 90) * 90 % 360


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a stored pixel by its height; 1 where that is not said, or nearly so."""
    aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
    return Fraction(1) if abs(aspect - 1) < SQUARE else aspect


def plain_matrix(frame: av.VideoFrame) -> int | None:
    """The matrix of 8-bit 4:2:0 planes of limited range, 1 (BT.709) or 6 (BT.601); None for other frames."""
    if frame.format.name != "yuv420p" or frame.color_range not in (0, 1) or frame.color_trc in TRANSFERS:
        return None
    untagged = 1 if frame.height >= HD_HEIGHT else 6
    return {1: 1, COLORSPACE_UNSPECIFIED: untagged, 5: 6, 6: 6}.get(frame.colorspace)


def is_transparent(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def upright(frame: av.VideoFrame, aspect: Fraction = Fraction(1), look: Look = SDR_LOOK) -> Tensor:
    """One frame ``[h, w, 3]``: sRGB codes as uint8; with ``look.hdr`` light as float32.

    Light has Rec.709 primaries and diffuse white at 1; colours outside them are negative, highlights above 1.
    """
    pixels = _light(frame, aspect) if frame.color_trc in TRANSFERS else _codes(frame, aspect, look.background)
    if look.hdr and pixels.dtype == torch.uint8:
        pixels = srgb_to_linear(pixels / 255)
    elif not look.hdr and pixels.dtype != torch.uint8:
        pixels = to_bytes(tone_map(pixels))
    return torch.rot90(pixels, quarter_turn(frame) // 90).contiguous()


def composite(pixels: Tensor, background: str) -> Tensor:
    """uint8 ``[h, w, 4]`` over a colour: uint8 ``[h, w, 3]``."""
    alpha, color = pixels[..., 3:].float() / 255, torch.tensor(parse_color(background)).float()
    return torch.lerp(color, pixels[..., :3].float(), alpha).round().to(torch.uint8)


def parse_color(name: str) -> tuple[int, ...]:
    """Red, green and blue of a colour: an HTML name, or ``#rrggbb``. Raises ``ConfigError``."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        hint = nearest_hint(name, list(ImageColor.colormap)) or ", expected a name such as white, or #rrggbb"
        raise ConfigError(f"background is {name!r}{hint}") from None


def to_bytes(values: Tensor) -> Tensor:
    """Values in [0, 1] as 0..255."""
    return values.float().mul(255).round().clamp(0, 255).to(torch.uint8)


def _codes(frame: av.VideoFrame, aspect: Fraction, background: str) -> Tensor:
    matrix = None
    if frame.colorspace == COLORSPACE_UNSPECIFIED and not frame.format.is_rgb and frame.height >= HD_HEIGHT:
        matrix = Colorspace.ITU709
    if is_transparent(frame):
        return composite(_convert(frame, aspect, "rgba", matrix), background)
    return _convert(frame, aspect, "rgb24", matrix)


def _light(frame: av.VideoFrame, aspect: Fraction) -> Tensor:
    white = 65535 if frame.format.is_rgb else YUV_WHITE
    codes = _convert(frame, aspect, "rgb48le", Colorspace.BT2020).float() / white
    light = pq_to_linear(codes) if TRANSFERS[frame.color_trc] == "PQ" else hlg_to_linear(codes)
    return convert_primaries(light, Primaries.REC2020, Primaries.REC709, dim=-1)


def _convert(frame: av.VideoFrame, aspect: Fraction, pixel_format: str, matrix: Colorspace | None) -> Tensor:
    scaling = Interpolation.BILINEAR if aspect == 1 else Interpolation.BICUBIC
    pixels = frame.to_ndarray(
        format=pixel_format,
        width=round(frame.width * aspect),
        src_colorspace=matrix,
        interpolation=scaling | ACCURATE,
    )
    return torch.from_numpy(np.ascontiguousarray(pixels.astype(np.int32) if pixels.dtype == np.uint16 else pixels))


# Fitting: pictures are [N, C, h, w], values keep their range --------------------------------------------------------


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
