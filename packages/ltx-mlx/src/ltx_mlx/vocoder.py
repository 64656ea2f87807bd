"""The vocoders in MLX: a stereo log-mel picture ``[B, 2, T, 64]`` to a waveform ``[B, 2, S*T]``, left channel first.

The LTX-2 19B kind is one HiFi-GAN generator. The 2.3 and 2.5 kind generates at a low rate with an alias-free generator
and extends the bandwidth with a second one; it computes in float32 whatever the weights are stored in. Signals inside
are ``[B, T, C]``. Tensor names are listed in ``ltx_core.model.audio_vae.vocoder``.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.config import STEREO, BandwidthExtensionConfig, GeneratorConfig, VocoderConfig
from ltx_mlx.arrays import to_mlx, to_torch
from ltx_mlx.layers import Conv, ConvTranspose1d, add_up

MEL_BINS = 64
EDGE_KERNEL = 7  # of conv_pre and conv_post
INNER_SLOPE, FINAL_SLOPE = 0.1, 0.01
FILTER_TAPS = 12
BETA_EPS = 1e-9
HANN_CROSSINGS, HANN_ROLLOFF = 6, 0.99
LOG_FLOOR = 1e-5
TINY = 1.1754944e-38  # the least normal float32


# Resampling -------------------------------------------------------------------------------------------------------


def upsample(x: mx.array, taps: mx.array, ratio: int, margin: int, drop: int) -> mx.array:
    """Hold the ends for ``margin`` samples, insert zeros, filter, and cut ``ratio * T`` samples after ``drop``."""
    samples, kernel = x.shape[1], taps.shape[0]
    hops = -(-kernel // ratio)  # input samples under the filter
    phases = mx.pad(taps, (0, hops * ratio - kernel)).reshape(hops, ratio, 1).astype(x.dtype)
    held = mx.pad(x, [(0, 0), (margin, margin), (0, 0)], mode="edge")
    held = mx.pad(held, [(0, 0), (hops - 1, hops - 1), (0, 0)])[:, :, None]
    length = held.shape[1] - hops + 1
    total = add_up(held[:, hops - 1 - hop : hops - 1 - hop + length] * phases[hop] for hop in range(hops))
    return total.reshape(x.shape[0], length * ratio, -1)[:, drop : drop + ratio * samples]


def upsample_2x(x: mx.array, taps: mx.array) -> mx.array:
    """Double the rate: ``[B, T, C] -> [B, 2T, C]``; ``taps`` ``[12]``, the ends of the signal are held."""
    margin = FILTER_TAPS // 2 - 1
    return upsample(x, 2 * taps, ratio=2, margin=margin, drop=3 * margin)


def downsample_2x(x: mx.array, taps: mx.array) -> mx.array:
    """Halve the rate: ``[B, T, C] -> [B, ceil(T / 2), C]``; the ends of the signal are held."""
    taps = taps.astype(x.dtype)
    held = mx.pad(x, [(0, 0), (FILTER_TAPS // 2 - 1, FILTER_TAPS // 2), (0, 0)], mode="edge")
    length = (held.shape[1] - FILTER_TAPS) // 2 + 1
    return add_up(held[:, tap : tap + 2 * length - 1 : 2] * taps[tap] for tap in range(FILTER_TAPS))


def upsample_hann(x: mx.array, ratio: int) -> mx.array:
    """Raise the rate by a whole ratio with a Hann-windowed sinc: ``[B, T, C] -> [B, ratio * T, C]``; ends are held."""
    margin = HANN_CROSSINGS + 1
    return ratio * upsample(x, hann_sinc_filter(ratio), ratio, margin, drop=2 * margin * ratio)


def hann_sinc_filter(ratio: int) -> mx.array:
    """A Hann-windowed sinc, not normalised: float32 ``[14 * ratio + 1]``."""
    margin = HANN_CROSSINGS + 1
    time = (mx.arange(2 * margin * ratio + 1, dtype=mx.float32) / ratio - margin) * HANN_ROLLOFF
    angle = mx.pi * time
    sinc = mx.where(angle == 0, 1.0, mx.sin(angle) / mx.where(angle == 0, 1.0, angle))
    window = mx.square(mx.cos(mx.clip(time, -HANN_CROSSINGS, HANN_CROSSINGS) * mx.pi / HANN_CROSSINGS / 2))
    return sinc * window * HANN_ROLLOFF / ratio


# Activations ------------------------------------------------------------------------------------------------------


def snake_beta(x: mx.array, alpha: mx.array, beta: mx.array) -> mx.array:
    """``x + sin(e^alpha x)^2 / e^beta`` per channel."""
    gain = 1 / (mx.exp(beta.astype(x.dtype)) + BETA_EPS)
    return x + gain * mx.square(mx.sin(x * mx.exp(alpha.astype(x.dtype))))


class SnakeBeta(nn.Module):
    """Both parameters are stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = mx.zeros((channels,))
        self.beta = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        return snake_beta(x, self.alpha, self.beta)


