"""Waveforms before the mel front end: two channels, and a change of sample rate by a polyphase windowed sinc."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import MediaError

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
