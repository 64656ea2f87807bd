"""GGUF files: reading tensors in the ggml block types the community publishes.

A file is ``GGUF``, version, tensor count, key count, key-value pairs, tensor descriptions, and aligned data.
Dimensions are stored in reverse order. Every count and length is compared with the file's size before anything is
allocated from it.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader.safetensors_file import TensorInfo

SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32  # bytes
MAX_DIMENSIONS, MAX_DEPTH = 8, 4
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

# A block's bytes [n, bytes] -> its values, float32 [n, elements].
Dequantize = Callable[[Tensor], Tensor]


def _half(b: Tensor, start: int) -> Tensor:
    """A little-endian half float in each block, [n, 1]."""
    return b[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(b: Tensor) -> Tensor:
    """Low nibbles of all bytes, then high nibbles."""
    return torch.cat([b & 15, b >> 4], dim=1).float()


def _bits(b: Tensor, count: int) -> Tensor:
    """``count`` single bits from little-endian bytes."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (b.unsqueeze(-1) >> shifts & 1).flatten(1)[:, :count].float()


def _pairs_of_two_bits(b: Tensor) -> Tensor:
    """256 two-bit values from 64 bytes: halves of 128, in each the four bit pairs of 32 bytes one after the other."""
    halves = b.view(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1) & 3
    return halves.reshape(-1, 256).float()


def _grouped_nibbles(b: Tensor) -> Tensor:
    """256 nibbles from 128 bytes: pairs of groups of 32 share 32 bytes, low nibbles first."""
    chunks = b.view(-1, 4, 1, 32) >> torch.tensor([0, 4], dtype=torch.uint8).view(1, 1, 2, 1) & 15
    return chunks.reshape(-1, 256).float()


