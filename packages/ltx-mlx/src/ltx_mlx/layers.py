"""Layers that several networks share. Activations are channels-last, and so are the weights a layer lists in
``CHANNELS_LAST``: a published ``[O, I, k...]`` is ``[O, k..., I]`` here. All other parameters are as published.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

SINUSOID_WIDTH = 256


class Conv(nn.Module):
    """A convolution over one to three axes: ``[B, *size, I] -> [B, *size', O]``. Tensors: ``weight``, ``bias``."""

    CHANNELS_LAST: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = mx.zeros((out_channels, *kernel, in_channels))
        if bias:
            self.bias = mx.zeros((out_channels,))
        self.stride = stride if isinstance(stride, int) else tuple(stride)
        self.padding = padding if isinstance(padding, int) else tuple(padding)
        self.dilation = dilation

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    def __call__(self, x: mx.array) -> mx.array:
        weight = self.weight.astype(x.dtype)
        if math.prod(weight.shape[1:-1]) == 1 and self.stride == 1:
            y = x @ weight.reshape(weight.shape[0], -1).T
        else:
            y = mx.conv_general(x, weight, self.stride, self.padding, self.dilation)
        return y + self.bias.astype(y.dtype) if "bias" in self else y


class ConvTranspose1d(nn.Module):
    """A transposed convolution ``[B, T, I] -> [B, T', O]``, ``T' = (T - 1) * stride + kernel - 2 * padding``.

    One product gives every input's share of each tap; shares are then added where they overlap. MLX's own is many
    times slower on a CPU. Tensors: ``weight`` (published ``[I, O, k]``), ``bias``.
    """

    CHANNELS_LAST: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.weight = mx.zeros((in_channels, kernel, out_channels))
        self.bias = mx.zeros((out_channels,))
        self.stride, self.padding = stride, padding

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        inputs, kernel, outputs = self.weight.shape
        hops = -(-kernel // self.stride)  # inputs whose taps meet in one output
        weight = mx.pad(self.weight.astype(x.dtype), [(0, 0), (0, hops * self.stride - kernel), (0, 0)])
        shares = (x @ weight.reshape(inputs, -1)).reshape(batch, length, hops, self.stride, outputs)
        total = add_up(
            mx.pad(shares[:, :, hop], [(0, 0), (hop, hops - 1 - hop), (0, 0), (0, 0)]) for hop in range(hops)
        )
        y = total.reshape(batch, -1, outputs)
        end = (length - 1) * self.stride + kernel - self.padding
        return y[:, self.padding : end] + self.bias.astype(x.dtype)


class RMSNorm(nn.Module):
    """``rms_norm`` over the last axis with a learned weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = mx.ones((width,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x, self.eps, self.weight)


def rms_norm(x: mx.array, eps: float = 1e-6, weight: mx.array | None = None) -> mx.array:
    """``x / sqrt(mean(x^2) + eps)`` over the last axis, times ``weight`` when given; float32 inside."""
    return mx.fast.rms_norm(x, None if weight is None else weight.astype(x.dtype), eps)


def add_up(terms: Iterable[mx.array]) -> mx.array:
    """The sum of at least one array."""
    return reduce(mx.add, terms)


def group_norm(channels: int, groups: int = 32, eps: float = 1e-6) -> nn.Module:
    """Group norm over all axes but the batch, ``[B, *size, C]``."""
    return nn.GroupNorm(groups, channels, eps=eps, pytorch_compatible=True)


def gelu(x: mx.array) -> mx.array:
    """The tanh approximation, computed in float32."""
    y = x.astype(mx.float32)
    y = 0.5 * y * (1 + mx.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)))
    return y.astype(x.dtype)


def silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def sinusoid(timesteps: mx.array, width: int = SINUSOID_WIDTH, max_period: float = 10000.0) -> mx.array:
    """``[R] -> [R, width]`` in float32: cosines, then sines, of ``t * max_period ** (-i / (width / 2))``."""
    half = width // 2
    frequencies = mx.exp(-math.log(max_period) * mx.arange(half, dtype=mx.float32) / half)
    angles = timesteps.astype(mx.float32)[:, None] * frequencies
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def attention(
    q: mx.array, k: mx.array, v: mx.array, heads: int, mask: mx.array | None = None, scale: float | None = None
) -> mx.array:
    """``softmax(scale q k^T + mask) v`` per head: ``[B, Tq, H * d]``, ``[B, Tk, H * d]`` twice to ``[B, Tq, H * d]``.

    ``scale`` None is ``1 / sqrt(d)``; ``mask`` broadcasts against ``[B, H, Tq, Tk]``.
    """
    q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(0, 2, 1, 3) for part in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = None if mask is None else mask.astype(q.dtype)
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)
