"""The language models of LTX-2: the decoders of Gemma 3 and of Gemma 4 "unified", up to their last norm.

``transformers`` has them too, but takes longer to import than a small model takes to encode; a test holds the two
against each other. Tensors, V tokens, width D, heads of width h::

    embed_tokens.weight                          [V, D]
    layers.N.self_attn.{q,k,v,o}_proj.weight     [heads * h, D], [kv heads * h, D] twice, [D, heads * h]
    layers.N.self_attn.{q,k}_norm.weight         [h]
    layers.N.mlp.{gate,up,down}_proj.weight      [I, D] twice, [D, I]
    layers.N.{input,post_attention,pre_feedforward,post_feedforward}_layernorm.weight    [D]
    layers.N.layer_scalar                        [1], Gemma 4 only
    norm.weight                                  [D]

Gemma 4 keeps no ``v_proj`` in layers whose values are their keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.text_encoders.gemma.config import GemmaConfig, LayerConfig, Rope
from ltx_core.utils import rms_norm


class Norm(nn.Module):
    """Root mean square norm over the last axis, in float32."""

    def __init__(self, width: int, config: GemmaConfig) -> None:
        super().__init__()
        self.eps, self.offset = config.eps, 0.0 if config.is_gemma4 else 1.0
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return (rms_norm(x.float(), eps=self.eps) * (self.offset + self.weight.float())).to(x.dtype)


class Attention(nn.Module):
    """Grouped attention whose queries and keys are normalised and rotated."""

    def __init__(self, layer: LayerConfig, config: GemmaConfig) -> None:
        super().__init__()
        self.layer, self.config = layer, config
        head_dim = layer.head_dim
        self.q_proj = nn.Linear(config.width, layer.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, layer.kv_heads * head_dim, bias=False)
        if not layer.keys_are_values:
            self.v_proj = nn.Linear(config.width, layer.kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(layer.heads * head_dim, config.width, bias=False)
        self.q_norm, self.k_norm = Norm(head_dim, config), Norm(head_dim, config)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
        head_dim, groups = self.layer.head_dim, self.layer.heads // self.layer.kv_heads
        q = self.q_proj(x).unflatten(-1, (-1, head_dim))  # [1, n, heads, h]
        k = self.k_proj(x).unflatten(-1, (-1, head_dim))
        v = k if self.layer.keys_are_values else self.v_proj(x).unflatten(-1, (-1, head_dim))
        if self.config.is_gemma4:
            v = rms_norm(v.float(), eps=self.config.eps).to(x.dtype)
        q, k = _rotate(self.q_norm(q), tables), _rotate(self.k_norm(k), tables)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [1, heads, n, h]
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.layer.score_scale)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def rotation(rope: Rope, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[n, h]`` of positions ``[n]``, computed in float32."""
    angles = positions[:, None].float() * rope.frequencies().to(positions.device)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate ``[1, n, heads, h]``: channel i with channel i + h / 2."""
    cos, sin = (table[:, None] for table in tables)  # [n, 1, h]
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class FeedForward(nn.Module):
    """A gated layer: ``down(gelu(gate(x)) * up(x))``."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.inner_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.inner_width, bias=False)
        self.down_proj = nn.Linear(config.inner_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each between two norms."""

    def __init__(self, layer: LayerConfig, config: GemmaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(layer, config)
        self.mlp = FeedForward(config)
        self.input_layernorm = Norm(config.width, config)
        self.post_attention_layernorm = Norm(config.width, config)
        self.pre_feedforward_layernorm = Norm(config.width, config)
        self.post_feedforward_layernorm = Norm(config.width, config)
        self.layer_scalar = nn.Parameter(torch.empty(1)) if config.is_gemma4 else None

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), tables, visible))
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x if self.layer_scalar is None else x * self.layer_scalar