def _six_bit_pairs(b: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and eight 6-bit minima from 12 bytes, [n, 8] each."""
    low, middle, high = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = torch.cat([low & 63, high & 15 | low >> 6 << 4], dim=1)
    minima = torch.cat([middle & 63, high >> 4 | middle >> 6 << 4], dim=1)
    return scales.float(), minima.float()


def _each(values: Tensor, count: int) -> Tensor:
    return values.repeat_interleave(count, dim=1)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * b[:, 2:].view(torch.int8).float()


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:]) - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:]) + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 6:]) + 16 * _bits(b[:, 2:6], 32) - 16)


def _q5_1(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 8:]) + 16 * _bits(b[:, 4:8], 32)) + _half(b, 2)


def _q2_k(b: Tensor) -> Tensor:
    scales, minima = (b[:, :16] & 15).float(), (b[:, :16] >> 4).float()
    quants = _pairs_of_two_bits(b[:, 16:80].contiguous())
    return _half(b, 80) * _each(scales, 16) * quants - _half(b, 82) * _each(minima, 16)


def _q3_k(b: Tensor) -> Tensor:
    low = torch.cat([b[:, 96:104] & 15, b[:, 96:104] >> 4], dim=1)  # [n, 16]
    high = torch.cat([b[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    scales = (low | high << 4).float() - 32
    mask = b[:, None, :32] >> torch.arange(8, dtype=torch.uint8).view(1, 8, 1) & 1  # bit g belongs to group g of 32
    quants = _pairs_of_two_bits(b[:, 32:96].contiguous()) - 4 * (1 - mask.reshape(-1, 256).float())
    return _half(b, 108) * _each(scales, 16) * quants


def _q4_k(b: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    quants = _grouped_nibbles(b[:, 16:].contiguous())
    return _half(b, 0) * _each(scales, 32) * quants - _half(b, 2) * _each(minima, 32)


def _q5_k(b: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    high = b[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8).view(1, 8, 1) & 1
    quants = _grouped_nibbles(b[:, 48:].contiguous()) + 16 * high.reshape(-1, 256).float()
    return _half(b, 0) * _each(scales, 32) * quants - _half(b, 2) * _each(minima, 32)


def _q6_k(b: Tensor) -> Tensor:
    low = b[:, :128].reshape(-1, 2, 1, 64) >> torch.tensor([0, 4], dtype=torch.uint8).view(1, 1, 2, 1) & 15
    high = _pairs_of_two_bits(b[:, 128:192].contiguous())
    quants = low.reshape(-1, 256).float() + 16 * high - 32
    return _half(b, 208) * _each(b[:, 192:208].view(torch.int8).float(), 16) * quants


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b, 0) * torch.tensor(IQ4_VALUES).float()[_nibbles(b[:, 2:]).long()]


def _iq4_xs(b: Tensor) -> Tensor:
    high = b[:, 2:4].contiguous().view(torch.int16).int() >> torch.arange(0, 16, 2, dtype=torch.int32) & 3  # [n, 8]
    low = torch.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], dim=-1).flatten(1).int()
    scales = (low | high << 4).float() - 32
    quants = b[:, 8:].reshape(-1, 8, 1, 16) >> torch.tensor([0, 4], dtype=torch.uint8).view(1, 1, 2, 1) & 15
    return _half(b, 0) * _each(scales, 32) * torch.tensor(IQ4_VALUES).float()[quants.reshape(-1, 256).long()]


@dataclass(frozen=True)
class BlockType:
    """A ggml type: ``elements`` values in ``nbytes`` bytes. Plain types have a dtype instead of a function."""

    name: str
    elements: int
    nbytes: int
    dequantize: Dequantize | None = None
    dtype: torch.dtype = torch.float32


TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2, dtype=torch.float16),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    10: BlockType("Q2_K", 256, 84, _q2_k),
    11: BlockType("Q3_K", 256, 110, _q3_k),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    20: BlockType("IQ4_NL", 32, 18, _iq4_nl),
    23: BlockType("IQ4_XS", 256, 136, _iq4_xs),
    30: BlockType("BF16", 1, 2, dtype=torch.bfloat16),
}


class GgufFile:
    """An opened GGUF file: ``tensors`` by name, ``types`` by name, ``fields`` the key-value pairs.

    Raises ``CheckpointError`` for a file that is not a whole GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.bytes_read = 0
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {self.path}: {error}") from error
        reader = _Reader(self.path, self._data)
        self.fields, described = reader.header()
        alignment = self.fields.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise CheckpointError(f"{self.path}: alignment is {alignment!r}, expected a positive integer")
        start = -(-reader.position // alignment) * alignment
        self._kinds = {name: kind for name, (_, kind, _) in described.items()}
        self.types = {name: kind.name for name, kind in self._kinds.items()}
        self.tensors = {
            name: self._info(name, self._shape(name, shape), kind, start + offset)
            for name, (shape, kind, offset) in described.items()
        }

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    @property
    def metadata(self) -> dict[str, str]:
        """The fields that are text."""
        return {key: value for key, value in self.fields.items() if isinstance(value, str)}

    def read(self, name: str) -> Tensor:
        """The tensor: float32 for block types, the stored dtype for plain ones."""
        info, kind = self.tensors[name], self._kinds[name]
        self.bytes_read += info.nbytes
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=kind.dtype)
        raw = torch.frombuffer(self._data, dtype=torch.uint8, count=info.nbytes, offset=info.start).clone()
        if kind.dequantize is None:
            return raw.view(kind.dtype).view(info.shape)
        return kind.dequantize(raw.view(-1, kind.nbytes)).view(info.shape)

    def verify(self) -> None:
        """``CheckpointError``: GGUF files carry no digests."""
        raise CheckpointError(f"{self.path} carries no digests, its tensors cannot be verified")

    def _shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        original = self.fields.get(f"comfy.gguf.orig_shape.{name}")
        if original is None:
            return stored
        if not isinstance(original, list) or math.prod(original) != math.prod(stored):
            raise CheckpointError(f"{self.path}: {name} has original shape {original!r}, stored as {stored}")
        return tuple(original)

    def _info(self, name: str, shape: tuple[int, ...], kind: BlockType, start: int) -> TensorInfo:
        elements = math.prod(shape)
        end = start + elements // kind.elements * kind.nbytes
        if elements % kind.elements or end > len(self._data):
            raise CheckpointError(f"{self.path} is truncated or damaged: {name} of {shape} as {kind.name} does not fit")
        return TensorInfo(kind.dtype, shape, start, end)


class _Reader:
    """Reads little-endian values off the front of a GGUF file, never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def header(self) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], BlockType, int]]]:
        if self.take(4) != b"GGUF":
            raise CheckpointError(f"{self.path} is not a GGUF file")
        version = self.number("I")
        if version not in (2, 3):
            raise CheckpointError(f"{self.path}: GGUF version is {version}, expected 2 or 3")
        tensors, pairs = self.number("Q"), self.number("Q")
        fields = {}
        for _ in range(pairs):
            key = self.text()
            fields[key] = self.value(self.number("I"))
        described = {}
        for _ in range(tensors):
            name = self.text()
            described[name] = self.tensor(name)
        return fields, described

    def tensor(self, name: str) -> tuple[tuple[int, ...], BlockType, int]:
        dimensions = self.number("I")
        if dimensions > MAX_DIMENSIONS:
            raise CheckpointError(f"{self.path}: {name} has {dimensions} dimensions, expected at most {MAX_DIMENSIONS}")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in TYPES:
            known = ", ".join(block.name for block in TYPES.values())
            raise CheckpointError(f"{self.path}: {name} has ggml type {kind}, expected one of {known}")
        return shape, TYPES[kind], offset

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALAR_FORMATS:
            return self.number(SCALAR_FORMATS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or depth == MAX_DEPTH:
            raise CheckpointError(f"{self.path}: a field has GGUF type {kind}")
        item, count = self.number("I"), self.number("Q")
        return [self.value(item, depth + 1) for _ in range(count)]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def number(self, code: str) -> Any:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return value

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise CheckpointError(f"{self.path} is truncated: {len(self.data)} bytes, a field ends at {end}")
        part, self.position = self.data[self.position : end], end
        return part
