"""The audio VAE in MLX: a stereo log-mel picture ``[B, 2, M, bins]`` to latents ``[B, C, L, F]``, and back.

Networks take and give torch tensors; inside, pictures are ``[B, T, F, C]``. Tensor names are listed in
``ltx_core.model.audio_vae``.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.config import AudioVaeConfig, CausalityAxis
from ltx_core.types import AUDIO_LATENT_DOWNSAMPLE_FACTOR
from ltx_mlx.arrays import channels_first, channels_last
from ltx_mlx.layers import Conv, group_norm, rms_norm, silu

NORM_EPS = 1e-6
Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros before and after, of T and of F

#: Zeros around the picture before the stride-2 convolution.
DOWNSAMPLE_PADDING: dict[CausalityAxis, Padding] = {
    CausalityAxis.HEIGHT: ((2, 0), (0, 1)),
    CausalityAxis.WIDTH: ((0, 1), (2, 0)),
    CausalityAxis.WIDTH_COMPATIBILITY: ((0, 1), (1, 0)),
    CausalityAxis.NONE: ((0, 1), (0, 1)),
}


def pad_with(x: mx.array, padding: Padding) -> mx.array:
    return mx.pad(x, [(0, 0), *padding, (0, 0)])


class AxisCausalConv2d(nn.Module):
    """A convolution that sees only the past of the causal axis; size unchanged."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, axis: CausalityAxis) -> None:
        super().__init__()
        total = kernel_size - 1
        causal, split = (total, 0), (total // 2, total - total // 2)
        along_bins = axis in (CausalityAxis.WIDTH, CausalityAxis.WIDTH_COMPATIBILITY)
        self.padding = (causal if axis is CausalityAxis.HEIGHT else split, causal if along_bins else split)
        self.conv = Conv(in_channels, out_channels, (kernel_size, kernel_size))

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(pad_with(x, self.padding))


class PixelNorm(nn.Module):
    """Divide each position by the root mean square of its channels."""

    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x, NORM_EPS)


def norm(channels: int, config: AudioVaeConfig) -> nn.Module:
    return PixelNorm() if config.norm_type == "pixel" else group_norm(channels)


class ResnetBlock(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.norm1 = norm(in_channels, config)
        self.conv1 = AxisCausalConv2d(in_channels, out_channels, 3, config.causality_axis)
        self.norm2 = norm(out_channels, config)
        self.conv2 = AxisCausalConv2d(out_channels, out_channels, 3, config.causality_axis)
        if in_channels != out_channels:
            self.nin_shortcut = AxisCausalConv2d(in_channels, out_channels, 1, config.causality_axis)

    def __call__(self, x: mx.array) -> mx.array:
        hidden = self.conv1(silu(self.norm1(x)))
        hidden = self.conv2(silu(self.norm2(hidden)))
        return (self.nin_shortcut(x) if "nin_shortcut" in self else x) + hidden


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, plus x."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.norm = norm(channels, config)
        for name in ("q", "k", "v", "proj_out"):
            self[name] = Conv(channels, channels, (1, 1))

    def __call__(self, x: mx.array) -> mx.array:
        hidden = self.norm(x)
        q, k, v = (self[name](hidden).reshape(x.shape[0], 1, -1, x.shape[-1]) for name in "qkv")
        attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=x.shape[-1] ** -0.5)
        return x + self.proj_out(attended.reshape(x.shape))


class Downsample(nn.Module):
    """Halve both axes: a stride-2 convolution, or 2x2 averages."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.padding = DOWNSAMPLE_PADDING[config.causality_axis]
        if config.resamp_with_conv:
            self.conv = Conv(channels, channels, (3, 3), stride=(2, 2))

    def __call__(self, x: mx.array) -> mx.array:
        if "conv" in self:
            return self.conv(pad_with(x, self.padding))
        b, t, f, c = x.shape
        return mx.mean(x[:, : t // 2 * 2, : f // 2 * 2].reshape(b, t // 2, 2, f // 2, 2, c), axis=(2, 4))


class Upsample(nn.Module):
    """Double both axes, less the first row of the causal one."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.axis = config.causality_axis
        self.conv = AxisCausalConv2d(channels, channels, 3, config.causality_axis)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv(mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2))
        if self.axis is CausalityAxis.HEIGHT:
            return x[:, 1:]
        return x[:, :, 1:] if self.axis is CausalityAxis.WIDTH else x


