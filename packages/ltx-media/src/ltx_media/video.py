"""Video in: what a file holds, and its frames upright in RGB, by index or by time."""

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
from ltx_media.errors import media_errors
from ltx_media.exr import exr_frames, read_exr
from ltx_media.fit import center_crop_fit, reflect_pad_fit, to_signed

HD_HEIGHT = 720  # untagged pictures of at least this height use the BT.709 matrix, smaller ones BT.601
COLORSPACE_UNSPECIFIED = 2
RATE_TOLERANCE = 0.01  # what rounded times may change the measured rate by
# libswscale flags: bilinear, full chroma interpolation, accurate rounding. Its default darkens by a code or two.
ACCURATE_CONVERSION = 2 | 0x2000 | 0x40000


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. Sizes are those of the upright picture."""

    path: Path
    width: int
    height: int
    fps: Fraction  # average rate, exact
    frames: int
    rotation: int  # degrees counter-clockwise that turn a stored frame upright: 0, 90, 180 or 270
    variable_rate: bool  # frames are not evenly spaced
    has_audio: bool

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.frames / self.fps)


def probe_video(path: str | Path) -> VideoInfo:
    """Size, rate and length of the first video stream. Raises ``MediaError`` for files without one."""
    with _opened(path) as (source, stream):
        frame = _first_frame(source, stream, path)
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
        )


def read_frames(path: str | Path, skip: int = 0, max_frames: int | None = None) -> Iterator[Tensor]:
    """Frames in presentation order as uint8 ``[h, w, 3]``: the first ``skip`` left out, at most ``max_frames`` given.

    Raises ``MediaError`` when the file holds no such frame, or ends before its last one.
    """
    stop = None if max_frames is None else skip + max_frames
    count = 0
    for count, (_, frame) in enumerate(islice(_decode(path), stop), 1):
        if count > skip:
            yield _to_rgb(frame)
    if count <= skip and max_frames != 0:
        raise MediaError(f"{path}: it holds {count} frames, expected more than {skip}")


def read_frames_between(path: str | Path, start: float, duration: float) -> Iterator[Tensor]:
    """Frames shown in ``[start, start + duration)`` seconds, as uint8 ``[h, w, 3]``.

    A file without timestamps is read by index at its average rate. Raises ``MediaError`` when no frame lies there.
    """
    count = 0
    for time, frame in _decode(path, start):
        if time is None:
            fps = probe_video(path).fps
            yield from read_frames(path, round(start * fps), round(duration * fps))
            return
        if time >= start + duration:
            break
        if time >= start:
            count += 1
            yield _to_rgb(frame)
    if not count:
        raise MediaError(f"{path}: it shows no frame from {start:g} s to {start + duration:g} s")


def read_frames_at(path: str | Path, fps: Fraction, max_frames: int | None = None) -> Iterator[Tensor]:
    """The frame on screen at 0, 1/fps, 2/fps, ... seconds, as uint8 ``[h, w, 3]``: a variable rate made constant."""
    given, shown = 0, None
    for time, frame in _decode(path):
        if time is None:
            raise MediaError(f"{path}: its frames carry no times, so their rate cannot be changed")
        while shown is not None and Fraction(given) / fps < Fraction(time).limit_denominator(1_000_000):
            if given == max_frames:
                return
            yield shown
            given += 1
        shown = _to_rgb(frame)
    if shown is None:
        raise MediaError(f"{path}: it holds no frame")
    if given != max_frames:
        yield shown


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
    """Decoded frames with their times in seconds, counted from the start of the file."""
    with _opened(path) as (source, stream):
        stream.thread_type = "AUTO"
        origin = (source.start_time or 0) / av.time_base
        if start > 0:
            source.seek(int((start + origin) / stream.time_base), stream=stream)
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
                break
            count += 1
            yield None if frame.pts is None else float(frame.pts * frame.time_base) - origin, frame
    if missing := _missing_bytes(path):
        raise MediaError(f"{path}: truncated after frame {count} of {stream.frames}: {missing} bytes are missing")


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    with media_errors(path, "read video"), av.open(str(path)) as source:
        if not source.streams.video:
            raise MediaError(f"{path}: it holds no picture, expected a video")
        yield source, source.streams.video[0]


def _first_frame(source: av.container.InputContainer, stream: av.VideoStream, path: str | Path) -> av.VideoFrame:
    frame = next(source.decode(stream), None)
    if frame is None:
        missing = _missing_bytes(path)
        cause = f"{missing} bytes are missing at its end" if missing else "it holds no frame"
        raise MediaError(f"{path}: cannot read video: {cause}")
    return frame


def _measured(source: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, Fraction | None]:
    """How many frames a stream holds and their average rate, from the times of its packets."""
    source.seek(0)
    times = [packet.pts for packet in source.demux(stream) if packet.size]
    known = sorted(time for time in times if time is not None)
    if len(known) < 2 or known[0] == known[-1]:
        return len(times), None
    rate = (len(known) - 1) / ((known[-1] - known[0]) * Fraction(stream.time_base))
    return len(times), rate


def _missing_bytes(path: str | Path) -> int:
    """How many bytes the last top-level box of an MP4 or MOV claims beyond the end of the file."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        position = 0
        while position + 8 <= size:
            file.seek(position)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if position == 0 and kind not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return 0
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length < 8:  # 0: up to the end of the file
                return 0
            position += length
    return max(position - size, 0)


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
