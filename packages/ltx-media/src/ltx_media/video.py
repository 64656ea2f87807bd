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
from typing import Literal

import av
import numpy as np
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_media import images
from ltx_media.color import srgb_to_linear
from ltx_media.containers import open_file, origin
from ltx_media.files import media_errors
from ltx_media.images import check_size, decode_image, is_image, open_image
from ltx_media.pixels import (
    SDR_LOOK,
    TRANSFERS,
    Look,
    is_transparent,
    pixel_aspect,
    plain_matrix,
    quarter_turn,
    upright,
)

RATE_TOLERANCE = 0.01  # what rounded times may change the measured rate by
EARLY = 0.1  # share of a frame's time by which a frame may come late and still count as on screen
ROUNDED = 1e-3  # seconds by which containers that count milliseconds move a frame
STILL_FPS = Fraction(1)


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video or picture file. Sizes are those of the upright picture with square pixels."""

    path: Path
    width: int
    height: int
    fps: Fraction  # average rate, exact
    frames: int
    rotation: int  # degrees counter-clockwise that turn a stored frame upright: 0, 90, 180 or 270
    variable_rate: bool  # frames are not evenly spaced
    has_audio: bool
    start: float = 0.0  # seconds from the start of the file to the first frame
    pixel_aspect: Fraction = Fraction(1)  # width of a stored pixel by its height
    transfer: Literal["PQ", "HLG"] | None = None  # of an HDR picture
    transparent: bool = False
    channels: int = 0  # of the sound
    matrix: int | None = None  # of planes that an MP4 holds as they are (`plain_matrix`)

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.frames / self.fps)


def probe_video(path: str | Path) -> VideoInfo:
    """Size, rate and length of the first video stream, or of a still. Raises ``MediaError`` for other files."""
    if is_image(path):
        return _probe_still(path)
    with _open(path) as (source, stream):
        frame = next(source.decode(stream), None)
        if frame is None:
            raise MediaError(f"{path}: cannot read video: it holds no frame")
        rotation, aspect = quarter_turn(frame), pixel_aspect(stream)
        frames, declared = stream.frames, stream.average_rate or stream.guessed_rate
        fps, base = declared, stream.base_rate
        if not frames:
            frames, fps = _measure(source, stream)
            if declared and (not fps or abs(fps / declared - 1) < RATE_TOLERANCE):
                fps, base = declared, fps or base
        if not fps:
            raise MediaError(f"{path}: its video stream has no frame rate")
        size = round(frame.width * aspect), frame.height
        sound = source.streams.audio[0] if source.streams.audio else None
        return VideoInfo(
            path=Path(path),
            width=size[rotation % 180 != 0],
            height=size[rotation % 180 == 0],
            fps=Fraction(fps),
            frames=frames,
            rotation=rotation,
            variable_rate=abs((base or fps) / fps - 1) > RATE_TOLERANCE,
            has_audio=sound is not None and sound.codec_context is not None,
            start=max((frame.time or 0.0) - origin(source), 0.0),
            pixel_aspect=aspect,
            transfer=TRANSFERS.get(frame.color_trc),
            transparent=is_transparent(frame),
            matrix=None if rotation or aspect != 1 else plain_matrix(frame),
            channels=0 if sound is None or sound.codec_context is None else sound.codec_context.channels,
        )


def _probe_still(path: str | Path) -> VideoInfo:
    with open_image(path) as image:
        turn, size, transparent = images.quarter_turn(image), image.size, image.has_transparency_data
    width, height = reversed(size) if turn % 180 else size
    return VideoInfo(Path(path), width, height, STILL_FPS, 1, turn, False, False, transparent=transparent)


def read_frames(
    path: str | Path, skip: int = 0, max_frames: int | None = None, look: Look = SDR_LOOK
) -> Iterator[Tensor]:
    """Frames in presentation order as uint8 ``[h, w, 3]``: the first ``skip`` left out, at most ``max_frames`` given.

    A still is one frame; with ``look.hdr`` frames are light (`upright`). Raises ``MediaError`` when the file holds no
    such frame, or is damaged.
    """
    if is_image(path):
        yield _still(path, look)
        return
    stop = None if max_frames is None else skip + max_frames
    count = 0
    for count, frame in enumerate(islice(_decode(path), stop), 1):
        if count > skip:
            yield frame.picture(look)
    if count <= skip and max_frames != 0:
        raise MediaError(f"{path}: it holds {count} frames, expected more than {skip}")


def read_planes(path: str | Path) -> Iterator[np.ndarray]:
    """The stored planes of every frame, uint8 ``[h * 3 / 2, w]``, of a file that has a `VideoInfo.matrix`."""
    for frame in _decode(path):
        yield frame.frame.to_ndarray()


def read_frames_between(path: str | Path, start: float, duration: float, look: Look = SDR_LOOK) -> Iterator[Tensor]:
    """The stored frames shown in ``[start, start + duration)`` seconds, as uint8 ``[h, w, 3]``.

    A file without timestamps is read by index at its average rate. Raises ``MediaError`` when no frame lies there.
    """
    count = 0
    for frame in _decode(path, start):
        if frame.time is None:
            fps = probe_video(path).fps
            yield from read_frames(path, round(start * fps), round(duration * fps), look)
            return
        if frame.time >= start + duration - ROUNDED:
            break
        if frame.time >= start - ROUNDED:
            count += 1
            yield frame.picture(look)
    if not count:
        raise MediaError(f"{path}: it shows no frame from {start:g} s to {start + duration:g} s")


def read_frames_at(
    path: str | Path,
    fps: Fraction | float,
    max_frames: int | None = None,
    start: float = 0.0,
    look: Look = SDR_LOOK,
) -> Iterator[Tensor]:
    """The frame on screen at ``start``, ``start + 1/fps``, ... seconds, as uint8 ``[h, w, 3]``: any rate made constant.

    The first frame counts as on screen before its time, the last one for its own length. A still is one frame. Raises
    ``MediaError`` when no frame lies there.
    """
    if is_image(path):
        yield _still(path, look)
        return
    fps, given, end = float(fps), 0, start
    shown: _Frame | None = None
    for frame in _decode(path, start):
        if frame.time is None:
            raise MediaError(f"{path}: its frames carry no times, so their rate cannot be changed")
        while shown is not None and given != max_frames and start + (given + EARLY) / fps < frame.time:
            yield shown.picture(look)
            given += 1
        if given == max_frames:
            return
        length = frame.length or 1 / fps
        shown, end = frame, frame.time + length - EARLY * min(length, 1 / fps)
    while shown is not None and given != max_frames and start + given / fps < end:
        yield shown.picture(look)
        given += 1
    if not given and max_frames != 0:
        raise MediaError(f"{path}: it shows no frame from {start:g} s on")


@dataclass(frozen=True)
class _Frame:
    """A decoded frame of a file."""

    path: str | Path
    frame: av.VideoFrame
    aspect: Fraction
    time: float | None  # seconds from the start of the file

    @property
    def length(self) -> float:
        """Seconds; 0 where that is not known."""
        return float((self.frame.duration or 0) * self.frame.time_base)

    def picture(self, look: Look) -> Tensor:
        with media_errors(self.path, "show a frame"):  # whose pixel format nothing converts
            return upright(self.frame, self.aspect, look)


def _still(path: str | Path, look: Look) -> Tensor:
    pixels = decode_image(path, look.background)
    return srgb_to_linear(pixels / 255) if look.hdr else pixels


def _decode(path: str | Path, start: float = 0.0) -> Iterator[_Frame]:
    """Decoded frames from the one on screen at ``start`` seconds or before."""
    with _open(path) as (source, stream):
        stream.thread_type = "AUTO"
        zero, aspect = origin(source), pixel_aspect(stream)
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
            yield _Frame(path, frame, aspect, None if frame.pts is None else float(frame.pts * frame.time_base) - zero)


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    with open_file(path, "read video") as source:
        if not source.streams.video:
            raise MediaError(f"{path}: it holds no picture, expected a video")
        stream = source.streams.video[0]
        if stream.codec_context is None:
            raise MediaError(f"{path}: cannot read video: its picture is of no known kind")
        check_size(path, stream.codec_context.width, stream.codec_context.height)
        yield source, stream


def _measure(source: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, Fraction | None]:
    """Number of frames of a stream and their average rate, from the times of its packets."""
    source.seek(0)
    times = [packet.pts for packet in source.demux(stream) if packet.size]
    known = sorted(time for time in times if time is not None)
    if len(known) < 2 or known[0] == known[-1]:
        return len(times), None
    rate = (len(known) - 1) / ((known[-1] - known[0]) * Fraction(stream.time_base))
    return len(times), rate
