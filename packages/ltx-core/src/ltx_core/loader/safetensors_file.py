"""One safetensors file: its header by plain read with every bound checked, its tensors by memory map.

A file is ``<u64 header length><JSON header><data>``. The header maps each name to ``{"dtype", "shape",
"data_offsets"}`` and ``__metadata__`` to a flat object of strings. Nothing is allocated from a number in the header
before it has been compared with the size of the file.

Files written by :func:`save_checkpoint` carry digests in their metadata, so that damage anywhere is found:
``header_blake2b`` covers names, dtypes, shapes and all other metadata and is checked when the file is opened;
``tensor_blake2b`` is a JSON object with one digest per tensor, checked when the tensor is read. Published files carry
neither: a flipped bit in their data cannot be told from a weight.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ltx_core.errors import CheckpointError
from ltx_core.fingerprint import is_regular
from ltx_core.textfiles import parse_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
ALIGNMENT = 64  # bytes, that of tensors torch allocates
VERIFY_UP_TO_BYTES = 256 * 2**20  # digests of files up to this size are checked unless the caller says otherwise
HEADER_DIGEST, TENSOR_DIGESTS = "header_blake2b", "tensor_blake2b"

DTYPES: dict[str, tuple[str, int]] = {  # the format's name of a type: torch's name, bytes of one value
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U32": ("uint32", 4),  # packed weights of MLX
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


@dataclass(frozen=True)
class TensorInfo:
    """Place of a tensor: ``start`` and ``end`` count bytes from the beginning of the file."""

    stored_as: str  # a key of ``DTYPES``
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def dtype_name(self) -> str:
        """Torch's name of the type."""
        return DTYPES[self.stored_as][0]

    @property
    def dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype


