"""The log-mel front end: waveform [B, C, N] -> log-mel [B, C, 1 + N // hop, bins].

Reflection at both ends, periodic Hann window, magnitude of the real FFT, Slaney mel filters with Slaney area
normalisation from 0 Hz to half the rate, natural log above a floor. Before it: two channels, and a change of sample
rate by a polyphase windowed sinc.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd, log, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import MediaError, check_shape
from ltx_core.model.audio_vae.config import MelConfig

LOG_FLOOR = 1e-5

# The Slaney scale: 3 mels per 200 Hz up to 1000 Hz, then 27 mels per factor 6.4.
LINEAR_MELS_PER_HZ = 3 / 200
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ * LINEAR_MELS_PER_HZ
LOG_MELS = 27 / log(6.4)


def log_mel(waveform: Tensor, config: MelConfig) -> Tensor:
    """``waveform`` [B, C, N] at ``config.sample_rate`` -> natural-log mel [B, C, 1 + N // hop, bins].

    Raises ``MediaError`` without the batch axis or when the clip is shorter than ``config.min_samples``.
    """
    _, filters = mel_tables(config, waveform.device, waveform.dtype)
    return compress(magnitude(waveform, config).transpose(-1, -2) @ filters)


def magnitude(waveform: Tensor, config: MelConfig) -> Tensor:
    """Magnitude spectrum of overlapping frames: [B, C, N] -> [B, C, n_fft // 2 + 1, 1 + N // hop]."""
    check_shape("the waveform", waveform.shape, ("batch", "channels", "samples"), MediaError)
    if waveform.shape[-1] < config.min_samples:
        expected = f"at least {config.min_samples} at {config.sample_rate} Hz"
        raise MediaError(f"the audio has {waveform.shape[-1]} samples, expected {expected}")
    window, _ = mel_tables(config, waveform.device, waveform.dtype)
    spectrum = torch.stft(
        waveform.flatten(0, 1), config.n_fft, config.hop_length, window=window, pad_mode="reflect", return_complex=True
    )
    return spectrum.abs().unflatten(0, waveform.shape[:2])


def compress(mel: Tensor) -> Tensor:
    """Natural log, floored."""
    return mel.clamp(min=LOG_FLOOR).log()


@lru_cache(maxsize=8)
def mel_tables(config: MelConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The window [n_fft] and the filters [n_fft // 2 + 1, bins]."""
    with torch.inference_mode(False):
        window = torch.hann_window(config.n_fft, dtype=dtype, device=device)
        filters = mel_filterbank(config.n_fft // 2 + 1, config.bins, config.sample_rate, device)
        return window, filters.to(dtype)


def mel_filterbank(frequencies: int, bins: int, sample_rate: int, device: torch.device | str | None = None) -> Tensor:
    """Triangles of equal area between points equally spaced in mel: float32 [frequencies, bins]."""
    nyquist = sample_rate / 2
    hertz = torch.linspace(0, nyquist, frequencies, device=device)[:, None]
    edges = mel_to_hz(torch.linspace(0, hz_to_mel(nyquist), bins + 2, device=device))
    low, peak, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (hertz - low) / (peak - low), (high - hertz) / (high - peak)
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return triangles * (2 / (high - low))


def hz_to_mel(hertz: float) -> float:
    if hertz < BREAK_HZ:
        return hertz * LINEAR_MELS_PER_HZ
    return BREAK_MEL + LOG_MELS * log(hertz / BREAK_HZ)


def mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < BREAK_MEL, mel / LINEAR_MELS_PER_HZ, BREAK_HZ * torch.exp((mel - BREAK_MEL) / LOG_MELS))


# Waveforms before the mel front end -----------------------------------------------------------------------------------


ROLLOFF = 0.99  # the cut-off, as a part of the lower Nyquist frequency
LOWPASS_WIDTH = 6  # zero crossings of the sinc on each side
SURROUND_GAIN = 0.707  # of centre and surround channels in a stereo mix


def to_stereo(waveform: Tensor) -> Tensor:
    """Any channel count to two: [..., channels, samples] -> [..., 2, samples].

    Mono is doubled, 5.1 (L R C LFE Ls Rs) and 7.1 (L R C LFE Ls Rs Lb Rb) are mixed without their LFE, any other
    count is averaged.
    """
    channels = waveform.shape[-2]
    if channels == 0:
        raise MediaError("the waveform has 0 channels, expected at least 1")
    if channels == 2:
        return waveform
    if channels in (6, 8):
        fronts, centre, surrounds = waveform[..., :2, :], waveform[..., 2:3, :], waveform[..., 4:, :]
        pairs = surrounds.unflatten(-2, (-1, 2)).sum(dim=-3)  # [..., 2, samples]
        scale = 1 + SURROUND_GAIN * (channels // 2 - 1)
        return (fronts + SURROUND_GAIN * (centre + pairs)) / scale
    mono = waveform.mean(dim=-2, keepdim=True)
    return mono.expand(*waveform.shape[:-2], 2, -1)


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Change the sample rate: [..., N] -> [..., ceil(N * target / source)]; the signal is zero outside its ends."""
    if source_rate <= 0 or target_rate <= 0:
        raise MediaError(f"sample rates are {source_rate} and {target_rate}, expected positive whole numbers of Hz")
    if source_rate == target_rate:
        return waveform
    p, q = reduce_ratio(source_rate, target_rate)
    dtype = waveform.dtype if waveform.dtype == torch.float64 else torch.float32
    kernel = resample_kernel(source_rate, target_rate, dtype, waveform.device)
    half_width = (kernel.shape[1] - p) // 2
    samples = waveform.reshape(-1, 1, waveform.shape[-1]).to(dtype)
    phases = F.conv1d(F.pad(samples, (half_width, half_width + p)), kernel[:, None], stride=p)  # [*, q, N // p + 1]
    resampled = phases.transpose(1, 2).flatten(1)[:, : ceil(q * waveform.shape[-1] / p)]
    return resampled.reshape(*waveform.shape[:-1], -1).to(waveform.dtype)


@lru_cache(maxsize=16)
def resample_kernel(source_rate: int, target_rate: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Taps of every output phase: [q, 2W + p] with p/q the reduced ratio of the rates.

    Output sample n*q + j is the sum over i of ``kernel[j, i + W] * x[n*p + i]``. Built in ``dtype``.
    """
    p, q = reduce_ratio(source_rate, target_rate)
    cutoff = min(p, q) * ROLLOFF
    half_width = ceil(LOWPASS_WIDTH * p / cutoff)
    with torch.inference_mode(False):
        taps = torch.arange(-half_width, half_width + p, dtype=dtype, device=device) / p
        phases = torch.arange(0, -q, -1, dtype=dtype, device=device)[:, None] / q
        time = ((phases + taps) * cutoff).clamp(-LOWPASS_WIDTH, LOWPASS_WIDTH)
        window = torch.cos(time * pi / LOWPASS_WIDTH / 2).square()
        return torch.sinc(time) * (window * (cutoff / p))


def reduce_ratio(source_rate: int, target_rate: int) -> tuple[int, int]:
    """Both rates divided by their greatest common divisor."""
    divisor = gcd(source_rate, target_rate)
    return source_rate // divisor, target_rate // divisor
