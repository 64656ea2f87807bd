"""The door: files in any layout become parts whose tensors have native names.

A part is one file or one set of shards (``name-00001-of-00003.safetensors``). Transformer-only files without the
outer prefix and diffusers folders are renamed here, so that nothing further in knows any layout but the native one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import CheckpointError
from ltx_core.loader.components import COMPONENTS, DIFFUSION_MODEL
from ltx_core.loader.gguf import GgufFile
from ltx_core.loader.metadata import parse_metadata
from ltx_core.loader.packed import plain_layers
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.sources import Derived, Source, TensorFile, scale_rows
from ltx_core.model.transformer.foreign import from_diffusers_name, infer_transformer_config

SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")
DIFFUSERS_INDEX = "model_index.json"


@dataclass(frozen=True)
class Part:
    """One file, or one set of shards."""

    files: tuple[TensorFile, ...]
    tensors: Mapping[str, Source]  # by native name
    metadata: Mapping[str, str]  # raw strings
    config: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return self.files[0].path

    def holds(self, component: str) -> bool:
        markers = COMPONENTS[component].markers
        return any(name.startswith(markers) for name in self.tensors)

    def sources(self, component: str) -> dict[str, Source]:
        """The tensors of a component by module name, gates multiplied into their layers and left out themselves."""
        spec = COMPONENTS[component]
        named = ((spec.module_name(name), source) for name, source in self.tensors.items())
        sources = {name: source for name, source in named if name is not None}
        for name in [name for name in sources if name.rpartition(".")[2] in spec.gates]:
            block, _, leaf = name.rpartition(".")
            gate = sources.pop(name)
            for part in ("weight", "bias"):
                scaled = f"{block}.{spec.gates[leaf]}.{part}"
                if scaled in sources:
                    plain = sources[scaled]
                    kind = (plain.info.shape, plain.info.stored_as)
                    sources[scaled] = Derived.of(plain, *kind, (plain, gate), scale_rows)
        return sources


def find_files(path: Path) -> list[Path]:
    """The safetensors files of a folder or hub snapshot, sorted; of a diffusers folder its transformer's."""
    if not path.is_dir():
        return [path]
    pattern = "transformer/*.safetensors" if (path / DIFFUSERS_INDEX).is_file() else "**/*.safetensors"
    found = [file for file in path.glob(pattern) if not _is_hidden(file.relative_to(path))]
    if not found:
        raise CheckpointError(f"{path} is a folder without any safetensors file")
    return sorted(found)


def open_file(path: Path, verify: bool | None) -> TensorFile:
    """A safetensors file, or a GGUF file by its suffix."""
    return GgufFile(path) if path.suffix.lower() == ".gguf" else SafetensorsFile(path, verify)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_parts(files: Sequence[TensorFile]) -> list[Part]:
    """Group shards and give every tensor its native name."""
    return [_read_part(group) for group in _shard_groups(files)]


def _shard_groups(files: Iterable[TensorFile]) -> list[tuple[TensorFile, ...]]:
    groups: dict[str, list[TensorFile]] = {}
    for file in files:
        match = SHARD.fullmatch(file.path.stem)
        groups.setdefault(str(file.path.parent / (match["stem"] if match else file.path.name)), []).append(file)
    for group in groups.values():
        match = SHARD.fullmatch(group[0].path.stem)
        if match and len(group) != int(match["count"]):
            raise CheckpointError(f"{group[0].path}: {len(group)} of {int(match['count'])} shards found")
    return [tuple(group) for group in groups.values()]


def _read_part(files: tuple[TensorFile, ...]) -> Part:
    tensors: dict[str, Source] = {}
    for file in files:
        for key in file.tensors:
            if key in tensors:
                raise CheckpointError(f"{file.path} and {tensors[key].file.path} both hold {key}")
            tensors[key] = Source(file, key)
    metadata = next((file.metadata for file in files if "config" in file.metadata), files[0].metadata)
    config = _config(files[0].path, metadata)
    tensors = plain_layers(files[0].path, tensors, metadata)
    if _is_bare_transformer(tensors):
        named = {_native_name(key): source for key, source in tensors.items()}
        tensors = {DIFFUSION_MODEL + name: source for name, source in named.items()}
        if "transformer" not in config:
            beside = files[0].path.parent / "config.json"
            shapes = {name: source.info.shape for name, source in named.items()}
            given = _read_json(beside) if beside.is_file() else None
            config = {**config, "transformer": infer_transformer_config(shapes, given)}
    return Part(files, tensors, metadata, config)


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    config = parse_metadata(metadata).get("config", {})
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its config is not a JSON object")
    return config


def _is_bare_transformer(names: Iterable[str]) -> bool:
    starts = ("transformer_blocks.", "diffusion_model.transformer_blocks.")
    return any(name.startswith(starts) for name in names)


def _native_name(key: str) -> str:
    return from_diffusers_name(key.removeprefix("diffusion_model."))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} holds {type(parsed).__name__}, expected a JSON object")
    return parsed


def as_paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(path) for path in given]
