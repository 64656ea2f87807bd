"""The one function that brings a clip or picture to what a task wants, and says what it changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ltx_media.color import ACESCCT, HDRColorSpace, Primaries, to_working_codes
from ltx_media.exr import exr_frames, is_exr, read_exr
from ltx_media.images import is_image, recompress_image
from ltx_media.pixels import SDR_LOOK, Look, center_crop_fit, reflect_pad_fit, resize_and_crop, to_signed
from ltx_media.video import STILL_FPS, VideoInfo, probe_video, read_frames, read_frames_at

SAME_RATE = 1e-3  # relative difference of frame rates that counts as none


@dataclass(frozen=True)
class Wanted:
    """A task's wishes for a clip or picture."""

    height: int | None  # pixels; None: as the file has it
    width: int | None
    frames: int | None = None  # at most
    fps: float | None = None  # None: as the file has it, evenly spaced
    start: float = 0.0  # seconds
    #: How a picture of another shape is made to fit: bilinear and cut in the middle, antialiased and cut at ``at``,
    #: or continued at the bottom and the right by its mirror image.
    fit: Literal["crop", "cover", "mirror"] = "crop"
    at: tuple[float, float] = (0.5, 0.5)  # from 0 (top, left) to 1 (bottom, right)
    shrink: int = 1  # times that it is made smaller before it is continued
    crf: float = 0  # above 0 stills first pass through H.264
    background: str = "black"  # behind transparent pictures
    color_space: HDRColorSpace | None = None  # of EXR files; with it all sources become ACEScct codes
    sound: bool = False  # whether its sound is heard too
    dtype: torch.dtype = torch.float32

    @property
    def look(self) -> Look:
        return Look(self.background, self.color_space is not None)


class Change(NamedTuple):
    """Something about a source that is not as its file has it."""

    what: str  # rotation, pixels, colour, background, size, rate, length, channels
    how: str


@dataclass(frozen=True)
class Source:
    """A source as a task wanted it."""

    video: Tensor  # [1, 3, F, height, width] in [-1, 1]
    fps: float
    changes: tuple[Change, ...]


def normalize_source(path: str | Path, wanted: Wanted) -> Source:
    """Read a clip, a picture, an EXR file or a folder of EXR files as ``wanted``. Raises ``MediaError``."""
    if is_exr(path) or exr_frames(path):
        return Source(_exr(path, wanted), wanted.fps or float(STILL_FPS), ())
    info = probe_video(path)
    frames = source_frames(info, wanted.fps, wanted.frames, wanted.start, wanted.look)
    fitted = [_fit_as_codes(frame, wanted).to(wanted.dtype) for frame in _seen(frames, wanted)]
    return Source(torch.stack(fitted, 2), sampling_rate(info, wanted.fps) or float(info.fps), changes_of(info, wanted))


def source_frames(
    info: VideoInfo, fps: float | None = None, frames: int | None = None, start: float = 0.0, look: Look = SDR_LOOK
) -> Iterator[Tensor]:
    """At most so many frames of a file from ``start`` on, at its own size: the stored ones, or those shown at a rate.

    They are stored ones where those are evenly spaced at ``fps``. Raises ``MediaError``.
    """
    rate = sampling_rate(info, fps)
    if rate is None and not start:
        return read_frames(info.path, max_frames=frames, look=look)
    return read_frames_at(info.path, rate or float(info.fps), frames, start, look)


def load_image(
    path: str | Path, height: int, width: int, crf: float = 0, color_space: HDRColorSpace | None = None
) -> Tensor:
    """An image condition ``[1, 3, 1, height, width]``, float32 in [-1, 1], fitted by a centre crop.

    ``crf`` > 0 first passes the picture through H.264, so that it looks like a video frame to the model. An EXR file
    needs ``color_space`` and is never recompressed. Raises ``MediaError``.
    """
    return normalize_source(path, Wanted(height, width, 1, crf=crf, color_space=color_space)).video


