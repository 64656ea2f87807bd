"""Sources of a component's tensors: one tensor of one file, or one computed from several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltx_core.loader.gguf import GgufFile
from ltx_core.loader.safetensors_file import DTYPES, SafetensorsFile, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

TensorFile = SafetensorsFile | GgufFile


@dataclass(frozen=True)
class Source:
    """One tensor in one file."""

    file: TensorFile
    key: str

    @property
    def info(self) -> TensorInfo:
        return self.file.tensors[self.key]

    def read(self) -> Tensor:
        return self.file.read(self.key)


@dataclass(frozen=True)
class Derived(Source):
    """A tensor made of others when it is read; ``file`` and ``key`` name the first of them."""

    kind: TensorInfo
    parts: tuple[Source, ...]
    make: Callable[..., Tensor]

    @classmethod
    def of(
        cls,
        parts: Sequence[Source],
        make: Callable[..., Tensor],
        shape: tuple[int, ...] | None = None,
        stored_as: str | None = None,
    ) -> Derived:
        """What ``make`` computes from the tensors of ``parts``, of the first one's shape and type if none is given."""
        first = parts[0]
        shape, stored_as = first.info.shape if shape is None else shape, stored_as or first.info.stored_as
        kind = TensorInfo(stored_as, shape, 0, math.prod(shape) * DTYPES[stored_as][1])
        return cls(first.file, first.key, kind, tuple(parts), make)

    @property
    def info(self) -> TensorInfo:
        return self.kind

    def read(self) -> Tensor:
        return self.make(*(part.read() for part in self.parts))


def scale_rows(tensor: Tensor, gate: Tensor) -> Tensor:
    """A tensor ``[C, ...]`` with row c multiplied by ``gate[c]`` in float32."""
    return (tensor.float() * gate.float().view(-1, *[1] * (tensor.ndim - 1))).to(tensor.dtype)


def by_rows(scale: Tensor) -> Tensor:
    """A scalar scale as it is, one scale per output row as a column."""
    return scale.float() if scale.numel() == 1 else scale.float().reshape(-1, 1)
