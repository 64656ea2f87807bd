"""``EmbeddingsProcessor``: states of the language model to the contexts that the diffusion transformer attends to.

Tensors: ``feature_extractor.*``, ``video_connector.*``, ``audio_connector.*``; in files they are
``text_embedding_projection.*`` and ``model.diffusion_model.{video,audio}_embeddings_connector.*``.

A connector mixes the features of a prompt and fills its padding with learned registers; with C = heads * head_dim and R
registers it has::

    learnable_registers [R, C]
    transformer_1d_blocks.N.attn1.{to_q, to_k, to_v, to_out.0} [C, C] with bias    .attn1.{q_norm, k_norm} [C]
    transformer_1d_blocks.N.attn1.to_gate_logits [heads, C] with bias  (gated)
    transformer_1d_blocks.N.ff.{net.0.proj [4C, C], net.2 [C, 4C]}

Norms of the residual stream have no weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.attention import Attention
from ltx_core.model.transformer.layers import FeedForward
from ltx_core.model.transformer.masks import context_bias
from ltx_core.model.transformer.rope import RotaryTable
from ltx_core.text_encoders.gemma.config import ConnectorConfig, EmbeddingsConfig
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractor, PromptFeatures
from ltx_core.utils import rms_norm


class AVGemmaEncoderOutput(NamedTuple):
    """Contexts of the audio-video model, one row per prompt."""

    video_context: Tensor  # [B, T, Cv]
    audio_context: Tensor  # [B, T, Ca]
    attention_mask: Tensor  # [B, T] int64, all ones


class VideoGemmaEncoderOutput(NamedTuple):
    """Contexts of a video-only model, one row per prompt."""

    video_context: Tensor  # [B, T, Cv]
    attention_mask: Tensor  # [B, T] int64, all ones


class EmbeddingsProcessor(nn.Module):
    """Feature extractor and connectors.

    A config without ``features`` leaves the extractor out, one without ``audio`` the audio connector.
    """

    def __init__(self, config: EmbeddingsConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = None if config.features is None else FeatureExtractor(config.features)
        self.video_connector = Embeddings1DConnector(config.video)
        self.audio_connector = None if config.audio is None else Embeddings1DConnector(config.audio)

    def forward(self, features: PromptFeatures) -> AVGemmaEncoderOutput | VideoGemmaEncoderOutput:
        """Contexts from features with padding anywhere: valid tokens move to the front, connectors do the rest.

        Raises ``ConfigError`` when there are audio features without an audio connector or the reverse.
        """
        if (features.audio is None) != (self.audio_connector is None):
            given = "no audio features" if features.audio is None else "audio features"
            raise ConfigError(f"embeddings processor got {given}, expected what its connectors take")
        valid = features.attention_mask.to(features.video.device, torch.bool)
        order = sort_valid_first(valid)
        valid = valid.gather(1, order)
        video, _ = self.video_connector(_reorder(features.video, order), valid)
        mask = torch.ones(valid.shape, dtype=torch.int64, device=valid.device)
        if self.audio_connector is None or features.audio is None:
            return VideoGemmaEncoderOutput(video, mask)
        audio, _ = self.audio_connector(_reorder(features.audio, order), valid)
        return AVGemmaEncoderOutput(video, audio, mask)


def sort_valid_first(valid: Tensor) -> Tensor:
    """Indices ``[B, T]`` that put valid tokens first and padding last, each in their order."""
    return torch.argsort(valid.to(torch.int8), dim=1, descending=True, stable=True)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))


# The connector --------------------------------------------------------------------------------------------------------


EPS = 1e-6


class Embeddings1DConnector(nn.Module):
    """A bidirectional transformer over the tokens of a prompt, valid tokens first."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        if config.num_registers is not None:
            self.learnable_registers = nn.Parameter(torch.empty(config.num_registers, config.width).uniform_(-1, 1))
        self.transformer_1d_blocks = nn.ModuleList(ConnectorBlock(config) for _ in range(config.num_layers))

    def forward(self, features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, T, C]`` with their padding last and ``valid`` ``[B, T]`` bool, to (context, validity after).

        With registers every position of the result is valid; T must then be a multiple of their number, else
        ``ConfigError``. Without registers padding is masked in attention and stays padding.
        """
        bias = None
        if self.config.num_registers is None:
            bias = context_bias(valid, features.dtype)  # [B, 1, 1, T]
        else:
            features, valid = self.fill_with_registers(features, valid), torch.ones_like(valid)
        rope = self.rope_table(features.shape[1], features.dtype, features.device)
        for block in self.transformer_1d_blocks:
            features = block(features, rope, bias)
        return rms_norm(features, eps=EPS), valid

    def fill_with_registers(self, features: Tensor, valid: Tensor) -> Tensor:
        """Slot i of the padding becomes register i modulo R."""
        slots, registers = features.shape[1], self.learnable_registers.to(features.dtype)
        if slots % len(registers):
            raise ConfigError(f"prompt length is {slots} tokens, expected a multiple of {len(registers)} registers")
        tiled = registers.repeat(slots // len(registers), 1)  # [T, C]
        return torch.where(valid[..., None], features, tiled)

    def rope_table(self, length: int, dtype: torch.dtype, device: torch.device | str | None = None) -> RotaryTable:
        """The rotation of slots 0..length-1."""
        slots = torch.arange(length, dtype=torch.float32, device=device)
        return self.config.rope.table(slots[None, None], dtype)


class ConnectorBlock(nn.Module):
    """Self-attention, then feed-forward, each on the normalised stream."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        width = config.width
        self.attn1 = Attention(width, width, config.heads, config.head_dim, gated=config.gated, eps=EPS)
        self.ff = FeedForward(width, bias=config.ff_bias)

    def forward(self, x: Tensor, rope: RotaryTable, bias: Tensor | None) -> Tensor:
        x = x + self.attn1(rms_norm(x, eps=EPS), rope=rope, bias=bias)
        return x + self.ff(rms_norm(x, eps=EPS))
