"""The duration head of LTX-2.5 in MLX: contexts of one prompt to the natural length of its shot in seconds.

Tensor names are listed in ``ltx_core.model.duration_head``.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.duration_head.config import DurationHeadConfig
from ltx_mlx.arrays import to_mlx, to_torch
from ltx_mlx.layers import attention, gelu


class DurationHead(nn.Module):
    """Pools both contexts with learned queries and regresses the logarithm of the duration."""

    def __init__(self, config: DurationHeadConfig) -> None:
        super().__init__()
        width = config.pooler_hidden_dim
        self.config = config
        self.video_input_proj = nn.Linear(config.video_width, width)
        self.audio_input_proj = nn.Linear(config.audio_width, width)
        self.video_modality_emb = mx.zeros((width,))
        self.audio_modality_emb = mx.zeros((width,))
        self.attention_pooler = AttentionPooler(width, config.num_queries, config.num_pooler_heads)
        self.mlp_hidden = nn.Linear(config.num_queries * width, config.mlp_hidden)
        self.mlp_out = nn.Linear(config.mlp_hidden, 1)

    def __call__(self, video_context: Tensor | None = None, audio_context: Tensor | None = None) -> Tensor:
        """Seconds ``[B]`` from contexts ``[B, T, width]`` of one modality or both; every position counts."""
        parts, dtype = [], self.mlp_out.weight.dtype
        if video_context is not None:
            parts.append(self.video_input_proj(to_mlx(video_context, dtype)) + self.video_modality_emb)
        if audio_context is not None:
            parts.append(self.audio_input_proj(to_mlx(audio_context, dtype)) + self.audio_modality_emb)
        if not parts:
            raise ConfigError("duration head got no context, expected video_context, audio_context or both")
        pooled = self.attention_pooler(mx.concatenate(parts, axis=1))  # [B, Q, P]
        hidden = gelu(self.mlp_hidden(pooled.reshape(pooled.shape[0], -1)))
        return to_torch(mx.exp(self.mlp_out(hidden)[:, 0]))


class AttentionPooler(nn.Module):
    """Learned queries attend to all tokens: ``[B, T, P]`` to ``[B, Q, P]``."""

    def __init__(self, width: int, num_queries: int, heads: int) -> None:
        super().__init__()
        self.query_tokens = mx.zeros((num_queries, width))
        self.cross_attn = CrossAttention(width, heads)

    def __call__(self, tokens: mx.array) -> mx.array:
        queries = mx.broadcast_to(self.query_tokens, (tokens.shape[0], *self.query_tokens.shape))
        return self.cross_attn(queries, tokens)


class CrossAttention(nn.Module):
    """Attention with one stored projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = mx.zeros((3 * width, width))
        self.in_proj_bias = mx.zeros((3 * width,))
        self.out_proj = nn.Linear(width, width)

    def __call__(self, queries: mx.array, tokens: mx.array) -> mx.array:
        weights, biases = mx.split(self.in_proj_weight, 3), mx.split(self.in_proj_bias, 3)
        inputs = zip((queries, tokens, tokens), weights, biases, strict=True)
        q, k, v = (x @ weight.T + bias for x, weight, bias in inputs)
        return self.out_proj(attention(q, k, v, self.heads))
