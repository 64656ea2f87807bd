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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_core.errors import CheckpointError
from ltx_core.fingerprint import is_regular
from ltx_core.loader.safetensors_file import DTYPES, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32  # bytes
MAX_DIMENSIONS, MAX_DEPTH = 8, 4
MAX_SIZE, MAX_ITEMS = 2**40, 2**22  # of a dimension; of an array: vocabularies have 2**18


@dataclass(frozen=True)
class BlockType:
    """A ggml type: ``elements`` values in ``nbytes`` bytes."""

    name: str
    elements: int
    nbytes: int

    @property
    def read_as(self) -> str:
        """The safetensors type of what is read: plain types as they are, block types as float32."""
        return self.name if self.name in DTYPES else "F32"


TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    30: BlockType("BF16", 1, 2),
}


class GgufFile:
    """An opened GGUF file: ``tensors`` by name, ``types`` by name, ``fields`` the key-value pairs.

    Raises ``CheckpointError`` for a file that is not a whole GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.bytes_read = 0
        if self.path.exists() and not is_regular(self.path):
            raise CheckpointError(f"{self.path} is no regular file, expected a GGUF file")
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
        import torch

        from ltx_core.loader.gguf_blocks import DEQUANTIZE

        info, kind = self.tensors[name], self._kinds[name]
        self.bytes_read += info.nbytes
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        raw = torch.frombuffer(self._data, dtype=torch.uint8, count=info.nbytes, offset=info.start).clone()
        if kind.name in DEQUANTIZE:
            return DEQUANTIZE[kind.name](raw.view(-1, kind.nbytes)).view(info.shape)
        return raw.view(info.dtype).view(info.shape)

    def verify(self) -> None:
        """``CheckpointError``: GGUF files carry no digests."""
        raise CheckpointError(f"{self.path} carries no digests, its tensors cannot be verified")

    def _shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        original = self.fields.get(f"comfy.gguf.orig_shape.{name}")
        if original is None:
            return stored
        sizes = isinstance(original, list) and all(type(size) is int and size >= 0 for size in original)
        if not sizes or len(original) > MAX_DIMENSIONS or math.prod(original) != math.prod(stored):
            raise CheckpointError(f"{self.path}: {name} has original shape {original!r:.60}, stored as {stored}")
        return tuple(original)

    def _info(self, name: str, shape: tuple[int, ...], kind: BlockType, start: int) -> TensorInfo:
        elements = math.prod(shape)
        end = start + elements // kind.elements * kind.nbytes
        if elements % kind.elements or end > len(self._data):
            raise CheckpointError(f"{self.path} is truncated or damaged: {name} of {shape} as {kind.name} does not fit")
        return TensorInfo(kind.read_as, shape, start, end)


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
        if max(shape, default=0) > MAX_SIZE:
            raise CheckpointError(f"{self.path}: {name} has shape {shape}, expected sizes up to {MAX_SIZE}")
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
        if count > MAX_ITEMS:
            raise CheckpointError(f"{self.path}: a field has {count} values, expected at most {MAX_ITEMS}")
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
