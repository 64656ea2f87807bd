"""Weights written tensor by tensor: memory holds one layer, and a broken run goes on where it stopped.

A file grows under a temporary name beside its place, its header first, since names, shapes and types are known before
any value is. The digests that our files carry are filled in last. At the end: a model with adapters fused in, and the
adapter between two models.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import TRANSFORMER
from ltx_core.loader.gguf import DEFAULT_ALIGNMENT, STRING, TYPES, BlockType, GgufFile
from ltx_core.loader.lora import Lora
from ltx_core.loader.safetensors_file import DTYPES, HEADER_DIGEST, TENSOR_DIGESTS, build_header, header_digest
from ltx_core.loader.sources import Derived, Source
from ltx_core.loader.weights import ComponentWeights

NO_DIGEST = "0" * 32
CHUNK = 2**24  # bytes read at once of what an earlier run wrote
UINT32 = 4  # GGUF's type of a field


class Kind(NamedTuple):
    """Storage of a tensor: a safetensors or ggml type, and the shape of its values."""

    stored_as: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Tensors that are made together: their kinds by name, and what makes them."""

    kinds: Mapping[str, Kind]
    make: Callable[[], Mapping[str, Tensor]]

    @classmethod
    def copy_of(cls, name: str, source: Source, stored_as: str | None = None) -> Piece:
        """A tensor as it is stored, or as another type."""
        kind = Kind(stored_as or source.info.stored_as, source.info.shape)
        return cls({name: kind}, lambda: {name: as_type(source.read(), kind.stored_as)})


def as_type(tensor: Tensor, stored_as: str) -> Tensor:
    """A tensor as a safetensors type."""
    return tensor.to(getattr(torch, DTYPES[stored_as][0]))


def plain_type(source: Source) -> str:
    """The type a tensor has in a file of plain weights: bfloat16 for what was quantised in its own."""
    file = source.file
    blocks = isinstance(file, GgufFile) and file.types[source.key] not in SINGLE
    quantised = blocks or (
        isinstance(source, Derived) and len(source.info.shape) == 2 and source.info.stored_as == "F32"
    )
    return "BF16" if quantised else source.info.stored_as


SINGLE = {block.name for block in TYPES.values() if block.elements == 1}


def save_safetensors(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str]) -> str:
    """Write a safetensors file with digests; the digest of its header, which covers all others.

    Raises ``CheckpointError`` when the disk is full or the folder cannot be written; what was written stays under its
    temporary name, and the same call goes on from there.
    """
    kinds = {name: kind for piece in pieces for name, kind in piece.kinds.items()}

    def header(digests: Mapping[str, str], of_header: str) -> tuple[bytes, dict[str, tuple[int, int]]]:
        own = {TENSOR_DIGESTS: json.dumps(dict(digests)), HEADER_DIGEST: of_header}
        return build_header(kinds, {**metadata, **own})

    start, spans = header(dict.fromkeys(kinds, NO_DIGEST), NO_DIGEST)
    torch_kinds = {name: (f"torch.{DTYPES[kind.stored_as][0]}", kind.shape) for name, kind in kinds.items()}

    def final_header(digests: Mapping[str, str]) -> bytes:
        strings = {**metadata, TENSOR_DIGESTS: json.dumps(dict(digests))}
        return header(digests, header_digest(torch_kinds, strings))[0]

    return _write(path, pieces, start, spans, final_header)