def load_video(
    path: str | Path,
    height: int,
    width: int,
    max_frames: int | None = None,
    color_space: HDRColorSpace | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Frames of a clip as ``[1, 3, F, height, width]`` in [-1, 1], fitted by a centre crop.

    A folder of EXR files is read in order of their names, fitted by reflection and taken to ACEScct codes, and needs
    ``color_space``. Raises ``MediaError``.
    """
    fit: Literal["crop", "mirror"] = "mirror" if exr_frames(path) else "crop"
    wanted = Wanted(height, width, max_frames, fit=fit, color_space=color_space, dtype=dtype)
    return normalize_source(path, wanted).video


def load_mask_video(
    path: str | Path, height: int, width: int, max_frames: int | None = None, fps: float | None = None
) -> Tensor:
    """A grey clip as float32 ``[1, 1, F, height, width]`` in [0, 1], fitted like ``load_video``, taken by time."""
    return (normalize_source(path, Wanted(height, width, max_frames, fps)).video.mean(1, keepdim=True) + 1) / 2


def changes_of(info: VideoInfo, wanted: Wanted) -> tuple[Change, ...]:
    """Changes that `normalize_source` makes of a file, told from its header alone."""
    changes = []
    if info.rotation:
        changes.append(Change("rotation", f"turned upright by {360 - info.rotation} degrees"))
    if info.pixel_aspect != 1:
        changes.append(Change("pixels", f"pixels {float(info.pixel_aspect):.3g} times as wide as high made square"))
    if info.transfer and wanted.color_space is None:
        changes.append(Change("colour", f"HDR ({info.transfer}) tone-mapped to SDR"))
    if info.transparent:
        changes.append(Change("background", f"transparent parts filled with {wanted.background}"))
    size = wanted.height or info.height, wanted.width or info.width
    if (info.height, info.width) != size:
        verb = "continued by its mirror image" if wanted.fit == "mirror" else _resize_verb(info, *size)
        changes.append(Change("size", f"{info.width} x {info.height} {verb} to {size[1]} x {size[0]}"))
    rate = sampling_rate(info, wanted.fps)
    if rate is not None:
        before = "frames of varying length" if info.variable_rate else f"{float(info.fps):.5g} fps"
        changes.append(Change("rate", f"{before} sampled by time at {rate:.5g} fps"))
    length = info.duration - wanted.start
    kept = length if wanted.frames is None else wanted.frames / (rate or float(info.fps))
    if kept < length - 0.5 / (rate or float(info.fps)) and not is_image(info.path):
        changes.append(Change("length", f"{length:.2f} s cut to {kept:.2f} s"))
    return (*changes, *(sound_changes(info.channels) if wanted.sound else ()))


def sound_changes(channels: int) -> tuple[Change, ...]:
    """Changes of a sound of so many channels for a model that hears two."""
    return (Change("channels", f"{channels} channels of sound heard as two"),) if channels > 2 else ()


def sampling_rate(info: VideoInfo, fps: float | None) -> float | None:
    """The rate frames must be picked at by time; None where the stored frames are evenly spaced at the wanted rate."""
    if is_image(info.path):
        return None
    if fps is None:
        return float(info.fps) if info.variable_rate else None
    return None if abs(float(info.fps) / fps - 1) < SAME_RATE and not info.variable_rate else fps


def _seen(frames: Iterable[Tensor], wanted: Wanted) -> Iterator[Tensor]:
    """Frames ``[1, 3, h, w]``: codes 0..255, or light; stills with the marks of H.264."""
    for frame in frames:
        seen = recompress_image(frame, wanted.crf) if frame.dtype == torch.uint8 else frame
        yield seen.permute(2, 0, 1)[None].float()


def _fit_as_codes(frame: Tensor, wanted: Wanted) -> Tensor:
    """A frame as the model sees it, ``[1, 3, H, W]`` in [-1, 1]: sRGB codes, or ACEScct codes of its light."""
    fitted = _fit(frame, wanted)
    if wanted.color_space is None:
        return to_signed(fitted.clamp(0, 255))
    return ACESCCT.working_from(fitted, Primaries.REC709) * 2 - 1


def _fit(frame: Tensor, wanted: Wanted) -> Tensor:
    size = wanted.height or frame.shape[2], wanted.width or frame.shape[3]
    if wanted.fit == "cover":
        return resize_and_crop(frame, *size, crop=wanted.at)
    return reflect_pad_fit(frame, *size, wanted.shrink) if wanted.fit == "mirror" else center_crop_fit(frame, *size)


def _exr(path: str | Path, wanted: Wanted) -> Tensor:
    """EXR files fitted as light, then taken to ACEScct codes; the files of a folder in order of their names."""
    paths = exr_frames(path)[: wanted.frames] or [Path(path)]
    planes = [_fit(read_exr(one).permute(2, 0, 1)[None], wanted) for one in paths]
    codes = [to_working_codes(values, wanted.color_space, path).mul(2).sub(1).to(wanted.dtype) for values in planes]
    return torch.stack(codes, 2)


def _resize_verb(info: VideoInfo, height: int, width: int) -> str:
    aspect = info.width * height / (info.height * width)
    return "scaled" if abs(aspect - 1) * min(height, width) < 1 else "scaled and cropped"
