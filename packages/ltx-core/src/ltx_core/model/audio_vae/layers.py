"""Parts shared by both halves of the audio VAE. Pictures are [B, C, T, F]: T = time (height), F = mel bins (width)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.config import NORM_GROUPS, AudioVaeConfig, CausalityAxis

NORM_EPS = 1e-6

# Zeros around the picture before the stride-2 convolution: (bins left, bins right, time top, time bottom).
DOWNSAMPLE_PADDING = {
    CausalityAxis.HEIGHT: (0, 1, 2, 0),
    CausalityAxis.WIDTH: (2, 0, 0, 1),
    CausalityAxis.WIDTH_COMPATIBILITY: (1, 0, 0, 1),
    CausalityAxis.NONE: (0, 1, 0, 1),
}


def convolution_padding(kernel_size: int, axis: CausalityAxis) -> tuple[int, int, int, int]:
    """Zeros that keep the size: all in front on the causal axis, split on the other."""
    total = kernel_size - 1
    causal, split = (total, 0), (total // 2, total - total // 2)
    time = causal if axis is CausalityAxis.HEIGHT else split
    bins = causal if axis in (CausalityAxis.WIDTH, CausalityAxis.WIDTH_COMPATIBILITY) else split
    return *bins, *time


class AxisCausalConv2d(nn.Module):
    """A convolution that sees only the past of the causal axis; size unchanged. Tensors: `conv.{weight, bias}`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, axis: CausalityAxis) -> None:
        super().__init__()
        self.padding = convolution_padding(kernel_size, axis)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding) if any(self.padding) else x)


class PixelNorm(nn.Module):
    """Divide each position by the root mean square of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=1, keepdim=True) + NORM_EPS).sqrt()


def norm(channels: int, config: AudioVaeConfig) -> nn.Module:
    return PixelNorm() if config.norm_type == "pixel" else nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """Two convolutions around a shortcut: [B, in, T, F] -> [B, out, T, F].

    Tensors: `conv1.conv`, `conv2.conv`, `nin_shortcut.conv` where the width changes, `norm1`, `norm2` with group norm.
    """

    def __init__(self, in_channels: int, out_channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.norm1 = norm(in_channels, config)
        self.conv1 = AxisCausalConv2d(in_channels, out_channels, 3, config.causality_axis)
        self.norm2 = norm(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = AxisCausalConv2d(out_channels, out_channels, 3, config.causality_axis)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = AxisCausalConv2d(in_channels, out_channels, 1, config.causality_axis)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return self.nin_shortcut(x) + hidden


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, plus x. Tensors: `q`, `k`, `v`, `proj_out`, [`norm`]."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.norm = norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        # [B, C, T, F] -> [B, 1, T*F, C]
        q, k, v = (part(hidden).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(attended.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve both axes: a stride-2 convolution, or 2x2 averages. Tensors: `conv.{weight, bias}`."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.padding = DOWNSAMPLE_PADDING[config.causality_axis]
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if config.resamp_with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Double both axes, less the first row of the causal one: T -> 2T-1 (height) or F -> 2F-1 (width).

    Tensors: `conv.conv.{weight, bias}`.
    """

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.axis = config.causality_axis
        self.conv = AxisCausalConv2d(channels, channels, 3, config.causality_axis)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if self.axis is CausalityAxis.HEIGHT:
            return x[:, :, 1:]
        return x[:, :, :, 1:] if self.axis is CausalityAxis.WIDTH else x


class PerChannelStatistics(nn.Module):
    """Mean and deviation of each token channel. Tensors: `mean-of-means`, `std-of-means` [C*F]; entry c*F + f."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean-of-means", torch.zeros(channels))
        self.register_buffer("std-of-means", torch.ones(channels))

    def normalize(self, latent: Tensor) -> Tensor:
        """[B, C, T, F] -> the same, zero mean and unit deviation."""
        mean, std = self.tables(latent)
        return (latent - mean) / std

    def un_normalize(self, latent: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        mean, std = self.tables(latent)
        return latent * std + mean

    def tables(self, latent: Tensor) -> list[Tensor]:
        """Mean and deviation as [C, 1, F] in the latent's dtype."""
        channels, bins = latent.shape[1], latent.shape[3]
        stored = [self.get_buffer("mean-of-means"), self.get_buffer("std-of-means")]
        if channels * bins != stored[0].numel():
            expected = f"{stored[0].numel()} channels * bins"
            raise ConfigError(f"the audio latent has {channels} channels of {bins} bins, expected {expected}")
        return [table.to(latent).view(channels, 1, bins) for table in stored]