def save_gguf(path: Path, pieces: Sequence[Piece], fields: Mapping[str, str]) -> str:
    """Write a GGUF file of the tensors of ``pieces``, whose types are ggml's; a digest of all its bytes.

    Tensors arrive as float32 ones of their shape, or as raw bytes where the type is a block type. Raises as
    ``save_safetensors``.
    """
    numbers = {block.name: number for number, block in TYPES.items()}
    kinds = {name: kind for piece in pieces for name, kind in piece.kinds.items()}
    strings = {"general.architecture": "ltxv", **fields}
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(kinds), len(strings) + 1)]
    parts += [_text(key) + struct.pack("<I", STRING) + _text(value) for key, value in strings.items()]
    parts.append(_text("general.quantization_version") + struct.pack("<II", UINT32, 2))
    position, spans = 0, {}
    for name, kind in kinds.items():
        block: BlockType = TYPES[numbers[kind.stored_as]]
        size = math.prod(kind.shape) // block.elements * block.nbytes
        dimensions = struct.pack(f"<{len(kind.shape)}Q", *reversed(kind.shape))
        where = struct.pack("<IQ", numbers[kind.stored_as], position)
        parts.append(_text(name) + struct.pack("<I", len(kind.shape)) + dimensions + where)
        spans[name] = (position, position + size)
        position += -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
    start = b"".join(parts)
    start += bytes(-len(start) % DEFAULT_ALIGNMENT)
    moved = {name: (len(start) + first, len(start) + last) for name, (first, last) in spans.items()}
    return _write(path, pieces, start, moved, lambda digests: start)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _write(
    path: Path,
    pieces: Sequence[Piece],
    start: bytes,
    spans: Mapping[str, tuple[int, int]],
    final_header: Callable[[Mapping[str, str]], bytes],
) -> str:
    """Write the pieces to their spans behind a header, going on with what an earlier run of the same file left."""
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = _count_written(unfinished, start)
        whole = [all(spans[name][1] <= written for name in piece.kinds) for piece in pieces]
        done = max((*whole, False).index(False), 1) - 1  # the last may lack what was not flushed
        digests: dict[str, str] = {}
        with unfinished.open("r+b" if written else "w+b") as file:
            if not written:
                file.write(start)
            for piece in pieces[:done]:
                digests |= {name: _read_digest(file, *spans[name]) for name in piece.kinds}
            for piece in pieces[done:]:
                tensors = piece.make()
                for name in piece.kinds:
                    raw = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
                    first, last = spans[name]
                    if raw.nbytes != last - first:
                        raise CheckpointError(f"{name} has {raw.nbytes} bytes, expected {last - first}")
                    file.seek(first)
                    file.write(raw.data)
                    digests[name] = hashlib.blake2b(raw.data, digest_size=16).hexdigest()
            file.truncate(max((end for _, end in spans.values()), default=len(start)))
            header = final_header(digests)
            assert len(header) == len(start), "the header changed its length"
            file.seek(0)
            file.write(header)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}; run the same command again to go on") from error
    return hashlib.blake2b(header + "".join(digests.values()).encode(), digest_size=16).hexdigest()


def _count_written(unfinished: Path, start: bytes) -> int:
    """Bytes that an earlier run left, 0 where it wrote another file."""
    if not unfinished.is_file():
        return 0
    with unfinished.open("rb") as file:
        return unfinished.stat().st_size if file.read(len(start)) == start else 0


