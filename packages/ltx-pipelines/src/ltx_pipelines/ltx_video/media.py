"""Pictures and clips as LTX-Video wants to see them: cropped, slightly blurred, with the marks of H.264 on them."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.types import SpatioTemporalScaleFactors
from ltx_media.pixels import to_signed
from ltx_media.source import Wanted, normalize_source
from ltx_pipelines.planning.layout import PaddedSize
from ltx_pipelines.utils.media_io import recompress_image

CRF = 29  # of the H.264 pass every conditioning picture goes through
BLUR = (0.27406862, 0.45186276, 0.27406862)  # Gaussian of deviation 1 pixel on three taps


def pad(video: Tensor, size: PaddedSize) -> Tensor:
    """``[1, 3, f, H, W]`` in [-1, 1] at the size that is asked for, with grey around it."""
    right = size.padded.width - size.asked.width - size.left
    bottom = size.padded.height - size.asked.height - size.top
    return F.pad(video, (size.left, right, size.top, bottom))


def crop(chunk: Tensor, size: PaddedSize) -> Tensor:
    """``[f, padded H, padded W, 3]`` without what was padded around it."""
    rows = slice(size.top, size.top + size.asked.height)
    columns = slice(size.left, size.left + size.asked.width)
    return chunk[:, rows, columns]


def resize_video(video: Tensor, height: int, width: int) -> Tensor:
    """``[1, C, F, H, W]`` at another size, each frame bilinearly between pixel centres."""
    if tuple(video.shape[-2:]) == (height, width):
        return video
    frames = video.transpose(1, 2).flatten(0, 1)  # [F, C, H, W]
    frames = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
    return frames.unflatten(0, (video.shape[0], -1)).transpose(1, 2)


def wanted_media(size: PaddedSize, start_frame: int = 0, background: str = "black") -> Wanted:
    """A picture or clip at the time and size of the clip that shows it from ``start_frame`` on."""
    frames, asked = max(size.padded.frames - start_frame, 1), size.asked
    return Wanted(asked.height, asked.width, frames, asked.fps, background=background)


def load_condition(path: str, size: PaddedSize, wanted: Wanted, factors: SpatioTemporalScaleFactors) -> Tensor:
    """A picture or clip as a condition ``[1, 3, f, padded H, padded W]`` in [-1, 1].

    A clip is cut to 8k+1 frames. Raises ``MediaError``.
    """
    frames = read_media(path, wanted)
    frames = frames[: factors.snap_frames(len(frames))]
    height, width = size.asked.height, size.asked.width
    return pad(resize_video(soften(crop_to_aspect(frames, height / width)), height, width), size)


def load_source(path: str, size: PaddedSize, wanted: Wanted) -> Tensor:
    """A clip to start from, ``[1, 3, padded frames, padded H, padded W]`` in [-1, 1]; its last frame fills the rest.

    Raises ``MediaError``.
    """
    frames, height, width = read_media(path, wanted), size.asked.height, size.asked.width
    frames = crop_to_aspect(frames, height / width)
    video = soften(torch.stack([shrink(frame, height, width) for frame in frames]))
    video = pad(resize_video(video, height, width), size)
    missing = size.padded.frames - video.shape[2]
    return torch.cat((video, video[:, :, -1:].expand(-1, -1, missing, -1, -1)), 2) if missing else video


def read_media(path: str, wanted: Wanted) -> Tensor:
    """uint8 frames ``[f, h, w, 3]`` of a clip, at its own size; one of a picture."""
    video = normalize_source(path, replace(wanted, height=None, width=None)).video
    return ((video[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)


def crop_to_aspect(frames: Tensor, aspect: float) -> Tensor:
    """The centre of ``[f, h, w, 3]`` whose height is ``aspect`` times its width; sides are rounded down."""
    height, width = frames.shape[1:3]
    new_height, new_width = min(height, int(width * aspect)), min(width, int(height / aspect))
    new_height, new_width = max(new_height, 1), max(new_width, 1)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return frames[:, top : top + new_height, left : left + new_width]


def shrink(frame: Tensor, height: int, width: int) -> Tensor:
    """uint8 ``[h, w, 3]`` at another size, bilinearly and with antialiasing."""
    planes = frame.permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return planes[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def soften(frames: Tensor) -> Tensor:
    """uint8 ``[f, h, w, 3]``, each frame blurred and through H.264, as ``[1, 3, f, h, w]`` in [-1, 1].

    Odd sides lose a row or column.
    """
    seen = torch.stack([recompress_image(blur(frame), CRF) for frame in frames])
    return to_signed(seen.permute(3, 0, 1, 2)[None])


def blur(frame: Tensor) -> Tensor:
    """A 3x3 Gaussian blur of uint8 ``[h, w, 3]``, mirrored at its edges; pictures of one row or column stay."""
    if min(frame.shape[:2]) < 2:
        return frame
    taps = torch.tensor(BLUR)
    planes = F.pad(frame.permute(2, 0, 1)[:, None].float(), (1, 1, 1, 1), mode="reflect")  # [3, 1, h + 2, w + 2]
    blurred = F.conv2d(F.conv2d(planes, taps.view(1, 1, 3, 1)), taps.view(1, 1, 1, 3))
    return blurred[:, 0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
