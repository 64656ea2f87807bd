"""A model folder whose transformer is stored quantised, as MLX computes with it: opened at once, nothing to quantise.

Tensors keep their published names; a quantised linear has ``weight`` (packed), ``scales`` and ``biases``. All else is
copied. Tensors are read, quantised and written one after another, so that memory holds one layer.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx
import numpy
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import COMPONENTS, DIFFUSION_MODEL
from ltx_core.loader.safetensors_file import HEADER_DIGEST, TENSOR_DIGESTS
from ltx_mlx.arrays import to_mlx, to_torch
from ltx_mlx.backend import prepare
from ltx_mlx.quantization import Quantization

DTYPE_NAMES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.int32: "I32",
    mx.int64: "I64",
    mx.bool_: "BOOL",
}
ENTRY_BYTES = 120  # of a tensor's entry in the header, beside its name

Say = Callable[[str], None]


def convert(source: Path, target: Path, quantization: str, say: Say = print) -> None:
    """Write the model file or folder ``source`` as a folder ``target`` with a quantised transformer.

    Raises ``CheckpointError`` when ``target`` exists, when ``source`` holds no transformer, or what it holds does not
    fit; and ``ConfigError`` for an unknown quantisation.
    """
    form = Quantization.parse(quantization)
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    if target.exists():
        raise CheckpointError(f"{target} exists, expected a folder that is not there yet")
    chosen = [path for path in files if _holds_transformer(path)]
    if not chosen:
        raise CheckpointError(f"{source} holds no transformer, expected one to quantise")
    made = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        for path in files:
            into = made / (path.name if source.is_file() else path.relative_to(source))
            into.parent.mkdir(parents=True, exist_ok=True)
            if path in chosen:
                _write_quantised(path, into, form)
            else:
                shutil.copy2(path, into)
            say(f"{into.relative_to(made)}: {path.stat().st_size / 1e9:.2f} GB -> {into.stat().st_size / 1e9:.2f} GB")
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def widen_weight(given: Mapping[str, Any], weight: Tensor, scales: Tensor, biases: Tensor | None = None) -> Tensor:
    """The float32 weight of a layer that `convert` stored with these settings."""
    other = None if biases is None else to_mlx(biases)
    form = {"group_size": given["group_size"], "bits": given["bits"], "mode": given.get("mode", "affine")}
    return to_torch(mx.dequantize(to_mlx(weight), to_mlx(scales), other, **form).astype(mx.float32))


def _holds_transformer(path: Path) -> bool:
    return path.suffix == ".safetensors" and any(
        name.startswith(COMPONENTS["transformer"].markers) for name in _names(path)
    )


def _names(path: Path) -> list[str]:
    try:
        return [name for part in Checkpoint.open(path).parts for name in part.tensors]
    except CheckpointError:  # an adapter, or no model at all
        return []


def _write_quantised(path: Path, into: Path, form: Quantization) -> None:
    checkpoint = Checkpoint.open(path)
    _, loader = prepare("transformer", checkpoint, None, form)
    if loader.stored:
        raise CheckpointError(f"{path} is quantised already, expected plain weights")
    (part,) = checkpoint.parts
    own = set(checkpoint.sources("transformer").values())
    metadata = {key: text for key, text in part.metadata.items() if key not in (HEADER_DIGEST, TENSOR_DIGESTS)}
    metadata["quantization"] = json.dumps({"format": "mlx", **asdict(form)})

    def tensors() -> Iterator[tuple[str, mx.array]]:
        for name, source in part.tensors.items():
            if source not in own:
                yield name, to_mlx(source.read())
        for layer in loader.weights.layers:
            for name, array in loader.layer(layer):
                yield DIFFUSION_MODEL + name, array

    names = [*part.tensors, *(f"{path}.{leaf}" for path in loader.formats for leaf in ("scales", "biases"))]
    room = sum(len(DIFFUSION_MODEL) + len(name) + ENTRY_BYTES for name in names)
    with TensorWriter(into, metadata, room) as writer:
        for name, array in tensors():
            writer.write(name, array)


class TensorWriter:
    """A safetensors file written tensor by tensor: the header, whose room is kept at the start, comes last."""

    def __init__(self, path: Path, metadata: dict[str, str], room: int) -> None:
        header = len(json.dumps(metadata)) + room
        self.room = (header + 7) // 8 * 8
        self.entries: dict[str, object] = {"__metadata__": metadata}
        self.file, self.position = path.open("wb"), 0
        self.file.seek(8 + self.room)

    def __enter__(self) -> TensorWriter:
        return self

    def write(self, name: str, array: mx.array) -> None:
        """Append one tensor; it is evaluated here."""
        plain = numpy.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
        self.file.write(numpy.ascontiguousarray(plain).tobytes())
        offsets = [self.position, self.position + plain.nbytes]
        entry = {"dtype": DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        self.entries[name], self.position = entry, offsets[1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            header = json.dumps(self.entries).encode()
            assert len(header) <= self.room, "the room kept for the header is too small"
            self.file.seek(0)
            self.file.write(self.room.to_bytes(8, "little") + header.ljust(self.room))
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