class SafetensorsFile:
    """An opened safetensors file.

    ``tensors`` maps names to :class:`TensorInfo` in file order, ``metadata`` holds the header's strings, ``bytes_read``
    counts tensor bytes handed out so far. The file must not be changed while tensors read from it are in use.
    """

    def __init__(self, path: str | os.PathLike[str], verify: bool | None = None) -> None:
        """Read the header only.

        ``verify``: whether digests are checked, where the file has them; by default up to 256 MiB. Raises
        ``CheckpointError`` for anything that is not a whole, consistent safetensors file.
        """
        self.path = Path(path)
        self.bytes_read = 0
        self._counting = threading.Lock()
        header, data_start, self.size = _read_header(self.path)
        self.metadata = _metadata(self.path, header.pop("__metadata__", {}))
        self.tensors = _tensor_infos(self.path, header, data_start, self.size)
        self._digests: dict[str, str] = {}
        if verify or (verify is None and self.size <= VERIFY_UP_TO_BYTES):
            self._digests = _read_digests(self.path, self.tensors, self.metadata)

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU: a private view of the file, copied only if the file stores it unaligned.

        Each call maps the tensor anew, so writing into one result never shows in another. Matrix products of float32
        sum in an order that follows alignment, so those values always begin at a multiple of 64 bytes.
        """
        import torch

        info = self.tensors[name]
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        raw = _map_bytes(self.path, self.size, info)
        with self._counting:
            self.bytes_read += info.nbytes
        if self._digests and self._digests.get(name) != tensor_digest(raw):
            raise CheckpointError(f"{self.path} is damaged: tensor {name} does not match its digest")
        itemsize = info.dtype.itemsize
        aligned = info.start % (ALIGNMENT if itemsize >= 4 else itemsize) == 0
        return (raw if aligned else raw.clone()).view(info.dtype).view(info.shape)

    def verify(self) -> None:
        """Read every tensor against its digest; ``CheckpointError`` when one differs or the file has no digests."""
        if TENSOR_DIGESTS not in self.metadata:
            raise CheckpointError(f"{self.path} carries no digests, its tensors cannot be verified")
        self._digests = _read_digests(self.path, self.tensors, self.metadata)
        for name in self.tensors:
            self.read(name)


def save_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a safetensors file with digests, through a temporary file so that a broken run leaves no half file.

    Metadata values that are not strings are stored as JSON.
    """
    path = Path(path)
    flat = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    strings = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    strings.pop(HEADER_DIGEST, None)
    strings[TENSOR_DIGESTS] = json.dumps({name: tensor_digest(_bytes_of(tensor)) for name, tensor in flat.items()})
    kinds = {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in flat.items()}
    strings[HEADER_DIGEST] = header_digest(kinds, strings)
    save_tensors(path, flat, strings)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, flush it to disk, then rename it.

    Raises ``CheckpointError`` when the disk is full or the folder cannot be written; nothing is left half-written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(mode=0o666)  # with the user's mask; the library would make it private
        mode = temporary.stat().st_mode
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {}))
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def build_header(
    kinds: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The beginning of a safetensors file of tensors ``{name: (type, shape)}``, and which bytes of it each takes.

    A type is a key of ``DTYPES``; tensors follow each other in the order given.
    """
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    spans, end = {}, 0
    for name, (stored_as, shape) in kinds.items():
        start, end = end, end + math.prod(shape) * DTYPES[stored_as][1]
        spans[name] = start, end
        described[name] = {"dtype": stored_as, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    moved = {name: (begin + start, begin + end) for name, (start, end) in spans.items()}
    return struct.pack("<Q", len(text)) + text, moved


def tensor_digest(raw: Tensor) -> str:
    """128-bit BLAKE2b of a uint8 tensor, in hexadecimal."""
    return hashlib.blake2b(raw.numpy().data, digest_size=16).hexdigest()


def header_digest(kinds: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> str:
    """128-bit BLAKE2b of names, dtypes, shapes and the metadata without the header digest itself."""
    described = {name: [dtype, list(shape)] for name, (dtype, shape) in kinds.items()}
    others = {key: value for key, value in metadata.items() if key != HEADER_DIGEST}
    text = json.dumps([described, others], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _bytes_of(tensor: Tensor) -> Tensor:
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def _map_bytes(path: Path, size: int, info: TensorInfo) -> Tensor:
    """A tensor's bytes through a private, writable map that reserves no memory."""
    import torch

    start = info.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = info.end - start
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise CheckpointError(f"{path} changed after it was opened")
            if hasattr(mmap, "MAP_PRIVATE"):
                flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
                access = mmap.PROT_READ | mmap.PROT_WRITE
                view = mmap.mmap(file.fileno(), length, flags=flags, prot=access, offset=start)
            else:
                view = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return torch.frombuffer(view, dtype=torch.uint8, count=info.nbytes, offset=info.start - start)


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """(parsed header, offset of the data, size of the file)."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a safetensors file")
    if path.exists() and not is_regular(path):
        raise CheckpointError(f"{path} is no regular file, expected a safetensors file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            if len(start) < 8:
                raise CheckpointError(f"{path} is not a safetensors file: {size} bytes, expected at least 8")
            (length,) = struct.unpack("<Q", start)
            if length > min(size - 8, MAX_HEADER_BYTES):
                _refuse_foreign(path, start + file.read(24), length, size)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_object(text, f"{path} is not a safetensors file: its header"), 8 + length, size


def _refuse_foreign(path: Path, start: bytes, length: int, size: int) -> NoReturn:
    """Say what a file is whose first eight bytes cannot be a header length."""
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch it with 'git lfs pull'")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise CheckpointError(f"{path} is a pickle file, expected safetensors (pickles run code and are not read)")
    if start.startswith(b"GGUF"):
        raise CheckpointError(f"{path} is a GGUF file, expected safetensors")
    raise CheckpointError(
        f"{path} is truncated or not a safetensors file: header of {length} bytes in a file of {size} bytes"
    )


def _metadata(path: Path, given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise CheckpointError(f"{path}: __metadata__ is not an object of strings")
    return given


def _tensor_infos(path: Path, header: dict[str, Any], data_start: int, size: int) -> dict[str, TensorInfo]:
    infos = {name: _tensor_info(path, name, entry, data_start) for name, entry in header.items()}
    in_order = sorted(infos.items(), key=lambda item: (item[1].start, item[1].end))
    position = data_start
    for name, info in in_order:
        if info.start != position:
            raise CheckpointError(f"{path}: tensor {name} starts at byte {info.start}, expected {position}")
        position = info.end
    if position != size:
        kind = "truncated" if position > size else "longer than its header says"
        raise CheckpointError(f"{path} is {kind}: {size} bytes, expected {position}")
    return dict(in_order)


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: tensor {name} has shape {shape!r:.80} and data_offsets {offsets!r:.80}")
    expected = math.prod(shape) * DTYPES[dtype][1]
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(f"{path}: tensor {name} has {offsets[1] - offsets[0]} bytes, expected {expected}")
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _read_digests(path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, str]:
    """The per-tensor digests of a file whose header matches its own digest; empty for a file without digests."""
    if HEADER_DIGEST not in metadata and TENSOR_DIGESTS not in metadata:
        return {}
    kinds = {name: (f"torch.{info.dtype_name}", info.shape) for name, info in tensors.items()}
    if metadata.get(HEADER_DIGEST) != header_digest(kinds, metadata):
        raise CheckpointError(f"{path} is damaged: its header does not match its digest")
    digests = parse_object(metadata.get(TENSOR_DIGESTS, ""), f"{path} is damaged: its digests")
    if set(digests) != set(tensors):
        raise CheckpointError(f"{path} is damaged: its digests do not name its tensors")
    return digests
