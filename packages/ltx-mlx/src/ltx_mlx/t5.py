"""The T5 encoder of LTX-Video 0.9.x in MLX: token ids to embeddings ``[B, T, d_model]``.

Tensor names are listed in ``ltx_core.text_encoders.t5``; no layer has a bias.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import torch
from torch import Tensor

from ltx_mlx.arrays import to_mlx, to_torch
from ltx_mlx.layers import RMSNorm, attention, gelu

if TYPE_CHECKING:
    from transformers import T5Config


class T5Attention(nn.Module):
    """Attention whose scores are not scaled."""

    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        for name in ("q", "k", "v"):
            self[name] = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias_table:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        return self.o(attention(self.q(x), self.k(x), self.v(x), self.heads, bias, scale=1.0))


class T5GatedDense(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(gelu(self.wi_0(x)) * self.wi_1(x))


class T5AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, has_bias_table)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class T5FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = T5GatedDense(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.DenseReluDense(self.layer_norm(x))


class T5Block(nn.Module):
    """Self-attention, then a gated feed-forward, each on the normalised stream."""

    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.layer = [T5AttentionLayer(config, has_bias_table), T5FeedForwardLayer(config)]

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        return self.layer[1](self.layer[0](x, bias))


class T5Stack(nn.Module):
    """All blocks and the final norm."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = [T5Block(config, has_bias_table=index == 0) for index in range(config.num_layers)]
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)


class T5Encoder(nn.Module):
    """The encoder stack with relative positions."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings ``[B, T, d_model]`` of ids ``[B, T]``; keys with ``attention_mask`` 0 are not seen."""
        bias = self.position_bias(input_ids.shape[1])  # [1, H, T, T]
        if attention_mask is not None:
            hidden = to_mlx(attention_mask[:, None, None] == 0)
            bias = mx.where(hidden, mx.finfo(bias.dtype).min, bias)
        x = self.shared(to_mlx(input_ids))
        for block in self.encoder.block:
            x = block(x, bias)
            mx.eval(x)
        return to_torch(self.encoder.final_layer_norm(x))

    def position_bias(self, length: int) -> mx.array:
        """Bias of the scores of each query and key ``[1, H, T, T]``, from the table of the first block."""
        positions, config = torch.arange(length), self.config
        distance = positions[None] - positions[:, None]  # key minus query
        sizes = (config.relative_attention_num_buckets, config.relative_attention_max_distance)
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        return table(to_mlx(relative_buckets(distance, *sizes))).transpose(2, 0, 1)[None]


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of each distance (key minus query): exact when near, logarithmic when far; later keys above.

    ``distance`` is of integers of any shape.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    far = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + far.to(torch.int64)).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(size < exact, size, far)
