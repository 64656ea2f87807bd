"""The blocks of the video VAE. All are called ``block(x, cache)``: ``[B, C, T, H, W]`` to ``[B, C', T', H', W']``.

Tensors, with ``<conv>`` short for ``conv.{weight,bias}``::

    ResnetBlock           conv1.<conv>, conv2.<conv>, [norm1.*, norm2.*], [conv_shortcut.{weight,bias}, norm3.*],
                          [scale_shift_table (4, C)], [per_channel_scale1 (C, 1, 1), per_channel_scale2 (C, 1, 1)]
    ResnetStack           res_blocks.{j}.*, [time_embedder.timestep_embedder.linear_{1,2}.*]
    AttentionBlock        norm.gamma (C, 1, 1), to_qkv.* (3C, C, 1, 1), proj.* (C, C, 1, 1)
    SpaceToDepthDownsample, DepthToSpaceUpsample    conv.<conv>
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae.config import Family, NormLayer, PaddingMode
from ltx_core.model.video_vae.conv_cache import ConvCache
from ltx_core.model.video_vae.layers import (
    NORM_EPS,
    CausalConv3d,
    ChannelLayerNorm,
    TimestepEmbedder,
    make_norm,
    modulate,
    silu,
)
from ltx_core.model.video_vae.ops import Stride, channel_group_mean, depth_to_space, space_to_depth


@dataclass(frozen=True)
class BlockStyle:
    """Settings that all blocks of one half of a VAE share."""

    norm_layer: NormLayer
    padding: PaddingMode
    family: Family = "ltx2"
    timestep_conditioning: bool = False


class ResnetBlock(nn.Module):
    """Two convolutions and a shortcut, C -> C'; optionally modulated by a timestep and roughened by noise."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        inject_noise: bool = False,
        timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(style.norm_layer, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, style.padding)
        self.norm2 = make_norm(style.norm_layer, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, style.padding)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.norm3 = _shortcut_norm(style.family, in_channels)
            self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1)
        self.inject_noise = inject_noise
        if inject_noise:
            self.per_channel_scale1 = nn.Parameter(torch.zeros(out_channels, 1, 1))
            self.per_channel_scale2 = nn.Parameter(torch.zeros(out_channels, 1, 1))
        if timestep_conditioning:
            self.scale_shift_table = nn.Parameter(torch.randn(4, in_channels) / math.sqrt(in_channels))

    def forward(self, x: Tensor, cache: ConvCache, embedding: Tensor | None = None) -> Tensor:
        """``embedding`` is the stack's timestep embedding ``[B, 4*C]``."""
        shift1, scale1, shift2, scale2 = self.modulation(embedding) if embedding is not None else (None,) * 4
        h = _modulate(self.norm1(x), scale1, shift1)
        h = self.conv1(silu(h), cache)
        h = self._add_noise(h, cache, "per_channel_scale1")
        h = _modulate(self.norm2(h), scale2, shift2)
        h = self.conv2(silu(h), cache)
        h = self._add_noise(h, cache, "per_channel_scale2")
        x = cache.catch_up(self, x, h.shape[2])
        if self.has_shortcut and x.shape[2]:
            x = self.conv_shortcut(self.norm3(x))
        return _add(h, x) if h.shape[2] else h

    def modulation(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """``shift1, scale1, shift2, scale2``, each ``[B, C]``."""
        return (self.scale_shift_table + embedding.unflatten(1, (4, -1))).unbind(dim=1)

    def _add_noise(self, h: Tensor, cache: ConvCache, scale: str) -> Tensor:
        if not self.inject_noise:
            return h
        noise = cache.once((self, scale), lambda: cache.draw(tuple(h.shape[3:]), h))  # [H, W], the same for all frames
        return _add(h, (noise * self.get_parameter(scale))[:, None])  # [C, 1, H, W]


def _shortcut_norm(family: Family, channels: int) -> nn.Module:
    """LTX-Video normalises each location on its own, LTX-2 all of them together."""
    return ChannelLayerNorm(channels) if family == "ltxv" else nn.GroupNorm(1, channels, eps=NORM_EPS)


def _modulate(h: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return h if scale is None or shift is None else modulate(h, scale, shift)


def _add(h: Tensor, x: Tensor) -> Tensor:
    """``h + x``; over h, which nobody else needs, unless gradients are recorded."""
    return h + x if torch.is_grad_enabled() else h.add_(x)


class ResnetStack(nn.Module):
    """``res_x``: n resnets of equal width that share one timestep embedding."""

    def __init__(self, channels: int, num_layers: int, style: BlockStyle, inject_noise: bool = False) -> None:
        super().__init__()
        self.time_embedder = TimestepEmbedder(4 * channels) if style.timestep_conditioning else None
        self.res_blocks = nn.ModuleList(
            ResnetBlock(channels, channels, style, inject_noise, style.timestep_conditioning) for _ in range(num_layers)
        )

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        for run in self.parts():
            x = run(x, cache)
        return x

    def parts(self) -> list[Callable[[Tensor, ConvCache], Tensor]]:
        """The resnets, one by one."""

        def part(block: nn.Module) -> Callable[[Tensor, ConvCache], Tensor]:
            return lambda x, cache: block(x, cache, self.embedding(cache))

        return [part(block) for block in self.res_blocks]

    def embedding(self, cache: ConvCache) -> Tensor | None:
        """``[B, 4*C]``, or None without timestep conditioning. Raises ``ConfigError`` when the timestep is missing."""
        embedder = self.time_embedder
        if embedder is None:
            return None
        if (timestep := cache.timestep) is None:
            raise ConfigError("timestep is None, expected one for a timestep-conditioned decoder")
        return cache.once(embedder, lambda: embedder(timestep))


class ChannelRmsNorm(nn.Module):
    """``x / |x| * sqrt(C) * gamma`` over the channels of an image ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * (math.sqrt(x.shape[1]) * self.gamma)


class AttentionBlock(nn.Module):
    """``attn``: every location of a frame attends to every other, one head, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelRmsNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        if not x.shape[2]:
            return x
        b, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(b * t, c, h, w)
        qkv = self.to_qkv(self.norm(frames))  # [B*T, 3C, H, W]
        q, k, v = qkv.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)  # [B*T, 1, H*W, C]
        attended = functional.scaled_dot_product_attention(q, k, v)
        attended = self.proj(attended.squeeze(1).transpose(1, 2).reshape(b * t, c, h, w))
        return x + attended.reshape(b, t, c, h, w).transpose(1, 2)


class SpaceToDepthDownsample(nn.Module):
    """``compress_*_res``: C -> C' at 1/stride the size, plus the mean over channel groups as a shortcut.

    In time the clip's first frame is doubled first, so T = 1 + 2k frames become 1 + k.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, style: BlockStyle) -> None:
        super().__init__()
        cells = math.prod(stride)
        if out_channels % cells or (in_channels * cells) % out_channels:
            raise ConfigError(f"space to depth {in_channels} -> {out_channels} channels by {cells}: does not divide")
        self.stride, self.out_channels = stride, out_channels
        self.conv = CausalConv3d(in_channels, out_channels // cells, style.padding)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        if self.stride[0] == 2:
            x = cache.pairs(self, x)
        h = space_to_depth(self.conv(x, cache), self.stride)
        return _add(h, self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W] -> [B, C', T/s1, H/s2, W/s3]`` without weights."""
        return channel_group_mean(space_to_depth(x, self.stride), self.out_channels)


class DepthToSpaceUpsample(nn.Module):
    """``compress_*`` of a decoder: C -> C' at ``stride`` times the size; optionally plus the tiled input.

    In time the first frame of the result is dropped at the start of the clip, so T frames become 2T - 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Stride, style: BlockStyle, residual: bool = False
    ) -> None:
        super().__init__()
        cells = math.prod(stride)
        if residual and (in_channels % cells or (out_channels * cells) % in_channels):
            raise ConfigError(f"residual depth to space {in_channels} -> {out_channels} by {cells}: does not divide")
        self.stride, self.residual = stride, residual
        self.conv = CausalConv3d(in_channels, cells * out_channels, style.padding)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        y = self.conv(x, cache)
        frames = y.shape[2]
        y = depth_to_space(y, self.stride)
        if self.residual:
            shortcut = depth_to_space(cache.catch_up(self, x, frames), self.stride)  # [B, C/P, ...]
            y = _add(y, shortcut.repeat(1, y.shape[1] // shortcut.shape[1], 1, 1, 1))
        return y[:, :, 1:] if self.stride[0] == 2 and cache.begins(self, y) else y