def _read_digest(file: Any, start: int, end: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    file.seek(start)
    for position in range(start, end, CHUNK):
        digest.update(file.read(min(CHUNK, end - position)))
    return digest.hexdigest()


# Adapters into checkpoints and out of them ----------------------------------------------------------------------------


EXACT_UP_TO = 1024  # rows or columns of a difference that is decomposed exactly


def merged_pieces(checkpoint: Checkpoint, loras: Sequence[Lora]) -> list[Piece]:
    """Every tensor of a checkpoint with adapters fused into its transformer; what they change is plain.

    Raises ``CheckpointError`` for an adapter that does not fit, nothing being read.
    """
    weights = checkpoint.weights("transformer")
    fitted = weights.fit_loras(loras)
    changed = weights.layers_changed_by(fitted)
    pieces, seen = [], set()
    for name, source in ((name, source) for part in checkpoint.parts for name, source in part.tensors.items()):
        module = TRANSFORMER.module_name(name)
        path = (module or "").rpartition(".")[0]
        if module is None or path not in changed:
            pieces.append(Piece.copy_of(name, source))
        elif path not in seen:
            seen.add(path)
            pieces.append(_merge(name.removesuffix(module), path, weights, fitted))
    return pieces


def _merge(prefix: str, path: str, weights: ComponentWeights, loras: Sequence[Lora]) -> Piece:
    """One layer with adapters in it, in the type it has where nothing is quantised."""
    plain = {leaf: source for leaf, source in weights.layers[path].items() if leaf in ("weight", "bias")}
    kinds = {f"{prefix}{path}.{leaf}": Kind(plain_type(source), source.info.shape) for leaf, source in plain.items()}
    return Piece(kinds, partial(_fuse, prefix, path, weights, loras, kinds))


def _fuse(
    prefix: str, path: str, weights: ComponentWeights, loras: Sequence[Lora], kinds: dict[str, Kind]
) -> dict[str, Tensor]:
    tensors = weights.load_layer(path, loras)
    named = {f"{prefix}{path}.{leaf}": tensor for leaf, tensor in tensors.items()}
    return {name: as_type(named[name], kind.stored_as) for name, kind in kinds.items()}


class Extracted(NamedTuple):
    """One layer's part of an adapter, and how much of the difference it holds (1: all)."""

    path: str
    tensors: dict[str, Tensor]
    share: float


def extract(base: Checkpoint, tuned: Checkpoint, rank: int, dtype: torch.dtype = torch.bfloat16) -> Iterator[Extracted]:
    """The adapter of at most ``rank`` that makes ``tuned`` of ``base``, layer by layer, under the official names.

    What is no matrix becomes a difference. Raises ``CheckpointError`` where the two are not of one architecture.
    """
    one, other = base.weights("transformer"), tuned.weights("transformer")
    if (here := one.kinds()) != (there := other.kinds()):
        odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))[0]
        sizes = f"{here.get(odd, 'missing')} and {there.get(odd, 'missing')}"
        raise CheckpointError(f"{base.where} and {tuned.where} are no two of one model: {odd} is {sizes}")
    for path in one.layers:
        found = {leaf: _difference(one, other, path, leaf) for leaf in one.layers[path] if f"{path}.{leaf}" in here}
        kept = {leaf: change for leaf, change in found.items() if change is not None}
        weight = kept.pop("weight", None)
        tensors = {
            f"diffusion_model.{path}.diff_b": change.to(dtype) for leaf, change in kept.items() if leaf == "bias"
        }
        if rest := [leaf for leaf in kept if leaf != "bias"]:
            raise CheckpointError(f"{tuned.where}: {path}.{rest[0]} differs, which no adapter can hold")
        share = 1.0
        if weight is not None and weight.ndim == 2:
            a, b, share = low_rank(weight, rank)
            tensors |= {f"diffusion_model.{path}.lora_{key}.weight": t.to(dtype) for key, t in (("A", a), ("B", b))}
        elif weight is not None:
            tensors[f"diffusion_model.{path}.diff"] = weight.to(dtype)
        if tensors:
            yield Extracted(path, tensors, share)


def _difference(one: ComponentWeights, other: ComponentWeights, path: str, leaf: str) -> Tensor | None:
    """The float32 difference to add to a tensor, None for nothing."""
    before, after = (weights.load_layer(path)[leaf] for weights in (one, other))
    return None if torch.equal(before, after) else after.float() - before.float()


def low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors ``(r, in)`` and ``(out, r)`` of a matrix ``(out, in)``, and the share of its energy they hold."""
    rank = min(rank, *change.shape)
    if max(change.shape) <= EXACT_UP_TO:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        u, s, v = torch.svd_lowrank(change, q=min(rank + 16, *change.shape), niter=4)
        u, s, vh = u[:, :rank], s[:rank], v.t()[:rank]
    root = s.sqrt()
    share = float(s.square().sum() / change.square().sum())
    return root[:, None] * vh, u * root, min(share, 1.0)
