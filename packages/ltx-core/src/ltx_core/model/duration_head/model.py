"""The duration head of LTX-2.5: contexts of one prompt to the natural length of its shot in seconds.

Tensors, with P = pooler_hidden_dim, Q = num_queries, M = mlp_hidden::

    video_input_proj [P, video width]    audio_input_proj [P, audio width]    video_modality_emb, audio_modality_emb [P]
    attention_pooler.query_tokens [Q, P]
    attention_pooler.cross_attn.{in_proj_weight [3P, P], in_proj_bias, out_proj [P, P]}
    mlp_hidden [M, Q * P]    mlp_out [1, M]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.components import helpers
from ltx_core.errors import ConfigError
from ltx_core.model.duration_head.config import DurationHeadConfig
from ltx_core.types import SpatioTemporalScaleFactors

MIN_SECONDS, MAX_SECONDS = 1.0, 20.0


class DurationHead(nn.Module):
    """Pools both contexts with learned queries and regresses the logarithm of the duration."""

    def __init__(self, config: DurationHeadConfig) -> None:
        super().__init__()
        width = config.pooler_hidden_dim
        self.config = config
        self.video_input_proj = nn.Linear(config.video_width, width)
        self.audio_input_proj = nn.Linear(config.audio_width, width)
        self.video_modality_emb = nn.Parameter(torch.zeros(width))
        self.audio_modality_emb = nn.Parameter(torch.zeros(width))
        self.attention_pooler = AttentionPooler(width, config.num_queries, config.num_pooler_heads)
        self.mlp_hidden = nn.Linear(config.num_queries * width, config.mlp_hidden)
        self.mlp_out = nn.Linear(config.mlp_hidden, 1)

    def forward(self, video_context: Tensor | None = None, audio_context: Tensor | None = None) -> Tensor:
        """Seconds ``[B]`` from contexts ``[B, T, width]`` of one modality or both; every position counts.

        Raises ``ConfigError`` when both are missing.
        """
        pooled = self.attention_pooler(self.tokens(video_context, audio_context))  # [B, Q, P]
        hidden = F.gelu(self.mlp_hidden(pooled.flatten(1)), approximate="tanh")  # [B, M]
        return self.mlp_out(hidden).squeeze(-1).exp()

    def tokens(self, video_context: Tensor | None, audio_context: Tensor | None) -> Tensor:
        """The tokens that queries attend to ``[B, T, P]``: video first, then audio."""
        parts = []
        if video_context is not None:
            parts.append(self.video_input_proj(video_context) + self.video_modality_emb)
        if audio_context is not None:
            parts.append(self.audio_input_proj(audio_context) + self.audio_modality_emb)
        if not parts:
            raise ConfigError("duration head got no context, expected video_context, audio_context or both")
        return torch.cat(parts, dim=1)


class AttentionPooler(nn.Module):
    """Learned queries attend to all tokens: ``[B, T, P]`` to ``[B, Q, P]``."""

    def __init__(self, width: int, num_queries: int, heads: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(num_queries, width))
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        queries = self.query_tokens.expand(tokens.shape[0], -1, -1)
        return self.cross_attn(queries, tokens, tokens, need_weights=False)[0]


def seconds_to_frames(
    seconds: float,
    frame_rate: float,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
    time_scale: int = 8,
) -> int:
    """The frame count ``time_scale * k + 1`` for a predicted duration, within bounds given in seconds."""
    low, high = round(min_seconds * frame_rate), round(max_seconds * frame_rate)
    factors = SpatioTemporalScaleFactors(time_scale, 32, 32)
    return helpers.seconds_to_frames(seconds, frame_rate, low, high, factors)


def predict_num_frames(
    head: DurationHead,
    video_context: Tensor | None,
    audio_context: Tensor | None,
    frame_rate: float,
    bounds: tuple[float, float] = (MIN_SECONDS, MAX_SECONDS),
) -> int:
    """The frame count for one prompt from its contexts ``[1, T, width]``; ``bounds`` in seconds.

    Raises ``ConfigError`` for a batch of several prompts.
    """
    with torch.no_grad():
        seconds = head(video_context, audio_context)
    if seconds.numel() != 1:
        raise ConfigError(f"duration head got {seconds.numel()} prompts, expected 1: a clip has one length")
    return seconds_to_frames(float(seconds), frame_rate, *bounds)
