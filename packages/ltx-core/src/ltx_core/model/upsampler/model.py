"""The latent upsampler: residual convolutions, one upsampling step, residual convolutions.

    x = SiLU(initial_norm(initial_conv(z)))        [B, C, T, H, W] -> [B, M, T, H, W]
    x = res_blocks(x)
    x = upsample(x)                                [B, M, T', H', W']
    x = post_upsample_res_blocks(x)
    y = final_conv(x)                              [B, C, T', H', W']

Spatial: H' = 2H, W' = 2W; rational num/den: H' = (num*H - 1) // den + 1; temporal: T' = 2T - 1.

Tensors (M = mid_channels; with dims 2 every convolution is 2-D and frames are folded into the batch):

    initial_conv.{weight [M, C, 3, 3, 3], bias}, initial_norm.{weight, bias} [M]
    {res_blocks, post_upsample_res_blocks}.{i}.{conv1, conv2}.{weight [M, M, 3, 3, 3], bias}
    {res_blocks, post_upsample_res_blocks}.{i}.{norm1, norm2}.{weight, bias} [M]
    upsampler.0.{weight, bias}            spatial [4M, M, 3, 3]; temporal [2M, M, 3, 3, 3]; both [8M, M, 3, 3, 3]
    upsampler.conv.{weight, bias}         rational: [num^2 M, M, 3, 3]
    upsampler.blur_down.kernel            rational: [1, 1, 5, 5]
    final_conv.{weight [C, M, 3, 3, 3], bias}

Group statistics run over T, H and W together, so the network is not local: it cannot be tiled or streamed exactly. At
the end stands what LTX-Video does to latents between its two passes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.errors import ConfigError, check_shape
from ltx_core.model.upsampler.config import NORM_GROUPS, LatentUpsamplerConfig


class LatentUpsampler(nn.Module):
    """Enlarge an un-normalised video latent; ``upsample_latent`` is the call for normalised ones.

    ``config`` says how far and on which axes; `LatentUpsamplerConfig.from_metadata` reads it from the upscaler's file.
    """

    def __init__(self, config: LatentUpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        mid, blocks, dims = config.mid_channels, config.num_blocks_per_stage, config.dims
        self.initial_conv = conv(config.in_channels, mid, dims)
        self.initial_norm = nn.GroupNorm(NORM_GROUPS, mid)
        self.res_blocks = nn.ModuleList(ResBlock(mid, dims) for _ in range(blocks))
        self.upsampler = upsampling_module(config)
        self.post_upsample_res_blocks = nn.ModuleList(ResBlock(mid, dims) for _ in range(blocks))
        self.final_conv = conv(mid, config.in_channels, dims)

    def forward(self, latent: Tensor) -> Tensor:
        """``latent`` [B, C, T, H, W], un-normalised -> [B, C, T', H', W']."""
        check_shape("latent", latent.shape, ("B", self.config.in_channels, "T", "H", "W"))
        batch = latent.shape[0]
        x = fold_frames(latent) if self.config.dims == 2 else latent
        x = F.silu(self.initial_norm(self.initial_conv(x)))
        for block in self.res_blocks:
            x = block(x)
        x = self.upsample(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        x = self.final_conv(x)
        return unfold_frames(x, batch) if self.config.dims == 2 else x

    def upsample(self, x: Tensor) -> Tensor:
        if self.config.temporal_upsample:
            return self.upsampler(x)[:, :, 1:]  # the first latent frame is one pixel frame: it stays one
        if x.ndim == 4 or self.config.is_rational:
            return self.upsampler(x)
        return unfold_frames(self.upsampler(fold_frames(x)), x.shape[0])


class ResBlock(nn.Module):
    """SiLU(norm2(conv2(SiLU(norm1(conv1(x))))) + x): the activation follows the sum."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, dims)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv2 = conv(channels, channels, dims)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(hidden)) + x)


def upsampling_module(config: LatentUpsamplerConfig) -> nn.Module:
    """The one step that changes the size, as the config names it."""
    mid = config.mid_channels
    if config.is_rational:
        return RationalResampler(mid, *config.rational_scale)
    if not config.temporal_upsample:
        return nn.Sequential(conv(mid, 4 * mid, 2), DepthToSpace((2, 2)))
    factors = (2, 2, 2) if config.spatial_upsample else (2, 1, 1)
    return nn.Sequential(conv(mid, (8 if config.spatial_upsample else 2) * mid, 3), DepthToSpace(factors))


class RationalResampler(nn.Module):
    """Enlarge every frame by ``num`` and blur it down by ``den``."""

    def __init__(self, channels: int, num: int, den: int) -> None:
        super().__init__()
        self.conv = conv(channels, num * num * channels, 2)
        self.pixel_shuffle = DepthToSpace((num, num))
        self.blur_down = BlurDownsample(den)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, C, T, H, W], or one frame each [B, C, H, W]."""
        frames = fold_frames(x) if x.ndim == 5 else x
        frames = self.blur_down(self.pixel_shuffle(self.conv(frames)))
        return unfold_frames(frames, x.shape[0]) if x.ndim == 5 else frames


class BlurDownsample(nn.Module):
    """A 5x5 binomial blur, the same for each channel, evaluated at every ``stride``-th pixel; stride 1 is the identity.

    [B, C, H, W] -> [B, C, (H - 1) // stride + 1, (W - 1) // stride + 1], zeros outside the picture.
    """

    kernel: Tensor  # [1, 1, 5, 5]; stored even where stride 1 leaves it unused

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        channels = x.shape[1]
        return F.conv2d(x, self.kernel.expand(channels, -1, -1, -1), stride=self.stride, padding=2, groups=channels)


class DepthToSpace(nn.Module):
    """``depth_to_space`` as a module."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(x, self.factors)


def depth_to_space(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Move channels into space: [B, C * prod(p), *size] -> [B, C, *(size * p)].

    ``factors`` holds one p per spatial axis; the channel index is ((c * p1 + i) * p2 + j) * p3 + k, the resulting
    channel c slowest.
    """
    n = len(factors)
    x = x.unflatten(1, (-1, *factors))  # [B, C, p1..pn, s1..sn]
    interleaved = [axis for i in range(n) for axis in (2 + n + i, 2 + i)]
    x = x.permute(0, 1, *interleaved)  # [B, C, s1, p1, .., sn, pn]
    sizes = [x.shape[2 + 2 * i] * factors[i] for i in range(n)]
    return x.reshape(*x.shape[:2], *sizes)


def upsample_latent(latent: Tensor, upsampler: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor) -> Tensor:
    """Enlarge a normalised video latent.

    ``mean`` and ``std`` [C] are the per-channel statistics of the video VAE the latent belongs to; they are cast to
    the latent's dtype. [B, C, T, H, W] -> [B, C, T', H', W'], normalised with the same statistics.
    """
    mean, std = (value.to(latent)[:, None, None, None] for value in (mean, std))
    return (upsampler(latent * std + mean) - mean) / std


def conv(in_channels: int, out_channels: int, dims: int) -> nn.Module:
    """A 3x3 or 3x3x3 convolution with zeros around the input on every axis, time included."""
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(in_channels, out_channels, kernel_size=3, padding=1)


def fold_frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_frames(x: Tensor, batch: int) -> Tensor:
    """[B*T, C, H, W] -> [B, C, T, H, W]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


# LTX-Video between its two passes -------------------------------------------------------------------------------------


LATENT_MULTIPLE = 32  # pixels per latent cell: sizes of the first pass are multiples of it


def tone_map_latent(latent: Tensor, compression: float) -> Tensor:
    """Compress large latent values; ``compression`` in [0, 1], 0 is the identity."""
    if not 0 <= compression <= 1:
        raise ConfigError(f"tone map compression is {compression}, expected a number in [0, 1]")
    strength = 0.75 * compression
    return latent * (1 - 0.8 * strength * torch.sigmoid(4 * strength * (latent.abs() - 1)))


def first_pass_size(height: int, width: int, downscale_factor: float) -> tuple[int, int]:
    """(height, width) in pixels of the first pass; the second pass is twice that in each direction."""
    height, width = (int(side * downscale_factor) // LATENT_MULTIPLE * LATENT_MULTIPLE for side in (height, width))
    return height, width
