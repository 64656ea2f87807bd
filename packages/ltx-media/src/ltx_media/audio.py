"""Sound in and out of files: windows of any audio stream, WAV files, and waveforms ready for a stereo track."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ltx_core.errors import MediaError
from ltx_core.model.audio_vae.mel import to_stereo
from ltx_core.types import Audio
from ltx_media.containers import container_tags, open_file, origin
from ltx_media.files import media_errors, replacing

SOUND_FILES = {".wav": ("wav", "pcm_s16le"), ".flac": ("flac", "flac"), ".mp3": ("mp3", "libmp3lame")}
MP3_RATES = (48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # by channels


def read_audio(path: str | Path, start: float = 0.0, duration: float | None = None) -> Audio | None:
    """``duration`` seconds of sound from ``start`` (to the end when not given), at the file's rate and channels.

    The waveform is float32 ``[1, channels, samples]``. ``None`` when the file has no audio stream, or none of it lies
    in the window. Sound that begins later than the file is preceded by silence, so it stays in step with the picture.
    Raises ``MediaError``.
    """
    with open_file(path, "read sound") as source:
        if (stream := _sound_of(source, path)) is None:
            return None
        zero, end = origin(source), float("inf") if duration is None else start + duration
        if start > 0:
            source.seek(int((start + zero) / stream.time_base), stream=stream)
        chunks: list[Tensor] = []
        first, rate = 0.0, stream.rate
        for time, frame in _place_in_time(source.decode(stream), zero):
            if time + frame.samples / frame.sample_rate < start:
                continue
            if time >= end:
                break
            if not chunks:
                first, rate = time, frame.sample_rate
            chunks.append(_samples(frame))
            if chunks[-1].shape[0] != chunks[0].shape[0] or frame.sample_rate != rate:
                raise MediaError(f"{path}: cannot read sound: its rate or channels change at {time:.3f} s")
    if not chunks:
        return None
    waveform = torch.cat(chunks, 1)
    offset = round((start - first) * rate)
    waveform = waveform[:, offset:] if offset > 0 else F.pad(waveform, (-offset, 0))
    if duration is not None:
        waveform = waveform[:, : round(duration * rate)]
    return Audio(waveform[None], rate) if waveform.shape[1] else None


@dataclass(frozen=True)
class SoundInfo:
    """Facts about a file's sound. ``duration`` is in seconds, by the header."""

    channels: int
    rate: int
    duration: float


def probe_sound(path: str | Path) -> SoundInfo | None:
    """Channels, rate and length of the first audio stream; None where there is none. Raises ``MediaError``."""
    with open_file(path, "read sound") as source:
        if (stream := _sound_of(source, path)) is None:
            return None
        length = stream.duration * stream.time_base if stream.duration else Fraction(source.duration or 0, av.time_base)
        return SoundInfo(stream.codec_context.channels, stream.rate, float(length))


def _sound_of(source: av.container.InputContainer, path: str | Path) -> av.AudioStream | None:
    """The first audio stream, None where there is none. Raises ``MediaError`` for one of no known kind, or no rate."""
    if not source.streams.audio:
        return None
    stream = source.streams.audio[0]
    if stream.codec_context is None or not stream.codec_context.sample_rate:
        raise MediaError(f"{path}: cannot read sound: it is of no known kind, or has no rate")
    return stream


def write_wav(path: str | Path, audio: Audio, metadata: Mapping[str, str] | None = None) -> None:
    """Write 16-bit stereo PCM at the waveform's rate; mono is doubled, surround mixed down. Raises ``MediaError``.

    A name that ends in .flac or .mp3 makes such a file.
    """
    container, codec = SOUND_FILES.get(Path(path).suffix.lower(), SOUND_FILES[".wav"])
    samples = (stereo_track(audio, path) * 32767).to(torch.int16)  # [2, S], truncated
    rate = audio.sampling_rate
    with (
        replacing(path) as temporary,
        media_errors(path, "write sound"),
        av.open(str(temporary), "w", format=container) as sink,
    ):
        sink.metadata.update(container_tags(metadata))
        target = 48000 if container == "mp3" and rate not in MP3_RATES else rate
        stream = sink.add_stream(codec, rate=target, layout="stereo")
        sink.mux(encode_sound(stream, samples.numpy(), rate, stream.codec_context.frame_size))


