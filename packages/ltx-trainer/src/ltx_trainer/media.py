"""Video, sound and pictures in and out of files, as the trainer needs them.

Frames are uint8 ``[H, W, 3]`` RGB, upright; sound is float32 ``[channels, samples]``. Times are those of the file, so
sound read from a video's ``start`` on is in step with its frames.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import Colorspace
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_core.model.audio_vae.waveform import to_stereo
from ltx_core.types import Audio

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STILL_FPS = 1.0
HD_HEIGHT = 720  # pictures of at least this height that name no colour matrix have BT.709's
COLORSPACE_UNSPECIFIED = 2
SAME_RATE = 1e-3  # relative difference of frame rates that counts as none
EARLY = 0.1  # share of a frame by which a frame may come late and still count as on screen
VIDEO_CRF, VIDEO_PRESET = "18", "medium"


@dataclass(frozen=True)
class VideoInfo:
    """What a video or image file says it holds. ``frames`` is a count by the header, not by decoding."""

    width: int
    height: int
    frames: int
    fps: float
    start: float  # time of the first frame, seconds
    variable_rate: bool = False
    has_audio: bool = False


def is_image(path: str | Path) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def probe(path: str | Path) -> VideoInfo:
    """Size, rate and length of an image or of a file's first video stream. Raises `MediaError`."""
    if is_image(path):
        height, width, _ = read_image(path).shape
        return VideoInfo(width, height, 1, STILL_FPS, 0.0)
    with _opened(path, "video") as (source, stream):
        frame = next(source.decode(stream), None)
        rate = stream.average_rate or stream.guessed_rate
        if frame is None or not rate:
            raise MediaError(f"{path}: cannot read video: it holds no frame")
        turned = round(frame.rotation / 90) % 2
        size = (frame.height, frame.width) if turned else (frame.width, frame.height)
        return VideoInfo(
            *size,
            frames=stream.frames or _frames_by_duration(source, stream, rate),
            fps=float(rate),
            start=float(frame.time or 0.0),
            variable_rate=bool(stream.base_rate) and abs(stream.base_rate / rate - 1) > 0.01,
            has_audio=bool(source.streams.audio),
        )


def _frames_by_duration(source: av.container.InputContainer, stream: av.VideoStream, rate: Fraction) -> int:
    if stream.duration:
        return round(float(stream.duration * stream.time_base * rate))
    return round((source.duration or 0) / av.time_base * float(rate)) or 2**31


def read_frames(path: str | Path, fps: float | None = None, start: float | None = None) -> Iterator[Tensor]:
    """Frames from the beginning, or from ``start`` seconds on.

    With ``fps`` the frame on screen at 0, 1/fps, 2/fps, ... seconds from there; without it every stored frame. Raises
    `MediaError` for a file that is no video, or is damaged.
    """
    if is_image(path):
        yield read_image(path)
        return
    with _opened(path, "video") as (source, stream):
        stream.thread_type = "AUTO"
        if start:
            source.seek(int(start / stream.time_base), stream=stream)
        rate = stream.average_rate or stream.guessed_rate or 1
        frames = _from(source.decode(stream), start, float(1 / rate))
        for frame in frames if fps is None else _on_screen(frames, fps, float(1 / rate)):
            yield _to_rgb(frame)


def _from(frames: Iterator[av.VideoFrame], start: float | None, frame_time: float) -> Iterator[av.VideoFrame]:
    for frame in frames:
        if start is None or frame.time is None or frame.time > start - frame_time / 2:
            yield frame


def _on_screen(frames: Iterator[av.VideoFrame], fps: float, frame_time: float) -> Iterator[av.VideoFrame]:
    """The frame shown at each k / fps seconds after the first one."""
    shown, first, index = None, 0.0, 0
    for frame in frames:
        if shown is None:
            first = frame.time or 0.0
        while shown is not None and (index + EARLY) / fps < _time(frame) - first:
            yield shown
            index += 1
        shown = frame
    while shown is not None and (index + EARLY) / fps < _time(shown) + frame_time - first:
        yield shown
        index += 1


def _time(frame: av.VideoFrame) -> float:
    if frame.time is None:
        raise MediaError("its frames carry no times, so their rate cannot be changed")
    return frame.time


