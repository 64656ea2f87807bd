"""Feature extractor and connectors in MLX: states of the language model to the contexts the transformer reads.

States are packed: ``[n, D]`` holds the n valid tokens of all prompts in a row. Tensor names are listed in
``ltx_core.text_encoders.gemma``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.masks import context_bias
from ltx_core.text_encoders.gemma.config import ConnectorConfig, EmbeddingsConfig, FeatureExtractorConfig
from ltx_mlx.arrays import TORCH_DTYPES, to_mlx
from ltx_mlx.layers import rms_norm
from ltx_mlx.transformer import Attention, FeedForward, Rope

EPS = 1e-6
PER_PROMPT_RANGE = 8.0  # width of the interval per-prompt normalisation maps a state to


class FeatureExtractor(nn.Module):
    """Normalises every state and projects all of them together; column ``d * L + l`` reads channel d of state l."""

    def __init__(self, config: FeatureExtractorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size * config.num_states
        if not config.per_token:
            self.aggregate_embed = nn.Linear(width, config.hidden_size, bias=False)
            return
        self.video_aggregate_embed = nn.Linear(width, config.video_width)
        if config.audio_width is not None:
            self.audio_aggregate_embed = nn.Linear(width, config.audio_width)

    @property
    def dtype(self) -> mx.Dtype:
        embed = self.video_aggregate_embed if self.config.per_token else self.aggregate_embed
        return embed.weight.dtype

    def __call__(self, states: Sequence[mx.array], mask: Tensor) -> tuple[mx.array, mx.array | None]:
        """Features ``[B, T, C]`` of video and audio, of normalised states ``[n, D]`` and the mask ``[B, T]``.

        Padding is zero or the projection's bias. Raises ``ConfigError`` when the number of states is another.
        """
        config = self.config
        if len(states) != config.num_states:
            raise ConfigError(f"feature extractor got {len(states)} states, expected {config.num_states}")
        x = mx.stack(list(states), axis=-1).reshape(states[0].shape[0], -1)  # [n, D * L]
        if not config.per_token:
            features = unpack(self.aggregate_embed(x), None, mask)
            return features, None if config.audio_width is None else features
        video = self._rescale(x, self.video_aggregate_embed, mask)
        audio = None if config.audio_width is None else self._rescale(x, self.audio_aggregate_embed, mask)
        return video, audio

    def _rescale(self, x: mx.array, linear: nn.Linear, mask: Tensor) -> mx.array:
        scale = math.sqrt(linear.weight.shape[0] / self.config.hidden_size)
        rows = (x @ linear.weight.T).astype(mx.float32) * scale + linear.bias.astype(mx.float32)
        return unpack(rows.astype(x.dtype), linear.bias, mask)

    def normalize(self, state: mx.array, lengths: Sequence[int]) -> mx.array:
        """One state ``[n, D]`` of prompts with ``lengths`` valid tokens, computed in float32."""
        x = state.astype(mx.float32)
        normed = rms_norm(x, EPS) if self.config.per_token else normalize_per_prompt(x, lengths)
        return normed.astype(self.dtype)


def normalize_per_prompt(x: mx.array, lengths: Sequence[int]) -> mx.array:
    """Zero mean and a range of 8 over all tokens and channels of each prompt."""
    rows, start = [], 0
    for length in lengths:
        part = x[start : start + length]
        start += length
        if length:
            mean = mx.sum(part) / (part.size + EPS)
            rows.append(PER_PROMPT_RANGE * (part - mean) / (mx.max(part) - mx.min(part) + EPS))
    return mx.concatenate(rows)


def unpack(rows: mx.array, padding: mx.array | None, mask: Tensor) -> mx.array:
    """Packed rows ``[n, C]`` in the layout of ``mask`` ``[B, T]``, with zeros or ``padding`` where it is 0."""
    filler = mx.zeros((1, rows.shape[1])) if padding is None else padding[None]
    table = mx.concatenate([rows, filler.astype(rows.dtype)])
    valid = mask.bool().cpu()
    places = torch.where(valid, valid.flatten().cumsum(0).view_as(valid) - 1, rows.shape[0])
    return table[to_mlx(places)]


class ConnectorBlock(nn.Module):
    """Self-attention, then feed-forward, each on the normalised stream."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        width = config.width
        self.attn1 = Attention(width, width, config.heads, config.head_dim, config.gated, EPS)
        self.ff = FeedForward(width, config.ff_bias)

    def __call__(self, x: mx.array, rope: Rope, mask: mx.array | None) -> mx.array:
        x = x + self.attn1(rms_norm(x, EPS), None, rope, mask)
        return x + self.ff(rms_norm(x, EPS))


