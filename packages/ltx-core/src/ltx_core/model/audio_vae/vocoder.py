"""Vocoders: a stereo log-mel picture [B, 2, T, 64] to a waveform [B, 2, S*T], left channel first.

Two kinds, told apart by the config. The LTX-2 19B kind is one HiFi-GAN generator (S = 240, 24 kHz). The 2.3 and 2.5
kind generates 16 kHz with an alias-free generator and extends the bandwidth to 48 kHz (S = 480) with a second one that
listens to the first:

    low = vocoder(mel)                                      [B, 2, 160 T]
    out = clamp(bwe_generator(mel_stft(low)) + hann_upsample(low), -1, 1)

Tensors of a generator (w halves at every stage; J = stage * len(resblock_kernel_sizes) + kernel):

    conv_pre.{weight [w0, 128, 7], bias}, conv_post.{weight [2, w, 7], bias}
    ups.{stage}.{weight [w, w/2, k], bias}
    resblocks.{J}.{convs1, convs2}.{n}.{weight [w, w, k], bias}
    resblocks.{J}.{acts1, acts2}.{n}.*, act_post.*          alias-free activations, 2.3 and 2.5 only

The 2.3 and 2.5 kind: `vocoder.*` and `bwe_generator.*` as above, `mel_stft.mel_basis` [64, n_fft/2 + 1],
`mel_stft.stft_fn.{forward_basis, inverse_basis}` [n_fft + 2, 1, n_fft].
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.errors import ConfigError, check_shape
from ltx_core.model.audio_vae.config import STEREO, BandwidthExtensionConfig, GeneratorConfig, VocoderConfig
from ltx_core.model.audio_vae.mel import compress, mel_filterbank

MEL_BINS = 64
EDGE_KERNEL = 7  # of conv_pre and conv_post
INNER_SLOPE = 0.1
FINAL_SLOPE = 0.01


class Vocoder(nn.Module):
    """Mel ``[B, 2, T, 64]`` to waveform ``[B, 2, samples]``; ``Vocoder(config)`` builds the kind ``config`` describes.

    `VocoderConfig.from_metadata` reads it from a checkpoint.
    """

    config: VocoderConfig

    def __new__(cls, config: VocoderConfig | None = None) -> Vocoder:
        if cls is Vocoder and config is not None:
            return super().__new__(HifiGanVocoder if config.extension is None else BandwidthExtensionVocoder)
        return super().__new__(cls)

    @property
    def output_sampling_rate(self) -> int:
        """Hz."""
        return self.config.output_sampling_rate


class Generator(nn.Module):
    """Transposed convolutions with parallel residual blocks after each: mel [B, 2, T, 64] -> [B, 2, total_rate * T].

    In the published files ``sides`` is 2, the second axis of mel and waveform.
    """

    def __init__(self, config: GeneratorConfig, sides: int = STEREO) -> None:
        super().__init__()
        self.generator_config, self.sides = config, sides
        initial = config.upsample_initial_channel
        widths = [initial >> stage for stage in range(len(config.upsample_rates) + 1)]
        self.conv_pre = Conv1d(sides * MEL_BINS, initial, EDGE_KERNEL)
        stages = zip(widths[:-1], widths[1:], config.upsample_kernel_sizes, config.upsample_rates, strict=True)
        self.ups = nn.ModuleList(ConvTranspose1d(*stage) for stage in stages)
        blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        self.resblocks = nn.ModuleList(
            ResBlock(width, kernel, dilations, config) for width in widths[1:] for kernel, dilations in blocks
        )
        self.act_post = activation(widths[-1], config, FINAL_SLOPE)
        self.conv_post = Conv1d(widths[-1], sides, EDGE_KERNEL, bias=config.use_bias_at_final)

    def forward(self, mel: Tensor) -> Tensor:
        check_shape("mel", mel.shape, ("B", self.sides, "T", MEL_BINS))
        config = self.generator_config
        parallel = len(config.resblock_kernel_sizes)
        x = self.conv_pre(mel.transpose(2, 3).flatten(1, 2))  # [B, side*64 + bin, T]
        for stage, up in enumerate(self.ups):
            x = up(x if config.is_alias_free else F.leaky_relu(x, INNER_SLOPE))
            x = mean_of(self.resblocks[stage * parallel : (stage + 1) * parallel], x)
        x = self.conv_post(self.act_post(x))
        if config.final_activation is None:
            return x
        return x.tanh() if config.final_activation == "tanh" else x.clamp(-1, 1)


class HifiGanVocoder(Vocoder, Generator):
    """The 19B kind: one generator, run in the weights' dtype."""

    def __init__(self, config: VocoderConfig) -> None:
        Generator.__init__(self, config.generator)
        self.config = config

    def forward(self, mel: Tensor) -> Tensor:
        """``mel`` [B, 2, T, 64] -> waveform [B, 2, S*T] in [-1, 1], in the mel's dtype."""
        return Generator.forward(self, mel.to(self.conv_pre.weight.dtype)).to(mel.dtype)