def read_image(path: str | Path) -> Tensor:
    """A picture, turned upright by its EXIF tag, in sRGB by its ICC profile. Raises `MediaError`."""
    with _media_errors(path, "image"), Image.open(path) as file:
        file.load()
        image = ImageOps.exif_transpose(file)
        profile = image.info.get("icc_profile")
        if image.mode not in ("RGB", "L", "CMYK"):
            image = image.convert("RGB")
        if profile:
            image = _to_srgb(image, profile)
        return torch.from_numpy(np.array(image.convert("RGB")))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Values by the picture's own profile; one that cannot be read counts as sRGB."""
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def read_audio(path: str | Path, start: float = 0.0, duration: float | None = None) -> Audio | None:
    """``duration`` seconds of sound from ``start`` (to the end where not given), at the file's rate and channels.

    float32 ``[channels, samples]``; sound that sets in after ``start`` has silence in front. None where the file has no
    sound in that window. Raises `MediaError`.
    """
    with _media_errors(path, "sound"), av.open(str(path), metadata_errors="ignore") as source:
        if not source.streams.audio:
            return None
        stream = source.streams.audio[0]
        if start > 0:
            source.seek(int(start / stream.time_base), stream=stream)
        end = float("inf") if duration is None else start + duration
        first, resampler = start, av.AudioResampler(format="fltp")
        chunks: list[Tensor] = []
        for frame in source.decode(stream):
            time = frame.time or 0.0
            if time + frame.samples / frame.sample_rate <= start:
                continue
            if time >= end:
                break
            first = first if chunks else time
            chunks += [torch.from_numpy(part.to_ndarray()) for part in resampler.resample(frame)]
        rate = stream.rate
    if not chunks:
        return None
    waveform = torch.cat(chunks, dim=1)
    offset = round((start - first) * rate)
    waveform = waveform[:, offset:] if offset > 0 else F.pad(waveform, (-offset, 0))
    waveform = waveform if duration is None else waveform[:, : round(duration * rate)]
    return Audio(waveform, rate) if waveform.shape[1] else None


def fit_duration(audio: Audio, duration: float) -> Audio:
    """Sound cut, or continued with silence, to ``duration`` seconds."""
    length = round(duration * audio.sampling_rate)
    waveform = audio.waveform[..., :length]
    return Audio(F.pad(waveform, (0, length - waveform.shape[-1])), audio.sampling_rate)


def write_video(path: Path, frames: Iterable[Tensor], fps: float, audio: Audio | None = None) -> None:
    """Write uint8 frames ``[H, W, 3]`` as H.264 with the sound as AAC stereo; odd sides lose a row or column.

    Written under a temporary name and renamed. Raises `MediaError`.
    """
    rate = Fraction(fps).limit_denominator(1001)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _media_errors(path, "video", "write"), av.open(str(temporary), "w", format="mp4") as sink:
            stream = sink.add_stream("libx264", rate=rate, options={"crf": VIDEO_CRF, "preset": VIDEO_PRESET})
            stream.pix_fmt = "yuv420p"
            sound = None if audio is None else sink.add_stream("aac", rate=audio.sampling_rate, layout="stereo")
            for index, frame in enumerate(frames):
                height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
                if index == 0:
                    stream.height, stream.width = height, width
                pixels = np.ascontiguousarray(frame[:height, :width].cpu().numpy())
                sink.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            sink.mux(stream.encode())
            if sound is not None and audio is not None:
                _encode_sound(sink, sound, audio)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode_sound(sink: av.container.OutputContainer, stream: av.AudioStream, audio: Audio) -> None:
    samples = to_stereo(audio.waveform.detach().float().cpu()).clamp(-1, 1).contiguous().numpy()
    for start in range(0, samples.shape[1], 1024):
        frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024].copy(), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = audio.sampling_rate, start, Fraction(1, audio.sampling_rate)
        sink.mux(stream.encode(frame))
    sink.mux(stream.encode())


@contextmanager
def _opened(path: str | Path, what: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    with _media_errors(path, what), av.open(str(path), metadata_errors="ignore") as source:
        if not source.streams.video:
            raise MediaError("it holds no picture")
        yield source, source.streams.video[0]


@contextmanager
def _media_errors(path: str | Path, what: str, verb: str = "read") -> Iterator[None]:
    """Whatever a library says about a file, as one line that names the file."""
    try:
        yield
    except MediaError as error:
        message = str(error)
        raise error if str(path) in message else MediaError(f"{path}: cannot {verb} {what}: {message}") from error
    except (av.FFmpegError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise MediaError(f"{path}: cannot {verb} {what}: {reason}") from error


def _to_rgb(frame: av.VideoFrame) -> Tensor:
    matrix = None
    if frame.colorspace == COLORSPACE_UNSPECIFIED and not frame.format.is_rgb and frame.height >= HD_HEIGHT:
        matrix = Colorspace.ITU709
    pixels = frame.to_ndarray(format="rgb24", src_colorspace=matrix)
    return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))))