def encode_sound(stream: av.AudioStream, track: np.ndarray, rate: int, frame_size: int) -> Iterator[av.Packet]:
    """Packets of a track ``[channels, S]`` at ``rate`` Hz, float32 or int16: ``frame_size`` samples each, 0 for any."""
    layout, form = LAYOUTS[len(track)], {"float32": "fltp", "int16": "s16p"}[track.dtype.name]
    resampler = av.AudioResampler(stream.codec_context.format, layout, stream.rate, frame_size)
    for start in range(0, track.shape[1], rate):
        samples = np.ascontiguousarray(track[:, start : start + rate])
        frame = av.AudioFrame.from_ndarray(samples, format=form, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for ready in resampler.resample(frame):
            yield from stream.encode(ready)
    for ready in resampler.resample(None):
        yield from stream.encode(ready)
    yield from stream.encode()


def fit_duration(audio: Audio, duration: float) -> Audio:
    """Sound cut, or continued with silence, to ``duration`` seconds."""
    length = round(duration * audio.sampling_rate)
    waveform = audio.waveform[..., :length]
    return Audio(F.pad(waveform, (0, length - waveform.shape[-1])), audio.sampling_rate)


def stereo_track(audio: Audio, path: str | Path, duration: Fraction | None = None) -> Tensor:
    """The waveform as float32 ``[2, S]`` on the CPU, clipped to [-1, 1]; cut or padded with silence to ``duration``."""
    return _fit(to_stereo(_channels(audio, path)), audio.sampling_rate, duration)


def sound_track(audio: Audio, path: str | Path, duration: Fraction | None = None) -> Tensor:
    """`stereo_track` with the channels it has where files name such a layout: ``[1 | 2 | 6 | 8, S]``."""
    waveform = _channels(audio, path)
    waveform = waveform if waveform.shape[0] in LAYOUTS else to_stereo(waveform)
    return _fit(waveform, audio.sampling_rate, duration)


def _channels(audio: Audio, path: str | Path) -> Tensor:
    """The waveform as float32 ``[channels, samples]`` on the CPU."""
    waveform = audio.waveform.detach().float().cpu()
    while waveform.dim() > 2 and waveform.shape[0] == 1:
        waveform = waveform[0]
    if waveform.dim() != 2 or not waveform.numel() or audio.sampling_rate <= 0:
        shape = list(audio.waveform.shape)
        raise MediaError(f"{path}: waveform is {shape} at {audio.sampling_rate} Hz, expected [channels, samples]")
    return waveform


def _fit(waveform: Tensor, rate: int, duration: Fraction | None) -> Tensor:
    waveform = waveform.clamp(-1, 1)
    if duration is None:
        return waveform
    length = round(duration * rate)
    return F.pad(waveform[:, :length], (0, max(length - waveform.shape[1], 0)))


def _place_in_time(frames: Iterator[av.AudioFrame], zero: float) -> Iterator[tuple[float, av.AudioFrame]]:
    """Frames with their start in seconds; one without a timestamp follows the one before."""
    following = 0.0
    for frame in frames:
        time = following if frame.pts is None else float(frame.pts * frame.time_base) - zero
        following = time + frame.samples / frame.sample_rate
        yield time, frame


def _samples(frame: av.AudioFrame) -> Tensor:
    """One frame as float32 ``[channels, samples]``; full scale is 1."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        scaled = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        scaled = (values / float(2 ** (8 * values.dtype.itemsize - 1))).astype(np.float32)
    else:
        scaled = values.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled))
