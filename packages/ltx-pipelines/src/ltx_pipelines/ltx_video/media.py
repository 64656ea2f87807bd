"""Pictures and clips as LTX-Video wants to see them: cropped, slightly blurred, with the marks of H.264 on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_media.fit import to_signed
from ltx_pipelines.ltx_video.tokens import resize_video
from ltx_pipelines.utils.media_io import decode_image, read_frames, recompress_image

CRF = 29  # of the H.264 pass every conditioning picture goes through
BLUR = (0.27406862, 0.45186276, 0.27406862)  # Gaussian of deviation 1 pixel on three taps
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class PaddedSize:
    """A requested size and the one the model works at: sides up to multiples of 32, frames up to 8k+1."""

    height: int
    width: int
    frames: int
    padded_height: int
    padded_width: int
    padded_frames: int

    @classmethod
    def of(cls, height: int, width: int, frames: int, factors: SpatioTemporalScaleFactors) -> PaddedSize:
        """The smallest working size around a request."""

        def up(size: int, step: int) -> int:
            return -(-size // step) * step

        return cls(
            height,
            width,
            frames,
            up(height, factors.height),
            up(width, factors.width),
            up(frames - 1, factors.time) + 1,
        )

    @property
    def top(self) -> int:
        """Rows above the picture; a surplus row is below it."""
        return (self.padded_height - self.height) // 2

    @property
    def left(self) -> int:
        """Columns left of the picture; a surplus column is right of it."""
        return (self.padded_width - self.width) // 2

    def pad(self, video: Tensor) -> Tensor:
        """``[1, 3, f, H, W]`` in [-1, 1] at the requested size, with grey around it."""
        right = self.padded_width - self.width - self.left
        bottom = self.padded_height - self.height - self.top
        return F.pad(video, (self.left, right, self.top, bottom))

    def crop(self, chunk: Tensor, first: int = 0) -> Tensor:
        """``[f, padded H, padded W, 3]`` that begins at frame ``first``, without what was padded."""
        rows = slice(self.top, self.top + self.height)
        columns = slice(self.left, self.left + self.width)
        return chunk[: max(self.frames - first, 0), rows, columns]


def load_condition(path: str | Path, size: PaddedSize, start_frame: int, factors: SpatioTemporalScaleFactors) -> Tensor:
    """A picture or clip as a condition ``[1, 3, f, padded H, padded W]`` in [-1, 1].

    A clip is cut to the 8k+1 frames that fit behind ``start_frame``. Raises ``MediaError``.
    """
    frames = read_media(path, max(size.padded_frames - start_frame, 1))
    frames = frames[: factors.snap_frames(len(frames))]
    video = soften(crop_to_aspect(frames, size.height / size.width))
    return size.pad(resize_video(video, size.height, size.width))


def load_source(path: str | Path, size: PaddedSize) -> Tensor:
    """A clip to start from, ``[1, 3, padded frames, padded H, padded W]`` in [-1, 1]; its last frame fills the rest.

    Raises ``MediaError`` for a clip shorter than the request.
    """
    frames = read_media(path, size.padded_frames)
    if len(frames) < size.frames:
        raise MediaError(f"{path}: it holds {len(frames)} frames, expected at least num_frames, {size.frames}")
    frames = crop_to_aspect(frames, size.height / size.width)
    video = soften(torch.stack([shrink(frame, size.height, size.width) for frame in frames]))
    video = size.pad(resize_video(video, size.height, size.width))
    missing = size.padded_frames - video.shape[2]
    return torch.cat((video, video[:, :, -1:].expand(-1, -1, missing, -1, -1)), 2) if missing else video


def read_media(path: str | Path, max_frames: int) -> Tensor:
    """uint8 frames ``[f, h, w, 3]`` of a clip; one of a picture."""
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return decode_image(path)[None]
    return torch.stack(list(read_frames(path, max_frames=max_frames)))


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
