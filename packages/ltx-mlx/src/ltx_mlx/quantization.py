"""Quantised linears of the transformer: which layers, how many bits, and how files store them.

A group of neighbouring weights of one row shares a scale (and, in ``affine`` mode, an offset). Stored layers are what
MLX computes with: ``weight`` (uint32, ``32 / bits`` values a word, the lowest bits first), ``scales`` and, when affine,
``biases``, ``[out, in / group]`` each: ``w = scale * q + bias``. Bits and group size follow from the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ltx_core.errors import CheckpointError, ConfigError

#: Linears of a block that may be quantised; all else keeps its precision.
COVERED = (".to_q", ".to_k", ".to_v", ".to_out.0", "ff.net.0.proj", "ff.net.2")
NAME = re.compile(r"mlx-(?:q(?P<bits>[468])(?:-g(?P<group>32|64|128))?|(?P<mode>mxfp4|mxfp8))")
EXAMPLES = ("mlx-q8", "mlx-q6", "mlx-q4", "mlx-mxfp4", "mlx-mxfp8", "mlx-q4-g64")
DEFAULT_GROUP = {8: 64, 6: 64, 4: 32}


@dataclass(frozen=True)
class Quantization:
    """A format; with fewer than 8 bits the first and the last block keep their precision."""

    bits: int
    group_size: int
    mode: str = "affine"  # or "mxfp4", "mxfp8"

    @classmethod
    def parse(cls, name: str) -> Quantization:
        """``mlx-q<bits>[-g<group>]`` or ``mlx-mxfp<bits>``; ``ConfigError`` for another name."""
        found = NAME.fullmatch(name)
        if found is None:
            raise ConfigError(f"quantization is {name!r}, expected one such as {', '.join(EXAMPLES)} with MLX")
        if found["mode"]:
            return cls(int(found["mode"][-1]), 32, found["mode"])
        bits = int(found["bits"])
        return cls(bits, int(found["group"] or DEFAULT_GROUP[bits]))

    @classmethod
    def detect(cls, path: str, shapes: Mapping[str, tuple[int, ...]], in_features: int) -> Quantization:
        """Format in which a file stores a layer of ``in_features`` inputs, from the shapes of its tensors."""
        packed, groups = shapes["weight"][1], shapes["scales"][1]
        bits, group_size = 32 * packed / in_features, in_features / groups
        affine = "biases" in shapes
        if bits not in (2, 3, 4, 5, 6, 8) or group_size not in (32, 64, 128) or (not affine and bits not in (4, 8)):
            raise CheckpointError(f"{path} is stored with {bits:g} bits in groups of {group_size:g}, which MLX has not")
        return cls(int(bits), int(group_size), "affine" if affine else f"mxfp{int(bits)}")

    def linear(self, layer: nn.Linear) -> nn.QuantizedLinear:
        """A layer of the same size in this format, empty."""
        outputs, inputs = layer.weight.shape
        kind = nn.QuantizedLinear if mx.metal.is_available() else WidenedLinear
        return kind(inputs, outputs, "bias" in layer, self.group_size, self.bits, self.mode)

    def quantize(self, weight: mx.array) -> dict[str, mx.array]:
        """A weight ``[out, in]`` as stored."""
        parts = mx.quantize(weight, self.group_size, self.bits, self.mode)
        return dict(zip(("weight", "scales", "biases"), parts, strict=False))

    def dequantize(self, parts: Mapping[str, mx.array]) -> mx.array:
        """The weight that stored parts stand for, float32."""
        stored = (parts["weight"], parts["scales"], parts.get("biases"))
        return mx.dequantize(*stored, self.group_size, self.bits, self.mode).astype(mx.float32)

    def covers(self, paths: Mapping[str, nn.Module]) -> frozenset[str]:
        """Linears of a transformer, by path, that this format takes."""
        found = {
            path
            for path, layer in paths.items()
            if path.startswith("transformer_blocks.")
            and path.endswith(COVERED)
            and isinstance(layer, nn.Linear)
            and layer.weight.shape[1] % self.group_size == 0
        }
        return frozenset(found - _of_end_blocks(found) if self.bits < 8 else found)


class WidenedLinear(nn.QuantizedLinear):
    """A quantised linear whose weight is widened at each call: MLX has no fast quantised product on a CPU."""

    def __call__(self, x: mx.array) -> mx.array:
        stored = (self["weight"], self["scales"], self.get("biases"))
        weight = mx.dequantize(*stored, self.group_size, self.bits, self.mode).astype(x.dtype)
        return x @ weight.T + self["bias"] if "bias" in self else x @ weight.T


def _of_end_blocks(paths: Iterable[str]) -> set[str]:
    blocks = {path: int(path.split(".")[1]) for path in paths}
    ends = {min(blocks.values(), default=0), max(blocks.values(), default=0)}
    return {path for path, block in blocks.items() if block in ends}


def replace_layer(network: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer in the place of another."""
    owner: Any = network
    *parents, leaf = path.split(".")
    for name in parents:
        owner = owner[int(name)] if isinstance(owner, list) else owner[name]
    owner[int(leaf) if isinstance(owner, list) else leaf] = layer
