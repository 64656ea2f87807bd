"""Running a transformer whose blocks do not fit: they are read into a few slots, each just before it computes.

A block's tensors lie in one byte buffer in file order, each at a multiple of 16 bytes; the buffer is rounded up to 16 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

ALIGNMENT = 16  # bytes


@dataclass(frozen=True)
class BlockLayout:
    """Where each tensor of a block lies in its buffer."""

    offsets: Mapping[str, int]  # bytes
    nbytes: int


def block_layout(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> BlockLayout:
    """The layout of tensors ``{name: (shape, dtype)}`` in the order given."""
    offsets, position = {}, 0
    for name, (shape, dtype) in tensors.items():
        offsets[name] = position
        position = _aligned(position + math.prod(shape) * dtype.itemsize)
    return BlockLayout(offsets, max(position, 1))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
