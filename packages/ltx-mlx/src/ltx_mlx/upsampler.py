"""The latent upsampler in MLX: residual convolutions, one upsampling step, residual convolutions.

Networks take and give torch tensors; inside, latents are ``[B, T, H, W, C]``, or ``[B*T, H, W, C]`` with dims 2. Tensor
names are listed in ``ltx_core.model.upsampler``.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.upsampler.config import NORM_GROUPS, LatentUpsamplerConfig
from ltx_mlx.arrays import channels_first, channels_last
from ltx_mlx.layers import Conv, group_norm, silu

NORM_EPS = 1e-5


class LatentUpsampler(nn.Module):
    """Enlarge an un-normalised video latent."""

    def __init__(self, config: LatentUpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        mid, blocks, dims = config.mid_channels, config.num_blocks_per_stage, config.dims
        self.initial_conv = conv(config.in_channels, mid, dims)
        self.initial_norm = group_norm(mid, NORM_GROUPS, NORM_EPS)
        self.res_blocks = [ResBlock(mid, dims) for _ in range(blocks)]
        self.upsampler = upsampling_module(config)
        self.post_upsample_res_blocks = [ResBlock(mid, dims) for _ in range(blocks)]
        self.final_conv = conv(mid, config.in_channels, dims)

    def __call__(self, latent: Tensor) -> Tensor:
        """``latent`` ``[B, C, T, H, W]``, un-normalised, to ``[B, C, T', H', W']`` in its dtype."""
        if latent.ndim != 5 or latent.shape[1] != self.config.in_channels:
            expected = f"[B, {self.config.in_channels}, T, H, W]"
            raise ConfigError(f"latent has shape {list(latent.shape)}, expected {expected}")
        x = channels_last(latent, self.initial_conv.weight.dtype)
        flat = self.config.dims == 2
        x = silu(self.initial_norm(self.initial_conv(fold_frames(x) if flat else x)))
        for block in self.res_blocks:
            x = block(x)
            mx.eval(x)
        x = self._upsample(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
            mx.eval(x)
        x = self.final_conv(x)
        return channels_first(x.reshape(latent.shape[0], -1, *x.shape[1:]) if flat else x, latent)

    def _upsample(self, x: mx.array) -> mx.array:
        if self.config.temporal_upsample:
            first, second = self.upsampler
            return second(first(x))[:, 1:]  # the first latent frame is one pixel frame: it stays one
        frames = fold_frames(x) if x.ndim == 5 else x
        if isinstance(self.upsampler, RationalResampler):
            y = self.upsampler(frames)
        else:
            y = self.upsampler[1](self.upsampler[0](frames))
        return y.reshape(x.shape[0], -1, *y.shape[1:]) if x.ndim == 5 else y


class ResBlock(nn.Module):
    """SiLU(norm2(conv2(SiLU(norm1(conv1(x))))) + x): the activation follows the sum."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, dims)
        self.norm1 = group_norm(channels, NORM_GROUPS, NORM_EPS)
        self.conv2 = conv(channels, channels, dims)
        self.norm2 = group_norm(channels, NORM_GROUPS, NORM_EPS)

    def __call__(self, x: mx.array) -> mx.array:
        return silu(self.norm2(self.conv2(silu(self.norm1(self.conv1(x))))) + x)


def upsampling_module(config: LatentUpsamplerConfig) -> RationalResampler | list[nn.Module]:
    """The one step that changes the size, as the config names it."""
    mid = config.mid_channels
    if config.is_rational:
        return RationalResampler(mid, *config.rational_scale)
    if not config.temporal_upsample:
        return [conv(mid, 4 * mid, 2), DepthToSpace((2, 2))]
    factors = (2, 2, 2) if config.spatial_upsample else (2, 1, 1)
    return [conv(mid, (8 if config.spatial_upsample else 2) * mid, 3), DepthToSpace(factors)]


class RationalResampler(nn.Module):
    """Enlarge every frame by ``num`` and blur it down by ``den``."""

    def __init__(self, channels: int, num: int, den: int) -> None:
        super().__init__()
        self.conv = conv(channels, num * num * channels, 2)
        self.num = num
        self.blur_down = BlurDownsample(den)

    def __call__(self, x: mx.array) -> mx.array:
        """``x`` ``[N, H, W, C]``."""
        return self.blur_down(depth_to_space(self.conv(x), (self.num, self.num)))


class BlurDownsample(nn.Module):
    """A stored 5x5 blur, the same for each channel, at every ``stride``-th pixel; stride 1 is the identity."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        taps = mx.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.kernel = mx.outer(taps, taps)[None, None]

    def __call__(self, x: mx.array) -> mx.array:
        if self.stride == 1:
            return x
        n, h, w, c = x.shape
        planes = x.transpose(0, 3, 1, 2).reshape(n * c, h, w, 1)
        y = mx.conv2d(planes, self.kernel.reshape(1, 5, 5, 1).astype(x.dtype), self.stride, 2)
        return y.reshape(n, c, *y.shape[1:3]).transpose(0, 2, 3, 1)


class DepthToSpace(nn.Module):
    """``depth_to_space`` as a module."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def __call__(self, x: mx.array) -> mx.array:
        return depth_to_space(x, self.factors)


def depth_to_space(x: mx.array, factors: tuple[int, ...]) -> mx.array:
    """``[B, *size, C * prod(p)] -> [B, *(size * p), C]``; the channel index is ``((c * p1 + i) * p2 + j) * p3 + k``."""
    n, (batch, *size, _) = len(factors), x.shape
    x = x.reshape(batch, *size, -1, *factors)  # [B, s1..sn, C, p1..pn]
    x = x.transpose(0, *(axis for i in range(n) for axis in (1 + i, 2 + n + i)), 1 + n)
    return x.reshape(batch, *(side * factor for side, factor in zip(size, factors, strict=True)), x.shape[-1])


def conv(in_channels: int, out_channels: int, dims: int) -> Conv:
    """A 3x3 or 3x3x3 convolution with zeros around the input on every axis, time included."""
    return Conv(in_channels, out_channels, (3,) * dims, padding=1)


def fold_frames(x: mx.array) -> mx.array:
    """``[B, T, H, W, C] -> [B*T, H, W, C]``."""
    return x.reshape(-1, *x.shape[2:])