class BandwidthExtensionVocoder(Vocoder):
    """The 2.3 and 2.5 kind, computed in float32 whatever the weights are stored in."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        if config.extension is None:
            raise ConfigError("the vocoder config has no bwe section, expected one for bandwidth extension")
        self.config = config
        self.extension = config.extension
        self.vocoder = Generator(config.generator)
        self.mel_stft = MelStft(config.extension)
        self.bwe_generator = Generator(config.extension.generator)

    def forward(self, mel: Tensor) -> Tensor:
        """``mel`` [B, 2, T, 64] -> waveform [B, 2, S*T] in [-1, 1], in the mel's dtype."""
        hop, ratio = self.extension.hop_length, self.extension.ratio
        with no_autocast(mel.device.type):
            low = self.vocoder(mel.float())
            samples = low.shape[-1]
            low = F.pad(low, (0, -samples % hop))
            residual = self.bwe_generator(self.mel_stft(low))
            waveform = (residual + upsample_hann(low, ratio)).clamp(-1, 1)
        return waveform[..., : samples * ratio].to(mel.dtype)


class MelStft(nn.Module):
    """Causal log-mel of a waveform whose length is a multiple of the hop: [B, 2, N] -> [B, 2, N // hop, bins]."""

    mel_basis: Tensor  # [bins, n_fft // 2 + 1]

    def __init__(self, config: BandwidthExtensionConfig) -> None:
        super().__init__()
        self.left = config.n_fft - config.hop_length
        self.hop = config.hop_length
        filters = mel_filterbank(config.n_fft // 2 + 1, config.num_mels, config.input_sampling_rate)
        self.register_buffer("mel_basis", filters.T.contiguous())
        self.stft_fn = StftBases(config.n_fft)

    def forward(self, waveform: Tensor) -> Tensor:
        frames = F.pad(waveform.flatten(0, 1).unsqueeze(1), (self.left, 0))
        spectrum = F.conv1d(frames, self.stft_fn.forward_basis.to(waveform.dtype), stride=self.hop)
        real, imaginary = spectrum.chunk(2, dim=1)  # [B*2, n_fft // 2 + 1, N // hop] each
        power = (real.square() + imaginary.square()).clamp(min=torch.finfo(waveform.dtype).tiny)  # finite gradient at 0
        mel = self.mel_basis.to(waveform.dtype) @ power.sqrt()
        return compress(mel).transpose(1, 2).unflatten(0, waveform.shape[:2])


class StftBases(nn.Module):
    """The Fourier transform as a convolution: windowed cosines, then negative sines. The inverse is never applied."""

    forward_basis: Tensor  # [n_fft + 2, 1, n_fft]
    inverse_basis: Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        turns = torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(n_fft) % n_fft
        angle = turns * (2 * pi / n_fft)
        basis = torch.cat((angle.cos(), -angle.sin())) * torch.hann_window(n_fft)
        self.register_buffer("forward_basis", basis.unsqueeze(1))
        self.register_buffer("inverse_basis", torch.zeros(n_fft + 2, 1, n_fft))


class ResBlock(nn.Module):
    """For every dilation: x + conv(act(dilated_conv(act(x)))), length unchanged."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...], config: GeneratorConfig) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(Conv1d(width, width, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(Conv1d(width, width, kernel) for _ in dilations)
        self.acts1 = nn.ModuleList(activation(width, config, INNER_SLOPE) for _ in dilations)
        self.acts2 = nn.ModuleList(activation(width, config, INNER_SLOPE) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv1, conv2, act1, act2 in zip(self.convs1, self.convs2, self.acts1, self.acts2, strict=True):
            x = x + conv2(act2(conv1(act1(x))))
        return x


class Conv1d(nn.Conv1d):
    """A convolution that keeps the length and computes in its input's dtype."""

    def __init__(self, in_width: int, out_width: int, kernel: int, dilation: int = 1, bias: bool = True) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(in_width, out_width, kernel, dilation=dilation, padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv1d(x, self.weight.to(x.dtype), bias, padding=self.padding, dilation=self.dilation)


class ConvTranspose1d(nn.ConvTranspose1d):
    """``rate`` times the length (one more when kernel - rate is odd), computed in its input's dtype."""

    def __init__(self, in_width: int, out_width: int, kernel: int, rate: int) -> None:
        super().__init__(in_width, out_width, kernel, stride=rate, padding=(kernel - rate) // 2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        padding = (self.kernel_size[0] - self.stride[0]) // 2
        return F.conv_transpose1d(x, self.weight.to(x.dtype), bias, stride=self.stride, padding=padding)


def activation(width: int, config: GeneratorConfig, slope: float) -> nn.Module:
    return AliasFreeSnakeBeta(width) if config.is_alias_free else nn.LeakyReLU(slope)


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Keep float32 arithmetic inside a caller's autocast region."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def mean_of(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """The mean of the blocks' results on one input."""
    total = blocks[0](x)
    for block in blocks[1:]:
        total = total + block(x)
    return total / len(blocks)


# Alias-free activations and the resampling around them ----------------------------------------------------------------


FILTER_TAPS = 12
CUTOFF = 0.25  # of the doubled rate
HALF_WIDTH = 0.3  # of the transition band
BETA_EPS = 1e-9
HANN_CROSSINGS = 6  # zero crossings of the Hann-windowed sinc on each side
HANN_ROLLOFF = 0.99


class AliasFreeSnakeBeta(nn.Module):
    """Up x2, snake-beta, down x2: [B, C, T] -> [B, C, T].

    Harmonics that the nonlinearity adds beyond the Nyquist frequency are filtered away at twice the rate, where they
    would otherwise fold back.

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
    with torch.device("cpu"), torch.inference_mode(False):  # once for all layers
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
