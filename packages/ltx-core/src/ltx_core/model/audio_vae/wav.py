"""16-bit wav files: writing a stereo waveform, reading PCM and float files through a time window."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_core.types import Audio

PCM_SCALE = 32767
FORMAT_PCM, FORMAT_FLOAT, FORMAT_EXTENSIBLE = 1, 3, 0xFFFE


def to_pcm16(waveform: Tensor) -> Tensor:
    """A stereo waveform [2, N] or [N, 2] in [-1, 1] to int16 [2, N]: clipped, times 32767, truncated toward zero.

    [2, 2] counts as [N, 2]. Raises ``MediaError`` for any other shape and for an empty waveform.
    """
    if waveform.ndim != 2 or 2 not in waveform.shape or waveform.numel() == 0:
        raise MediaError(f"the waveform has shape {list(waveform.shape)}, expected [2, samples] or [samples, 2]")
    sides = waveform.T if waveform.shape[1] == 2 else waveform
    return (sides.detach().float().clamp(-1, 1) * PCM_SCALE).to(torch.int16)


def write_wav(path: str | Path, audio: Audio) -> None:
    """Write a stereo waveform as 16-bit little-endian PCM at its own rate."""
    samples = to_pcm16(audio.waveform)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(audio.sampling_rate)
        file.writeframes(samples.T.contiguous().cpu().numpy().astype("<i2").tobytes())


def read_wav(path: str | Path, start_time: float = 0.0, max_duration: float | None = None) -> Audio | None:
    """Read a wav file from ``start_time``, at most ``max_duration`` seconds: float32 [1, channels, samples].

    PCM of 8, 16, 24 or 32 bits is scaled to [-1, 1); float files are taken as they are. Channels and rate are the
    file's own. None when the window holds no sample. Raises ``MediaError`` for a file that is no such wav.
    """
    data = Path(path).read_bytes()
    try:
        kind, channels, rate, bits, payload = parse_riff(data)
    except struct.error as error:
        raise MediaError(f"{path} is a damaged wav file: {error}") from error
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from error
    frame_bytes = channels * bits // 8
    first = max(round(start_time * rate), 0)
    count = len(payload) // frame_bytes - first
    if max_duration is not None:
        count = min(count, round(max_duration * rate))
    if count <= 0:
        return None
    samples = decode_samples(payload[first * frame_bytes : (first + count) * frame_bytes], kind, bits)
    return Audio(torch.from_numpy(samples.reshape(-1, channels).T.copy())[None], rate)


def parse_riff(data: bytes) -> tuple[int, int, int, int, bytes]:
    """(format, channels, rate, bits per sample, sample bytes) of a RIFF WAVE file."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise MediaError(f"the file starts with {data[:12]!r}, expected a RIFF WAVE header")
    position, layout = 12, None
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"fmt ":
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, position)
            if kind == FORMAT_EXTENSIBLE:
                (kind,) = struct.unpack_from("<H", data, position + 24)
            layout = kind, channels, rate, bits
        elif name == b"data":
            if layout is None:
                break
            check_layout(*layout)
            return *layout, data[position : position + size]
        position += size + size % 2
    raise MediaError("the file has no fmt chunk followed by a data chunk, expected both")


def check_layout(kind: int, channels: int, rate: int, bits: int) -> None:
    known = {FORMAT_PCM: (8, 16, 24, 32), FORMAT_FLOAT: (32, 64)}
    if bits not in known.get(kind, ()):
        raise MediaError(f"sample format is {kind} with {bits} bits, expected PCM of 8 to 32 or float of 32 or 64 bits")
    if channels < 1 or rate < 1:
        raise MediaError(f"the file has {channels} channels at {rate} Hz, expected at least 1 of each")


def decode_samples(payload: bytes, kind: int, bits: int) -> np.ndarray:
    """Interleaved sample bytes to float32."""
    if kind == FORMAT_FLOAT:
        return np.frombuffer(payload, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:
        return (np.frombuffer(payload, np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:
        triples = np.frombuffer(payload, np.uint8).reshape(-1, 3)
        words = np.zeros((len(triples), 4), np.uint8)
        words[:, 1:] = triples  # the low byte stays 0, as in a 32-bit sample
        return words.view("<i4")[:, 0].astype(np.float32) / 2**31
    return np.frombuffer(payload, f"<i{bits // 8}").astype(np.float32) / 2 ** (bits - 1)