class Embeddings1DConnector(nn.Module):
    """A bidirectional transformer over the tokens of a prompt, valid tokens first."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        if config.num_registers is not None:
            self.learnable_registers = mx.zeros((config.num_registers, config.width))
        self.transformer_1d_blocks = [ConnectorBlock(config) for _ in range(config.num_layers)]

    def __call__(self, features: mx.array, valid: Tensor) -> tuple[mx.array, Tensor]:
        """Features ``[B, T, C]`` with their padding last and ``valid`` ``[B, T]`` bool, to (context, validity after).

        With registers every position of the result is valid; T must then be a multiple of their number, else
        ``ConfigError``. Without registers padding is masked in attention and stays padding.
        """
        dtype, mask = TORCH_DTYPES[features.dtype], None
        if self.config.num_registers is None:
            bias = context_bias(valid, dtype)
            mask = None if bias is None else to_mlx(bias)
        else:
            features, valid = self._with_registers(features, valid), torch.ones_like(valid)
        slots = torch.arange(features.shape[1], dtype=torch.float32)
        rope = Rope.of(self.config.rope, slots[None, None], dtype)
        for block in self.transformer_1d_blocks:
            features = block(features, rope, mask)
        return rms_norm(features, EPS), valid

    def _with_registers(self, features: mx.array, valid: Tensor) -> mx.array:
        """Slot i of the padding becomes register i modulo R."""
        slots, registers = features.shape[1], self.learnable_registers.astype(features.dtype)
        if slots % len(registers):
            raise ConfigError(f"prompt length is {slots} tokens, expected a multiple of {len(registers)} registers")
        return mx.where(to_mlx(valid)[..., None], features, mx.tile(registers, (slots // len(registers), 1)))


class EmbeddingsProcessor(nn.Module):
    """Feature extractor and connectors; a config without ``features`` or ``audio`` leaves those out."""

    def __init__(self, config: EmbeddingsConfig) -> None:
        super().__init__()
        self.config = config
        if config.features is not None:
            self.feature_extractor = FeatureExtractor(config.features)
        self.video_connector = Embeddings1DConnector(config.video)
        if config.audio is not None:
            self.audio_connector = Embeddings1DConnector(config.audio)

    def __call__(self, video: mx.array, audio: mx.array | None, mask: Tensor) -> tuple[mx.array, mx.array | None]:
        """Contexts of both streams from features ``[B, T, C]`` with padding anywhere."""
        if (audio is None) != ("audio_connector" not in self):
            given = "no audio features" if audio is None else "audio features"
            raise ConfigError(f"embeddings processor got {given}, expected what its connectors take")
        valid = mask.cpu().bool()
        order = torch.argsort(valid.to(torch.int8), dim=1, descending=True, stable=True)  # valid tokens first
        valid, places = valid.gather(1, order), to_mlx(order)[..., None]
        video_context, _ = self.video_connector(mx.take_along_axis(video, places, 1), valid)
        if audio is None:
            return video_context, None
        return video_context, self.audio_connector(mx.take_along_axis(audio, places, 1), valid)[0]
