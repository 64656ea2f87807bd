"""Video in: what a file holds, and its frames upright in RGB, by index or by time.

Times are seconds from the start of the file, so that frames and sound of one file stay in step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_media.color import HDRColorSpace, to_working_codes
from ltx_media.containers import opened, origin
from ltx_media.exr import exr_frames, read_exr
from ltx_media.fit import center_crop_fit, reflect_pad_fit, to_signed
from ltx_media.images import decode_image, is_image

HD_HEIGHT = 720  # untagged pictures of at least this height use the BT.709 matrix, smaller ones BT.601
COLORSPACE_UNSPECIFIED = 2
RATE_TOLERANCE = 0.01  # what rounded times may change the measured rate by
EARLY = 0.1  # share of a frame's time by which a frame may come late and still count as on screen
ROUNDED = 1e-3  # seconds by which containers that count milliseconds move a frame
STILL_FPS = Fraction(1)
# libswscale flags: bilinear, full chroma interpolation, accurate rounding. Its default darkens by a code or two.
ACCURATE_CONVERSION = 2 | 0x2000 | 0x40000


@dataclass(frozen=True)
class VideoInfo:
    """What a video or picture file holds. Sizes are those of the upright picture."""

    path: Path
    width: int
    height: int
    fps: Fraction  # average rate, exact
    frames: int
    rotation: int  # degrees counter-clockwise that turn a stored frame upright: 0, 90, 180 or 270
    variable_rate: bool  # frames are not evenly spaced
    has_audio: bool
    start: float = 0.0  # seconds from the start of the file to the first frame

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.frames / self.fps)


def probe_video(path: str | Path) -> VideoInfo:
    """Size, rate and length of the first video stream, or of a still. Raises ``MediaError`` for other files."""
    if is_image(path):
        height, width, _ = decode_image(path).shape
        return VideoInfo(Path(path), width, height, STILL_FPS, 1, 0, False, False)
    with _opened(path) as (source, stream):
        frame = next(source.decode(stream), None)
        if frame is None:
            raise MediaError(f"{path}: cannot read video: it holds no frame")
        rotation = _quarter_turn(frame)
        frames, declared = stream.frames, stream.average_rate or stream.guessed_rate
        fps, base = declared, stream.base_rate
        if not frames:
            frames, fps = _measured(source, stream)
            if declared and (not fps or abs(fps / declared - 1) < RATE_TOLERANCE):
                fps, base = declared, fps or base
        if not fps:
            raise MediaError(f"{path}: its video stream has no frame rate")
        width, height = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
        return VideoInfo(
            path=Path(path),
            width=width,
            height=height,
            fps=Fraction(fps),
            frames=frames,
            rotation=rotation,
            variable_rate=abs((base or fps) / fps - 1) > RATE_TOLERANCE,
            has_audio=bool(source.streams.audio),
            start=max((frame.time or 0.0) - origin(source), 0.0),
        )


def read_frames(path: str | Path, skip: int = 0, max_frames: int | None = None) -> Iterator[Tensor]:
    """Frames in presentation order as uint8 ``[h, w, 3]``: the first ``skip`` left out, at most ``max_frames`` given.

    A still is one frame. Raises ``MediaError`` when the file holds no such frame, or ends before its last one.
    """
    if is_image(path):
        yield decode_image(path)
        return
    stop = None if max_frames is None else skip + max_frames
    count = 0
    for count, (_, frame) in enumerate(islice(_decode(path), stop), 1):
        if count > skip:
            yield _to_rgb(frame)
    if count <= skip and max_frames != 0:
        raise MediaError(f"{path}: it holds {count} frames, expected more than {skip}")


def read_frames_between(path: str | Path, start: float, duration: float) -> Iterator[Tensor]:
    """The stored frames shown in ``[start, start + duration)`` seconds, as uint8 ``[h, w, 3]``.

    A file without timestamps is read by index at its average rate. Raises ``MediaError`` when no frame lies there.
    """
    count = 0
    for time, frame in _decode(path, start):
        if time is None:
            fps = probe_video(path).fps
            yield from read_frames(path, round(start * fps), round(duration * fps))
            return
        if time >= start + duration - ROUNDED:
            break
        if time >= start - ROUNDED:
            count += 1
            yield _to_rgb(frame)
    if not count:
        raise MediaError(f"{path}: it shows no frame from {start:g} s to {start + duration:g} s")


def read_frames_at(
    path: str | Path, fps: Fraction | float, max_frames: int | None = None, start: float = 0.0
) -> Iterator[Tensor]:
    """The frame on screen at ``start``, ``start + 1/fps``, ... seconds, as uint8 ``[h, w, 3]``: any rate made constant.

    The first frame counts as on screen before its time, the last one for its own length. A still is one frame. Raises
    ``MediaError`` when no frame lies there.
    """
    if is_image(path):
        yield decode_image(path)
        return
    fps, given, end = float(fps), 0, start
    shown: av.VideoFrame | None = None
    for time, frame in _decode(path, start):
        if time is None:
            raise MediaError(f"{path}: its frames carry no times, so their rate cannot be changed")
        while shown is not None and given != max_frames and start + (given + EARLY) / fps < time:
            yield _to_rgb(shown)
            given += 1
        if given == max_frames:
            return
        length = float(frame.duration * frame.time_base) or 1 / fps
        shown, end = frame, time + length - EARLY * min(length, 1 / fps)
    while shown is not None and given != max_frames and start + given / fps < end:
        yield _to_rgb(shown)
        given += 1
    if not given and max_frames != 0:
        raise MediaError(f"{path}: it shows no frame from {start:g} s on")


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
    if exr_paths := exr_frames(path)[:max_frames]:
        planes = (reflect_pad_fit(_planes(read_exr(exr)), height, width) for exr in exr_paths)
        frames = [to_working_codes(values, color_space, path).mul(2).sub(1).to(dtype) for values in planes]
    else:
        frames = fit_frames(read_frames(path, max_frames=max_frames), height, width, dtype)
    return torch.stack(frames, 2)


def fit_frames(frames: Iterator[Tensor], height: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """uint8 frames ``[h, w, 3]`` as ``[1, 3, height, width]`` in [-1, 1], fitted by a centre crop, one at a time."""
    return [to_signed(center_crop_fit(_planes(frame).float(), height, width)).to(dtype) for frame in frames]


def load_mask_video(path: str | Path, height: int, width: int, max_frames: int | None = None) -> Tensor:
    """A grey clip as float32 ``[1, 1, F, height, width]`` in [0, 1], fitted like ``load_video``."""
    return (load_video(path, height, width, max_frames).mean(1, keepdim=True) + 1) / 2


def _decode(path: str | Path, start: float = 0.0) -> Iterator[tuple[float | None, av.VideoFrame]]:
    """Decoded frames from the one on screen at ``start`` seconds or before, with their times."""
    with _opened(path) as (source, stream):
        stream.thread_type = "AUTO"
        zero = origin(source)
        if start > 0:
            source.seek(int((start + zero) / stream.time_base), stream=stream)
        count = 0
        decoded = source.decode(stream)
        while True:
            try:
                frame = next(decoded, None)
            except av.FFmpegError as error:
                raise MediaError(
                    f"{path}: damaged after frame {count} of {stream.frames or '?'}: {error.strerror}"
                ) from error
            if frame is None:
                return
            count += 1
            yield None if frame.pts is None else float(frame.pts * frame.time_base) - zero, frame


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    with opened(path, "read video") as source:
        if not source.streams.video:
            raise MediaError(f"{path}: it holds no picture, expected a video")
        yield source, source.streams.video[0]


def _measured(source: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, Fraction | None]:
    """How many frames a stream holds and their average rate, from the times of its packets."""
    source.seek(0)
    times = [packet.pts for packet in source.demux(stream) if packet.size]
    known = sorted(time for time in times if time is not None)
    if len(known) < 2 or known[0] == known[-1]:
        return len(times), None
    rate = (len(known) - 1) / ((known[-1] - known[0]) * Fraction(stream.time_base))
    return len(times), rate


def _quarter_turn(frame: av.VideoFrame) -> int:
    return round(frame.rotation / 90) * 90 % 360


def _to_rgb(frame: av.VideoFrame) -> Tensor:
    matrix = None
    if frame.colorspace == COLORSPACE_UNSPECIFIED and not frame.format.is_rgb and frame.height >= HD_HEIGHT:
        matrix = Colorspace.ITU709
    pixels = frame.to_ndarray(format="rgb24", src_colorspace=matrix, interpolation=ACCURATE_CONVERSION)
    return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, _quarter_turn(frame) // 90)))


def _planes(picture: Tensor) -> Tensor:
    return picture.permute(2, 0, 1)[None]  # [1, 3, h, w]