class Lowpass(nn.Module):
    """Holder of one stored filter."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = mx.zeros((1, 1, FILTER_TAPS))

    @property
    def taps(self) -> mx.array:
        return self.filter.reshape(-1)


class AliasFreeSnakeBeta(nn.Module):
    """Up x2, snake-beta, down x2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = Lowpass()
        self.act = SnakeBeta(channels)
        self.downsample = {"lowpass": Lowpass()}

    def __call__(self, x: mx.array) -> mx.array:
        return downsample_2x(self.act(upsample_2x(x, self.upsample.taps)), self.downsample["lowpass"].taps)


class LeakyReLU(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def __call__(self, x: mx.array) -> mx.array:
        return mx.maximum(x, self.slope * x)


def activation(width: int, config: GeneratorConfig, slope: float) -> nn.Module:
    return AliasFreeSnakeBeta(width) if config.is_alias_free else LeakyReLU(slope)


# Generators -------------------------------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """For every dilation: x + conv(act(dilated_conv(act(x)))), length unchanged."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...], config: GeneratorConfig) -> None:
        super().__init__()
        self.convs1 = [conv1d(width, width, kernel, dilation) for dilation in dilations]
        self.convs2 = [conv1d(width, width, kernel) for _ in dilations]
        self.acts1 = [activation(width, config, INNER_SLOPE) for _ in dilations]
        self.acts2 = [activation(width, config, INNER_SLOPE) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        for conv1, conv2, act1, act2 in zip(self.convs1, self.convs2, self.acts1, self.acts2, strict=True):
            x = x + conv2(act2(conv1(act1(x))))
        return x


def conv1d(in_width: int, out_width: int, kernel: int, dilation: int = 1, bias: bool = True) -> Conv:
    """A convolution that keeps the length."""
    return Conv(in_width, out_width, (kernel,), padding=dilation * (kernel - 1) // 2, dilation=dilation, bias=bias)


class Generator(nn.Module):
    """Transposed convolutions with parallel residual blocks after each: mel ``[B, 2, T, 64]`` to ``[B, S*T, 2]``."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.generator_config = config
        initial = config.upsample_initial_channel
        widths = [initial >> stage for stage in range(len(config.upsample_rates) + 1)]
        self.conv_pre = conv1d(STEREO * MEL_BINS, initial, EDGE_KERNEL)
        stages = zip(widths[:-1], widths[1:], config.upsample_kernel_sizes, config.upsample_rates, strict=True)
        self.ups = [ConvTranspose1d(i, o, kernel, rate, (kernel - rate) // 2) for i, o, kernel, rate in stages]
        blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        self.resblocks = [
            ResBlock(width, kernel, dilations, config) for width in widths[1:] for kernel, dilations in blocks
        ]
        self.act_post = activation(widths[-1], config, FINAL_SLOPE)
        self.conv_post = conv1d(widths[-1], STEREO, EDGE_KERNEL, bias=config.use_bias_at_final)

    def generate(self, mel: mx.array) -> mx.array:
        if mel.ndim != 4 or (mel.shape[1], mel.shape[3]) != (STEREO, MEL_BINS):
            raise ConfigError(f"mel has shape {list(mel.shape)}, expected [B, {STEREO}, T, {MEL_BINS}]")
        config = self.generator_config
        parallel = len(config.resblock_kernel_sizes)
        x = self.conv_pre(mel.transpose(0, 2, 1, 3).reshape(mel.shape[0], mel.shape[2], -1))  # channel side*64 + bin
        for stage, up in enumerate(self.ups):
            x = up(x if config.is_alias_free else mx.maximum(x, INNER_SLOPE * x))
            x = mean_of(self.resblocks[stage * parallel : (stage + 1) * parallel], x)
            mx.eval(x)
        x = self.conv_post(self.act_post(x))
        if config.final_activation is None:
            return x
        return mx.tanh(x) if config.final_activation == "tanh" else mx.clip(x, -1, 1)


def mean_of(blocks: Sequence[ResBlock], x: mx.array) -> mx.array:
    """The mean of the blocks' results on one input."""
    total = blocks[0](x)
    for block in blocks[1:]:
        total = total + block(x)
    return total / len(blocks)


class HifiGanVocoder(Generator):
    """The 19B kind: one generator, run in the weights' dtype."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__(config.generator)
        self.config = config

    @property
    def output_sampling_rate(self) -> int:
        """Hz."""
        return self.config.output_sampling_rate

    def __call__(self, mel: Tensor) -> Tensor:
        """``mel`` ``[B, 2, T, 64]`` to a waveform ``[B, 2, S*T]`` in [-1, 1], in the mel's dtype."""
        return to_torch(self.generate(to_mlx(mel, self.conv_pre.weight.dtype)).transpose(0, 2, 1), mel)


class BandwidthExtensionVocoder(nn.Module):
    """The 2.3 and 2.5 kind."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        if config.extension is None:
            raise ConfigError("the vocoder config has no bwe section, expected one for bandwidth extension")
        self.config, self.extension = config, config.extension
        self.vocoder = Generator(config.generator)
        self.mel_stft = MelStft(config.extension)
        self.bwe_generator = Generator(config.extension.generator)

    @property
    def output_sampling_rate(self) -> int:
        """Hz."""
        return self.config.output_sampling_rate

    def __call__(self, mel: Tensor) -> Tensor:
        """``mel`` ``[B, 2, T, 64]`` to a waveform ``[B, 2, S*T]`` in [-1, 1], in the mel's dtype."""
        low = self.vocoder.generate(to_mlx(mel, mx.float32))
        samples, ratio = low.shape[1], self.extension.ratio
        low = mx.pad(low, [(0, 0), (0, -samples % self.extension.hop_length), (0, 0)])
        residual = self.bwe_generator.generate(self.mel_stft(low))
        waveform = mx.clip(residual + upsample_hann(low, ratio), -1, 1)[:, : samples * ratio]
        return to_torch(waveform.transpose(0, 2, 1), mel)


class MelStft(nn.Module):
    """Causal log-mel of a waveform whose length is a multiple of the hop: ``[B, N, 2] -> [B, 2, N // hop, bins]``.

    The Fourier transform is a product with the stored basis: windowed cosines, then negative sines.
    """

    def __init__(self, config: BandwidthExtensionConfig) -> None:
        super().__init__()
        self.n_fft, self.hop = config.n_fft, config.hop_length
        self.mel_basis = mx.zeros((config.num_mels, config.n_fft // 2 + 1))
        bases = ("forward_basis", "inverse_basis")  # the inverse is never applied
        self.stft_fn = {name: mx.zeros((config.n_fft + 2, 1, config.n_fft)) for name in bases}

    def __call__(self, waveform: mx.array) -> mx.array:
        batch, samples, sides = waveform.shape
        signal = waveform.transpose(0, 2, 1).reshape(batch * sides, samples)
        signal = mx.pad(signal, [(0, 0), (self.n_fft - self.hop, 0)])
        count = samples // self.hop
        places = mx.arange(count)[:, None] * self.hop + mx.arange(self.n_fft)
        frames = mx.take(signal, places.reshape(-1), 1).reshape(batch * sides, count, self.n_fft)
        spectrum = frames @ self.stft_fn["forward_basis"][:, 0].T.astype(mx.float32)
        real, imaginary = mx.split(spectrum, 2, axis=-1)
        power = mx.maximum(mx.square(real) + mx.square(imaginary), TINY)
        mel = mx.sqrt(power) @ self.mel_basis.T.astype(mx.float32)
        return mx.log(mx.maximum(mel, LOG_FLOOR)).reshape(batch, sides, count, -1)


def make_vocoder(config: VocoderConfig) -> HifiGanVocoder | BandwidthExtensionVocoder:
    """The kind a config describes."""
    return HifiGanVocoder(config) if config.extension is None else BandwidthExtensionVocoder(config)
