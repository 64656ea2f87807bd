"""The alias-free activation of the 2.3 and 2.5 vocoders, and the resampling filters around it.

A signal is doubled in rate, passed through snake-beta, and halved again, so that the harmonics the nonlinearity adds
beyond the Nyquist frequency are filtered away instead of folding back. Signals are [B, C, T].
"""

from __future__ import annotations

from functools import lru_cache
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILTER_TAPS = 12
CUTOFF = 0.25  # of the doubled rate
HALF_WIDTH = 0.3  # of the transition band
BETA_EPS = 1e-9
HANN_CROSSINGS = 6  # zero crossings of the Hann-windowed sinc on each side
HANN_ROLLOFF = 0.99


class AliasFreeSnakeBeta(nn.Module):
    """Up x2, snake-beta, down x2: [B, C, T] -> [B, C, T].

    Tensors: `act.{alpha, beta}` [C], `upsample.filter` and `downsample.lowpass.filter` [1, 1, 12].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = Lowpass()
        self.act = SnakeBeta(channels)
        self.downsample = Downsample()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(upsample_2x(x, self.upsample.filter))
        return downsample_2x(x, self.downsample.lowpass.filter)


class SnakeBeta(nn.Module):
    """Snake with separate frequency and magnitude per channel; both parameters are stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return snake_beta(x, self.alpha, self.beta)


class Lowpass(nn.Module):
    """Holder of one stored filter. Published files hold rounded values: they are loaded, not computed."""

    filter: Tensor  # [1, 1, 12]

    def __init__(self) -> None:
        super().__init__()
        taps = kaiser_sinc_filter(CUTOFF, HALF_WIDTH, FILTER_TAPS)
        self.register_buffer("filter", taps.to(torch.get_default_device(), copy=True))


class Downsample(nn.Module):
    """The level of nesting the stored name of the second filter has."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = Lowpass()


def snake_beta(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """x + sin(e^alpha x)^2 / e^beta per channel; plain snake is ``beta = alpha``."""
    frequency = alpha.to(x.dtype).exp()[:, None]
    gain = 1 / (beta.to(x.dtype).exp()[:, None] + BETA_EPS)
    return x + gain * (x * frequency).sin().square()


def upsample_2x(x: Tensor, taps: Tensor) -> Tensor:
    """Double the rate: [B, C, T] -> [B, C, 2T]; ``taps`` [1, 1, 12], the ends of the signal are held."""
    margin = FILTER_TAPS // 2 - 1
    return upsample(x, 2 * taps, ratio=2, margin=margin, drop=3 * margin)  # the margin at the new rate, and the delay


def downsample_2x(x: Tensor, taps: Tensor) -> Tensor:
    """Halve the rate: [B, C, T] -> [B, C, ceil(T / 2)]; ``taps`` [1, 1, 12], the ends of the signal are held."""
    channels = x.shape[1]
    x = F.pad(x, (FILTER_TAPS // 2 - 1, FILTER_TAPS // 2), mode="replicate")
    return F.conv1d(x, taps.to(x.dtype).expand(channels, -1, -1), stride=2, groups=channels)


def upsample_hann(x: Tensor, ratio: int) -> Tensor:
    """Raise the rate by a whole ratio with a Hann-windowed sinc: [B, C, T] -> [B, C, ratio * T]; ends are held."""
    margin = HANN_CROSSINGS + 1
    return ratio * upsample(x, hann_sinc_filter(ratio, x.device), ratio, margin, drop=2 * margin * ratio)


def upsample(x: Tensor, taps: Tensor, ratio: int, margin: int, drop: int) -> Tensor:
    """Hold the ends for ``margin`` samples, insert zeros, filter, and cut ``ratio * T`` samples after ``drop``."""
    channels, samples = x.shape[1:]
    x = F.pad(x, (margin, margin), mode="replicate")
    x = F.conv_transpose1d(x, taps.to(x.dtype).expand(channels, -1, -1), stride=ratio, groups=channels)
    return x[..., drop : drop + ratio * samples]


@lru_cache(maxsize=8)
def kaiser_sinc_filter(cutoff: float, half_width: float, taps: int) -> Tensor:
    """A Kaiser-windowed sinc of unit sum, on the CPU: [1, 1, taps].

    ``cutoff`` and ``half_width`` (of the transition band) in parts of the sample rate; the window follows from the
    attenuation they ask for.
    """
    attenuation = 2.285 * (taps // 2 - 1) * pi * 4 * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    with (
        torch.device("cpu"),
        torch.inference_mode(False),
    ):  # once for all layers
        time = torch.arange(taps) - taps // 2 + (0.5 if taps % 2 == 0 else 0.0)
        values = torch.kaiser_window(taps, periodic=False, beta=beta) * torch.sinc(2 * cutoff * time)
        return (values / values.sum())[None, None]


@lru_cache(maxsize=8)
def hann_sinc_filter(ratio: int, device: torch.device) -> Tensor:
    """A Hann-windowed sinc, not normalised: float32 [1, 1, 14 * ratio + 1]."""
    margin = HANN_CROSSINGS + 1
    with torch.inference_mode(False):
        time = (torch.arange(2 * margin * ratio + 1, device=device) / ratio - margin) * HANN_ROLLOFF
        window = torch.cos(time.clamp(-HANN_CROSSINGS, HANN_CROSSINGS) * pi / HANN_CROSSINGS / 2).square()
        return (torch.sinc(time) * window * HANN_ROLLOFF / ratio)[None, None]
