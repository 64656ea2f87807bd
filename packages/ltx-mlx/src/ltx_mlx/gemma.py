"""The language model body of Gemma 3 and Gemma 4 (unified) in MLX: token ids to the states of every layer.

Tensors, for layer N (sizes by head differ between sliding and full layers of Gemma 4)::

    embed_tokens [vocab, D]    norm [D]
    layers.N.{input,post_attention}_layernorm [D]    layers.N.{pre,post}_feedforward_layernorm [D]
    layers.N.self_attn.{q,k,v,o}_proj    layers.N.self_attn.{q,k}_norm [head_dim]    layers.N.layer_scalar [1] (Gemma 4)
    layers.N.mlp.{gate,up}_proj [I, D]    layers.N.mlp.down_proj [D, I]

Only valid tokens are computed with, packed in one row ``[1, n]``, each at the position it has in its padded prompt; a
mask keeps prompts apart. With L layers there are L + 1 states: the scaled embedding, the residual stream after layers 1
to L - 1, and the normalised stream after layer L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from ltx_core.text_encoders.gemma.config import GemmaConfig, LayerConfig
from ltx_core.text_encoders.gemma.tokenizer import TokenBatch
from ltx_mlx.arrays import to_mlx
from ltx_mlx.layers import gelu


class Norm(nn.Module):
    """RMS norm in float32; Gemma 3 stores its weight less one."""

    def __init__(self, width: int, config: GemmaConfig) -> None:
        super().__init__()
        self.weight = mx.zeros((width,))
        self.eps, self.offset = config.eps, 0.0 if config.is_gemma4 else 1.0

    def __call__(self, x: mx.array) -> mx.array:
        weight = self.weight.astype(mx.float32) + self.offset
        return mx.fast.rms_norm(x.astype(mx.float32), weight, self.eps).astype(x.dtype)


class GemmaAttention(nn.Module):
    """Causal attention with rotated, normalised queries and keys, several queries per key."""

    def __init__(self, layer: LayerConfig, config: GemmaConfig) -> None:
        super().__init__()
        self.layer, self.config = layer, config
        inner, narrow = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, narrow, bias=False)
        if not layer.keys_are_values:
            self.v_proj = nn.Linear(config.width, narrow, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)
        self.q_norm = Norm(layer.head_dim, config)
        self.k_norm = Norm(layer.head_dim, config)

    def __call__(self, x: mx.array, rope: tuple[mx.array, mx.array], mask: mx.array) -> mx.array:
        """``x`` ``[1, n, D]``, ``rope`` cosines and sines ``[n, head_dim / 2]``, ``mask`` bool ``[n, n]``."""
        q, k = self._heads(self.q_proj(x)), self._heads(self.k_proj(x))
        v = k if self.layer.keys_are_values else self._heads(self.v_proj(x))
        if self.config.is_gemma4:
            v = mx.fast.rms_norm(v, None, self.config.eps)
        q, k = (rotate(norm(part), *rope) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        q, k, v = (part.transpose(0, 2, 1, 3) for part in (q, k, v))
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.layer.score_scale, mask=mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self.layer.head_dim)


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Turn the halves of each head of ``[1, n, H, d]`` by cosines and sines ``[n, d / 2]``."""
    cos, sin = (part[None, :, None].astype(x.dtype) for part in (cos, sin))
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class GemmaMlp(nn.Module):
    """``down(gelu(gate(x)) * up(x))``."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.inner_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.inner_width, bias=False)
        self.down_proj = nn.Linear(config.inner_width, config.width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))


class GemmaLayer(nn.Module):
    """Attention and MLP, each normalised before and after."""

    def __init__(self, kind: str, config: GemmaConfig) -> None:
        super().__init__()
        self.self_attn = GemmaAttention(config.layers[kind], config)
        self.mlp = GemmaMlp(config)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            self[f"{name}_layernorm"] = Norm(config.width, config)
        if config.is_gemma4:
            self.layer_scalar = mx.ones((1,))

    def __call__(self, x: mx.array, rope: tuple[mx.array, mx.array], mask: mx.array) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope, mask))
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x * self.layer_scalar if "layer_scalar" in self else x


class GemmaBackbone(nn.Module):
    """The decoder without its output head."""

    BLOCK_LIST = "layers"

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers: Sequence[GemmaLayer] = [GemmaLayer(kind, config) for kind in config.kinds]
        self.norm = Norm(config.width, config)

    def __call__(self, tokens: TokenBatch, visit: Callable[[mx.array], None]) -> None:
        """Call ``visit`` with each state ``[n, D]`` as it is computed; n counts the valid tokens, row by row."""
        tokens.check_vocabulary(self.config.vocab_size)
        valid = tokens.attention_mask.bool()
        prompts, positions = valid.nonzero(as_tuple=True)
        embedded = self.embed_tokens(to_mlx(tokens.input_ids[valid])[None])
        x = embedded * mx.array(math.sqrt(self.config.width)).astype(embedded.dtype)
        distance = positions[:, None] - positions[None]
        before = (prompts[:, None] == prompts[None]) & (distance >= 0)
        places = to_mlx(positions.float())[:, None]
        ropes, masks = {}, {}
        for kind, layer in self.config.layers.items():
            angles = places * to_mlx(layer.rope.frequencies())
            ropes[kind] = mx.cos(angles), mx.sin(angles)
            masks[kind] = to_mlx(before if layer.window is None else before & (distance < layer.window))
        visit(x[0])
        for index, kind in enumerate(self.config.kinds):
            x = self.layers[index](x, ropes[kind], masks[kind])
            mx.eval(x)
            visit((x if index + 1 < len(self.config.kinds) else self.norm(x))[0])

    def hidden_states(self, tokens: TokenBatch) -> list[mx.array]:
        """All states ``[n, D]``."""
        states: list[mx.array] = []
        self(tokens, states.append)
        return states
