"""Weights in 8 bits: the error of a cast and of one scale per row, by layer and of the whole output."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Options, Table
from benchmarks.files import transformer_file
from benchmarks.models import LTX_23, Size, modalities_of, section_of, tiny_size
from ltx_core.loader import Checkpoint
from ltx_core.loader.fp8 import quantize_per_row, to_fp8

POLICIES = ("fp8-cast", "fp8-rowwise")
SPREADS = (0.04, 0.01, 0.005)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


@torch.no_grad()
def run(options: Options) -> list[Table]:
    blocks, heads, width = (4, 4, 32) if options.quick else (4, 8, 64)
    small = Size("", section_of(blocks, heads, width, LTX_23), 192, 26, 64)
    return [
        weights(),
        model(replace(small, name=f"{heads * width} wide, two quantised blocks"), options),
        model(tiny_size(options.quick), options),
    ]


def weights() -> Table:
    table = Table("Relative error of a weight, %", ("spread", "cast", "one scale per row"))
    for spread in SPREADS:
        weight = spread * torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
        quantized, scale = quantize_per_row(weight)
        errors = relative(to_fp8(weight), weight), relative(quantized.float() * scale, weight)
        table.rows.append([f"{spread}", *(f"{100 * error:.2f}" for error in errors)])
    return table


def model(size: Size, options: Options) -> Table:
    """Inner blocks quantised between two that are spared."""
    table = Table(
        f"Relative error of outputs, %, {size.name}",
        ("layer", *POLICIES),
        notes=[
            "fp8-cast quantises the first and the last block too; layers are those of block 1, each on its own input"
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.open(transformer_file(size, Path(folder), torch.bfloat16))
        networks = {
            name: checkpoint.build("transformer", torch.float32, options.device, quantization=name)
            for name in (None, *POLICIES)
        }
        plain: Any = networks[None]
        given = modalities_of(plain, size, options.device)
        layers = recorded_layers(plain, given)
        errors: dict[str, list[str]] = defaultdict(list)
        for policy in POLICIES:
            quantized: Any = networks[policy]
            for name, (x, want) in layers.items():
                errors[name].append(f"{100 * relative(quantized.get_submodule(name)(x), want):.2f}")
            outputs = [network(given["video"], given["audio"]) for network in (quantized, plain)]
            for stream, got, want in zip(("video", "audio"), *outputs, strict=True):
                errors[f"{stream} velocity"].append(f"{100 * relative(got, want):.2f}")
        table.rows += [[name.removeprefix("transformer_blocks."), *values] for name, values in errors.items()]
    return table


def recorded_layers(network: Any, given: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every large linear of block 1."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, out: Tensor) -> None:
            seen[name] = args[0], out

        return hook

    hooks = [
        module.register_forward_hook(record(name))
        for name, module in network.named_modules()
        if name.startswith("transformer_blocks.1.") and isinstance(module, nn.Linear) and "gate" not in name
    ]
    network(given["video"], given["audio"])
    for hook in hooks:
        hook.remove()
    return seen
