"""Attention with normalised queries and keys, rotary positions, a gate per head, and a choice of kernels.

Per module, with ``inner = heads * head_dim``::

    to_q [inner, query_width]    to_k, to_v [inner, context_width]    to_out.0 [query_width, inner]
    q_norm, k_norm [inner]       to_gate_logits [heads, query_width]  (only when gated)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.errors import ConfigError, check_known
from ltx_core.guidance.perturbations import Keep
from ltx_core.model.transformer.masks import AttentionBias, with_head_axis
from ltx_core.model.transformer.rope import RotaryTable
from ltx_core.model.transformer.sparse import BlockPattern
from ltx_core.utils import RMSNorm

AUTO = "auto"
FLEX_BLOCK = 128  # tokens that the compiled kernel takes at once
#: What is added to the scores, or which blocks of keys each block of queries sees.
Bias = Tensor | BlockPattern | None


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Bias = None, backend: str = AUTO) -> Tensor:
    """``softmax(q k^T / sqrt(head_dim) + bias) v`` per head.

    ``q`` is ``[B, Tq, H, d]``, ``k`` and ``v`` are ``[B, Tk, H, d]``, ``bias`` broadcasts against ``[B, H, Tq, Tk]`` or
    is a pattern of blocks of tokens that stand in its order; the result is ``[B, Tq, H, d]``. ``auto`` takes a backend
    that can; a named one that cannot raises ``ConfigError`` with its reason.
    """
    chosen = find_backend(automatic(q, bias) if backend == AUTO else backend)
    if reason := chosen.usable(q, bias):
        raise ConfigError(f"attention backend {backend!r} cannot run here: {reason}")
    return chosen.run(q, k, v, bias)


@dataclass(frozen=True)
class AttentionBackend:
    """One kernel: why it cannot be used on a query and bias (None when it can), and how it runs."""

    usable: Callable[[Tensor, Bias], str | None]
    run: Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def automatic(q: Tensor, bias: Bias) -> str:
    """The backend that ``auto`` takes."""
    if isinstance(bias, BlockPattern):
        return "flex" if q.device.type == "cuda" and _flex_usable(q, bias) is None else "blocks"
    return "flash" if _flash_usable(q, bias) is None else "sdpa"


def find_backend(name: str) -> AttentionBackend:
    """The backend of that name; ``ConfigError`` names the choices."""
    check_known("attention backend", name, (AUTO, *BACKENDS))
    return BACKENDS[name]


def _takes_a_mask(q: Tensor, bias: Bias) -> str | None:
    return "it takes no pattern of blocks" if isinstance(bias, BlockPattern) else None


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def _math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax of one product times the other; holds ``[B, H, T, S]``. For short sequences trained on a CPU, where the
    fused kernel's backward pass is several times slower.
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


@cache
def _flash_module() -> str | None:
    """The installed flash-attention module, the newest first."""
    return next((name for name in ("flash_attn_interface", "flash_attn") if importlib.util.find_spec(name)), None)


def _flash_usable(q: Tensor, bias: Bias) -> str | None:
    if q.device.type != "cuda":
        return f"it needs a CUDA device, the query is on {q.device.type}"
    if _flash_module() is None:
        return "flash-attn is not installed"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, the query is {q.dtype}"
    return "it takes no mask" if bias is not None else None


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    out = importlib.import_module(str(_flash_module())).flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out


@cache
def _flex_kernel(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel, dynamic=False) if compiled else kernel


def _flex_usable(q: Tensor, bias: Bias) -> str | None:
    if q.device.type == "cuda" and q.shape[-1] < 16:
        return f"it needs heads of at least 16 channels, the query has {q.shape[-1]}"
    if q.device.type == "cuda" and isinstance(bias, BlockPattern) and bias.block % FLEX_BLOCK:
        return f"it needs blocks of a multiple of {FLEX_BLOCK} tokens, the pattern has {bias.block}"
    return None


def _flex(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    add_bias = None
    if isinstance(bias, Tensor):
        full = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

        def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + full[b, h, i, j]

    kernel, seen = _flex_kernel(q.device.type == "cuda"), bias.block_mask if isinstance(bias, BlockPattern) else None
    return kernel(q, k, v, score_mod=add_bias, block_mask=seen).transpose(1, 2)


def _blocks(q: Tensor, k: Tensor, v: Tensor, pattern: BlockPattern) -> Tensor:
    """One call for the queries that see the same keys, on these keys alone."""
    return torch.cat([_sdpa(q[:, rows], k[:, keys], v[:, keys], None) for rows, keys in pattern.rows], dim=1)


BACKENDS: dict[str, AttentionBackend] = {
    "flash": AttentionBackend(_flash_usable, _flash),
    "sdpa": AttentionBackend(_takes_a_mask, _sdpa),
    "math": AttentionBackend(_takes_a_mask, _math),
    "flex": AttentionBackend(_flex_usable, _flex),
    "blocks": AttentionBackend(
        lambda q, bias: None if isinstance(bias, BlockPattern) else "it needs a pattern of blocks", _blocks
    ),
}


@dataclass(frozen=True)
class KeysValues:
    """Projected keys (normalised and rotated) and values ``[B, Tk, inner]``."""

    keys: Tensor | None  # None: only the values are wanted
    values: Tensor
    bias: Tensor | None = None  # of a padded text; broadcasts against [B, H, Tq, Tk]


@dataclass(frozen=True)
class Bypass:
    """Samples that pass something else on in place of the attention result."""

    keep: Keep = True  # not kept: the value projection
    keep_from_input: Keep = True  # not kept: the attention's input

    @property
    def is_total(self) -> bool:
        """Whether no sample needs the attention itself."""
        return self.keep is False or self.keep_from_input is False


NO_BYPASS = Bypass()


class Attention(nn.Module):
    """Self-attention, text attention or cross-modal attention, by what it is given."""

    def __init__(
        self, query_width: int, context_width: int, heads: int, head_dim: int, *, gated: bool = False, eps: float = 1e-6
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.backend = AUTO
        self.to_q = nn.Linear(query_width, inner)
        self.to_k = nn.Linear(context_width, inner)
        self.to_v = nn.Linear(context_width, inner)
        self.q_norm = RMSNorm(inner, eps=eps)  # over all heads together
        self.k_norm = RMSNorm(inner, eps=eps)
        self.to_gate_logits = nn.Linear(query_width, heads) if gated else None
        self.to_out = nn.ModuleList([nn.Linear(inner, query_width)])

    def forward(
        self,
        x: Tensor,
        context: Tensor | KeysValues | None = None,
        *,
        rope: RotaryTable | None = None,
        key_rope: RotaryTable | None = None,
        bias: AttentionBias | None = None,
        bypass: Bypass = NO_BYPASS,
    ) -> Tensor:
        """Queries from ``x`` ``[B, Tq, query_width]``, keys and values from ``context`` (None: from ``x``).

        ``key_rope`` None rotates keys by ``rope``. ``bias`` is additive, see ``attention``, or given
        by groups of queries. Returns ``[B, Tq, query_width]``.
        """
        if not isinstance(context, KeysValues):
            source = x if context is None else context
            context = self.project_context(source, key_rope or rope, values_only=bypass.is_total)
        values = context.values
        out = values if bypass.is_total else self._attend(x, context, rope, bias)
        out = keep_or_replace(out, values, bypass.keep)
        out = keep_or_replace(out, x, bypass.keep_from_input)
        return self.to_out[0](self._gate(out, x))

    def project_context(
        self, context: Tensor, rope: RotaryTable | None = None, *, values_only: bool = False
    ) -> KeysValues:
        """Keys and values of ``context`` ``[B, Tk, context_width]``, to be used once or at every step."""
        values = self.to_v(context)
        if values_only:
            return KeysValues(None, values)
        keys = self.k_norm(self.to_k(context))
        return KeysValues(keys if rope is None else rope.rotate(keys), values)

    def project_queries(self, x: Tensor, rope: RotaryTable | None = None) -> Tensor:
        """Queries ``[B, Tq, inner]``, normalised and rotated."""
        queries = self.q_norm(self.to_q(x))
        return queries if rope is None else rope.rotate(queries)

    def _attend(self, x: Tensor, context: KeysValues, rope: RotaryTable | None, bias: AttentionBias | None) -> Tensor:
        if context.keys is None:
            raise ConfigError("context has values only, expected keys too, since the attention is not bypassed")
        q, k, v = (
            part.unflatten(-1, (self.heads, -1))  # [B, T, H, head_dim]
            for part in (self.project_queries(x, rope), context.keys, context.values)
        )
        return self.mix(q, k, v, bias).flatten(2)  # [B, Tq, inner]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None) -> Tensor:
        """Values ``[B, Tk, H, head_dim]`` mixed for every query ``[B, Tq, H, head_dim]``."""
        if isinstance(bias, tuple):
            parts = [attention(q[:, g.queries], k[:, g.keys], v[:, g.keys], g.bias, self.backend) for g in bias]
            return torch.cat(parts, dim=1)
        return attention(q, k, v, None if bias is None else with_head_axis(bias), self.backend)

    def _gate(self, out: Tensor, x: Tensor) -> Tensor:
        """Multiply each head by ``2 sigmoid(logit)``, so that a zero logit changes nothing."""
        if self.to_gate_logits is None:
            return out
        gates = 2 * torch.sigmoid(self.to_gate_logits(x))  # [B, Tq, H]
        return (out.unflatten(-1, (self.heads, -1)) * gates[..., None]).flatten(2)


def keep_or_replace(result: Tensor, replacement: Tensor, keep: Keep) -> Tensor:
    """``result`` for kept samples, ``replacement`` for the others."""
    if isinstance(keep, bool):
        return result if keep else replacement
    return result * keep + replacement * (1 - keep)