class PerChannelStatistics(nn.Module):
    """Mean and deviation of each token channel, ``[C*F]`` each; entry ``c*F + f``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self["mean-of-means"] = mx.zeros((channels,))
        self["std-of-means"] = mx.ones((channels,))

    def normalize(self, latent: mx.array) -> mx.array:
        """``[B, L, F, C]`` to the same, zero mean and unit deviation."""
        mean, std = self._tables(latent)
        return (latent - mean) / std

    def un_normalize(self, latent: mx.array) -> mx.array:
        """The inverse of ``normalize``."""
        mean, std = self._tables(latent)
        return latent * std + mean

    def _tables(self, latent: mx.array) -> list[mx.array]:
        bins, channels = latent.shape[2:]
        stored = [self["mean-of-means"], self["std-of-means"]]
        if channels * bins != stored[0].size:
            expected = f"{stored[0].size} channels * bins"
            raise ConfigError(f"the audio latent has {channels} channels of {bins} bins, expected {expected}")
        return [table.reshape(channels, bins).T.astype(latent.dtype) for table in stored]


class AudioEncoder(nn.Module):
    """Log-mel pictures to normalised latents."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.per_channel_statistics = PerChannelStatistics(config.ch)
        self.conv_in = AxisCausalConv2d(config.in_channels, config.ch, 3, config.causality_axis)
        inputs = (config.ch, *widths[:-1])
        self.down = [DownLevel(inputs[level], level, config) for level in range(len(widths))]
        self.mid = Middle(widths[-1], config)
        self.norm_out = norm(widths[-1], config)
        out_channels = 2 * config.z_channels if config.double_z else config.z_channels
        self.conv_out = AxisCausalConv2d(widths[-1], out_channels, 3, config.causality_axis)

    def __call__(self, mel: Tensor) -> Tensor:
        """``mel`` ``[B, 2, M, bins]`` to the mean of the posterior, normalised: ``[B, C, L, F]``."""
        if mel.ndim != 4 or mel.shape[1] != self.config.in_channels:
            expected = f"[B, {self.config.in_channels}, frames, bins]"
            raise ConfigError(f"mel has shape {list(mel.shape)}, expected {expected}")
        x = self.conv_in(channels_last(mel, self.conv_in.conv.weight.dtype))
        for level in self.down:
            x = level(x)
            mx.eval(x)
        x = self.conv_out(silu(self.norm_out(self.mid(x))))
        return channels_first(self.per_channel_statistics.normalize(x[..., : self.config.z_channels]))


class AudioDecoder(nn.Module):
    """Normalised latents to log-mel pictures."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.per_channel_statistics = PerChannelStatistics(config.ch)
        self.conv_in = AxisCausalConv2d(config.z_channels, widths[-1], 3, config.causality_axis)
        self.mid = Middle(widths[-1], config)
        inputs = (*widths[1:], widths[-1])
        self.up = [UpLevel(inputs[level], level, config) for level in range(len(widths))]
        self.norm_out = norm(widths[0], config)
        self.conv_out = AxisCausalConv2d(widths[0], config.out_ch, 3, config.causality_axis)

    def __call__(self, latent: Tensor) -> Tensor:
        """``latent`` ``[B, C, L, F]``, normalised, to mel ``[B, 2, max(4L-3, 1), bins]`` (4L without a causal axis)."""
        if latent.ndim != 4 or latent.shape[1] != self.config.z_channels:
            expected = f"[B, {self.config.z_channels}, frames, bins]"
            raise ConfigError(f"the audio latent has shape {list(latent.shape)}, expected {expected}")
        z = channels_last(latent, self.conv_in.conv.weight.dtype)
        x = self.mid(self.conv_in(self.per_channel_statistics.un_normalize(z)))
        for level in reversed(self.up):
            x = level(x)
            mx.eval(x)
        return channels_first(self._fit(self.conv_out(silu(self.norm_out(x))), *z.shape[1:3]))

    def _fit(self, mel: mx.array, latent_frames: int, latent_bins: int) -> mx.array:
        """Crop to the target size, then append zeros at the end of time and the top of frequency."""
        frames = latent_frames * AUDIO_LATENT_DOWNSAMPLE_FACTOR
        if self.config.causality_axis is not CausalityAxis.NONE:
            frames = max(frames - (AUDIO_LATENT_DOWNSAMPLE_FACTOR - 1), 1)
        bins = self.config.mel_bins or latent_bins
        mel = mel[:, :frames, :bins, : self.config.out_ch]
        return pad_with(mel, ((0, frames - mel.shape[1]), (0, bins - mel.shape[2])))


class DownLevel(nn.Module):
    """One encoder level: residual blocks with optional attention, then half the size except at the last level."""

    def __init__(self, in_channels: int, level: int, config: AudioVaeConfig) -> None:
        super().__init__()
        width, count = config.widths[level], config.num_res_blocks
        self.block = [ResnetBlock(width if n else in_channels, width, config) for n in range(count)]
        self.attn = [AttnBlock(width, config) for _ in range(count if config.has_attention(level) else 0)]
        if level < len(config.widths) - 1:
            self.downsample = Downsample(width, config)

    def __call__(self, x: mx.array) -> mx.array:
        x = run_blocks(x, self.block, self.attn)
        return self.downsample(x) if "downsample" in self else x


class UpLevel(nn.Module):
    """One decoder level, one block longer than the encoder's; then twice the size except at level 0."""

    def __init__(self, in_channels: int, level: int, config: AudioVaeConfig) -> None:
        super().__init__()
        width, count = config.widths[level], config.num_res_blocks + 1
        self.block = [ResnetBlock(width if n else in_channels, width, config) for n in range(count)]
        self.attn = [AttnBlock(width, config) for _ in range(count if config.has_attention(level) else 0)]
        if level:
            self.upsample = Upsample(width, config)

    def __call__(self, x: mx.array) -> mx.array:
        x = run_blocks(x, self.block, self.attn)
        return self.upsample(x) if "upsample" in self else x


class Middle(nn.Module):
    """Residual block, optional attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config)
        if config.mid_block_add_attention:
            self.attn_1 = AttnBlock(channels, config)
        self.block_2 = ResnetBlock(channels, channels, config)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.block_1(x)
        return self.block_2(self.attn_1(x) if "attn_1" in self else x)


def run_blocks(x: mx.array, blocks: Sequence[ResnetBlock], attentions: Sequence[AttnBlock]) -> mx.array:
    """Each residual block, followed by its attention where the level has any."""
    for index, block in enumerate(blocks):
        x = block(x)
        if attentions:
            x = attentions[index](x)
    return x
