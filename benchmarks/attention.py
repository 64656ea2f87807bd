"""Attention: the backends that can run here, and strength masks as a dense bias against groups of tokens."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import COMPARISON, Options, Table, alternate, comparison
from ltx_core.conditioning.mask_utils import build_attention_mask
from ltx_core.model.transformer.attention import BACKENDS, Attention, attention
from ltx_core.model.transformer.masks import StrengthGroups, self_attention_bias


def run(options: Options) -> list[Table]:
    return [backends(options), masks(options)]


def shape(options: Options) -> tuple[int, int, int]:
    """Tokens, heads, head width."""
    if options.device.type == "cuda":
        return 6144, 32, 128
    return (256, 4, 48) if options.quick else (1536, 8, 64)


def backends(options: Options) -> Table:
    tokens, heads, width = shape(options)
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    q, k, v = torch.randn(3, 1, tokens, heads, width, device=options.device).to(dtype)
    arms: dict[str, Any] = {}
    table = Table(
        f"Attention backends, {tokens} tokens, {heads} heads of {width}", ("backend", "seconds", "max abs diff")
    )
    for name, backend in BACKENDS.items():
        if reason := backend.usable(q, None):
            table.rows.append([name, "-", reason])
        else:
            arms[name] = lambda name=name: attention(q, k, v, None, name)
    timing = alternate(arms, options, measure_memory=False)
    table.rows += [[name, f"{timing.median(name):.4f}", f"{timing.difference(name, 'sdpa'):.1e}"] for name in arms]
    return table


def masks(options: Options) -> Table:
    """A reference appended with half its strength: three quarters of the tokens are the target's."""
    tokens, heads, width = shape(options)
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    module = Attention(heads * width, heads * width, heads, width).to(options.device, dtype)
    x = torch.randn(1, tokens, heads * width, device=options.device).to(dtype)
    table = Table(
        "Self-attention with strengths: dense bias made in every forward (plain), groups (improved)", COMPARISON
    )
    target = tokens * 3 // 4
    for strength in (0.5, 0.0):
        weights = torch.full((1, tokens - target), strength, device=options.device)
        mask = build_attention_mask(None, weights, target, target)
        groups = StrengthGroups.of(mask)
        arms = {
            "plain": lambda mask=mask: module(x, bias=self_attention_bias(mask, dtype)),
            "improved": lambda groups=groups: module(x, bias=groups.bias(dtype)),
        }
        table.rows.append(comparison(f"strength {strength}", alternate(arms, options)))
    return table
