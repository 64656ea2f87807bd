"""Attention: the backends that can run here, and strength masks as a dense bias against groups of tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.common import COMPARISON, Options, Table, alternate, comparison
from ltx_core.conditioning.mask_utils import build_attention_mask
from ltx_core.model.transformer.attention import BACKENDS, Attention, attention
from ltx_core.model.transformer.masks import StrengthGroups, self_attention_bias
from ltx_core.precision import resolve


def run(options: Options) -> list[Table]:
    return [backends(options), masks(options)]


def shapes(options: Options) -> list[tuple[int, int, int]]:
    """Tokens, heads, head width."""
    if options.device.type == "cuda":
        return [(6144, 32, 128)]
    return [(256, 4, 48)] if options.quick else [(448, 4, 48), (1536, 8, 64), (4096, 8, 64)]


def backends(options: Options) -> Table:
    dtype = resolve("auto", options.device).dtype
    table = Table("Attention backends", ("tokens, heads, backend", "seconds", "max abs diff"))
    for tokens, heads, width in shapes(options):
        q, k, v = torch.randn(3, 1, tokens, heads, width, device=options.device).to(dtype)
        arms: dict[str, Any] = {}
        for name, backend in BACKENDS.items():
            if reason := backend.usable(q, None):
                table.rows.append([f"{tokens}, {heads} of {width}, {name}", "-", reason])
            else:
                arms[name] = partial(attention, q, k, v, None, name)
        timing = alternate(arms, options, measure_memory=False)
        table.rows += [
            [
                f"{tokens}, {heads} of {width}, {name}",
                f"{timing.median(name):.4f}",
                f"{timing.difference(name, 'sdpa'):.1e}",
            ]
            for name in arms
        ]
    return table


def masks(options: Options) -> Table:
    """A reference appended: three quarters of the tokens are the target's."""
    dtype = resolve("auto", options.device).dtype
    table = Table(
        "Self-attention with strengths: dense bias made in every forward (plain), groups (improved)", COMPARISON
    )
    for tokens, heads, width in shapes(options):
        torch.manual_seed(0)
        module = Attention(heads * width, heads * width, heads, width).to(options.device, dtype)
        x = torch.randn(1, tokens, heads * width, device=options.device).to(dtype)
        target = tokens * 3 // 4
        for strength in (0.5, 0.0):
            weights = torch.full((1, tokens - target), strength, device=options.device)
            mask = build_attention_mask(None, weights, target, target)
            groups = StrengthGroups.of(mask)
            arms = {
                "plain": lambda module=module, x=x, mask=mask: module(x, bias=self_attention_bias(mask, dtype)),
                "improved": lambda module=module, x=x, groups=groups: module(x, bias=groups.bias(dtype)),
            }
            name = f"{tokens} tokens, {heads} heads of {width}, strength {strength}"
            table.rows.append(comparison(name, alternate(arms, options)))
    return table
