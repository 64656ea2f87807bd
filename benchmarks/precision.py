"""Layers of ltx-tiny and of published models in bfloat16, float32 and float16 on this device, and what ``auto`` chose.

The last column is the time of the choice over the shortest one, which the policy keeps under 1.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.common import Options, Table, Timing, alternate
from ltx_core.model.video_vae.conv_cache import ConvCache
from ltx_core.model.video_vae.layers import CausalConv3d
from ltx_core.precision import cpu_has_units, resolve

DTYPES = ("bfloat16", "float32", "float16")
SECONDS = 0.02  # that one measurement of float32 takes at least
Layer = Callable[[torch.dtype, torch.device], Callable[[], Any]]


def conv3d(channels: int, frames: int, height: int, width: int) -> Layer:
    """A convolution of the video VAE."""

    def layer(dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
        module = CausalConv3d(channels, channels).to(device, dtype)
        x = torch.randn(1, channels, frames, height, width, device=device).to(dtype)
        return lambda: module(x, ConvCache())

    return layer


def linear(tokens: int, width: int, to: int) -> Layer:
    def layer(dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
        module = torch.nn.Linear(width, to).to(device, dtype)
        x = torch.randn(1, tokens, width, device=device).to(dtype)
        return lambda: module(x)

    return layer


def attention(tokens: int, heads: int, width: int) -> Layer:
    def layer(dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
        q, k, v = torch.randn(3, 1, heads, tokens, width, device=device).to(dtype)
        return lambda: functional.scaled_dot_product_attention(q, k, v)

    return layer


CASES = {
    "conv3d, tiny: 32 channels, 8 x 64 x 64": conv3d(32, 8, 64, 64),
    "conv3d, tiny: 128 channels, 7 x 8 x 8": conv3d(128, 7, 8, 8),
    "conv3d, published: 512 channels, 3 x 8 x 12": conv3d(512, 3, 8, 12),
    "linear, tiny: 448 tokens, 192 to 768": linear(448, 192, 768),
    "linear, published: 256 tokens, 4096 to 4096": linear(256, 4096, 4096),
    "attention, tiny: 448 tokens, 4 heads of 48": attention(448, 4, 48),
    "attention, published: 1536 tokens, 8 heads of 128": attention(1536, 8, 128),
}


def run(options: Options) -> list[Table]:
    device = options.device
    chosen = resolve("auto", device).name
    columns = ("layer", *(f"{name} ms" for name in DTYPES), "bfloat16 / float32", "auto", "auto / fastest")
    table = Table("Precision", columns)
    cases = list(CASES.items())[3::2] if options.quick else CASES.items()
    for name, layer in cases:
        timing, repeats = measured(layer, options)
        median = {dtype: timing.median(dtype) / repeats for dtype in DTYPES}
        fastest = min(median, key=median.__getitem__)
        shown = [f"{1e3 * median[dtype]:.3f}" for dtype in DTYPES]
        ratios = [timing.ratio("bfloat16", "float32"), timing.ratio(chosen, fastest)]
        table.rows.append([name, *shown, f"{ratios[0]:.2f}", chosen, f"{ratios[1]:.2f}"])
    if device.type == "cpu":
        has = "has" if cpu_has_units() else "has no"
        table.notes.append(f"by what torch and the kernel tell this processor {has} units for bfloat16")
    return [table]


def measured(layer: Layer, options: Options) -> tuple[Timing, int]:
    """The times of a layer in every precision, and how often it was run in each measurement."""
    calls = {name: layer(getattr(torch, name), options.device) for name in DTYPES}
    once = alternate({"float32": calls["float32"]}, options, measure_memory=False).median("float32")
    repeats = max(1, int(SECONDS / max(once, 1e-6)))
    arms = {name: lambda call=call: [call() for _ in range(repeats)][-1] for name, call in calls.items()}
    return alternate(arms, options, measure_memory=False), repeats
