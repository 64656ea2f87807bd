"""The door: files in any layout become parts whose tensors have native names.

A part is one file or one set of shards (``name-00001-of-00003.safetensors``). Files of parts without the published
prefixes, quantised layers and folders of the diffusers library are translated here, so that nothing further in knows
any layout but the native one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import CheckpointError, as_checkpoint_error
from ltx_core.loader import diffusers
from ltx_core.loader.components import COMPONENTS, DIFFUSION_MODEL
from ltx_core.loader.gguf import GgufFile
from ltx_core.loader.metadata import parse_metadata
from ltx_core.loader.packed import plain_layers
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.sources import Derived, Source, TensorFile, scale_rows
from ltx_core.model.transformer.foreign import from_diffusers_name, infer_metadata, infer_transformer_config
from ltx_core.textfiles import read_json

SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<variant>\.\w+)?")
INDEX = ".safetensors.index.json"
SUFFIXES = (".safetensors", ".gguf")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
DIFFUSERS_INDEX = "model_index.json"
#: Folders of a diffusers model that are opened with it; others hold a second network for the same purpose.
TOGETHER = ("transformer", "connectors", "vae", "audio_vae", "vocoder", "duration_head")
#: How names without the published prefixes begin, and what they are.
BARE = {
    "diffusion_model.": DIFFUSION_MODEL,
    f"{DIFFUSION_MODEL}duration_head.": "duration_head.",
    "text_embedding_projection.weight": "text_embedding_projection.aggregate_embed.weight",
    "text_embedding_projection.bias": "text_embedding_projection.aggregate_embed.bias",
    **{
        f"{name}_embeddings_connector.": f"{DIFFUSION_MODEL}{name}_embeddings_connector." for name in ("video", "audio")
    },
    **{
        f"{name}aggregate_embed.": f"text_embedding_projection.{name}aggregate_embed."
        for name in ("", "video_", "audio_")
    },
    "attention_pooler.": "duration_head.attention_pooler.",
}


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
        return self.has(COMPONENTS[component].markers)

    def has(self, starts: tuple[str, ...]) -> bool:
        """Whether the name of a tensor begins with one of these."""
        return any(name.startswith(starts) for name in self.tensors)

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
                    sources[scaled] = Derived.of((sources[scaled], gate), scale_rows)
        return sources


# Which files ----------------------------------------------------------------------------------------------------------


def find_files(path: Path) -> list[Path]:
    """The files that a file, one of several shards, an index of shards or a folder stands for, sorted.

    Raises ``CheckpointError`` for an index that names what is not there, and a folder without any weights.
    """
    if path.name.endswith(INDEX):
        return _index_files(path)
    if not path.is_dir():
        return _shards(path)
    if is_diffusers_model(path):
        return [file for name in TOGETHER if (path / name).is_dir() for file in component_files(path / name)]
    if diffusers_kind(path):
        return component_files(path)
    found = [file for file in path.rglob("*") if file.suffix in SUFFIXES and not _is_hidden(file.relative_to(path))]
    if not found:
        raise CheckpointError(f"{path} is a folder without any safetensors file{_instead(path)}")
    return sorted(found)


def _instead(folder: Path) -> str:
    pickled = next((file.name for file in folder.iterdir() if file.suffix in PICKLES), None)
    return f"; {pickled} is a pickle, which runs code and is not read: convert it to safetensors" if pickled else ""


def component_files(folder: Path) -> list[Path]:
    """The weights in a folder with several variants: one file comes before shards, the plain variant before others."""
    files = [file for file in folder.glob("*.safetensors") if not _is_hidden(file.relative_to(folder))]
    if not files:
        raise CheckpointError(f"{folder} is a folder without any safetensors file{_instead(folder)}")
    whole = [file for file in files if not SHARD.fullmatch(file.stem)]
    return _shards(min(whole or files, key=lambda file: (file.name.count("."), file.name)))


def _shards(file: Path) -> list[Path]:
    """All shards of the set a file belongs to, or the file."""
    match = SHARD.fullmatch(file.stem)
    if match is None or not file.is_file():
        return [file]
    own = (match["stem"], match["count"], match["variant"], file.suffix)
    found = [(SHARD.fullmatch(other.stem), other) for other in file.parent.iterdir()]
    return sorted(other for m, other in found if m and (m["stem"], m["count"], m["variant"], other.suffix) == own)


def _index_files(index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, expected a file name without folders")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is not there")
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index)
    named = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise CheckpointError(f"{index} has no weight_map, expected an object of tensor names and files")
    return named


def is_diffusers_model(folder: Path) -> bool:
    """Whether a folder is a whole model of the diffusers library."""
    return (folder / DIFFUSERS_INDEX).is_file() and (folder / TOGETHER[0]).is_dir()


def diffusers_kind(folder: Path) -> str | None:
    """The component of a diffusers model that a folder holds, by the class in its ``config.json``; None for others."""
    beside = folder / "config.json"
    if not beside.is_file():
        return None
    given = read_json(beside)
    return diffusers.CLASSES.get(str(given.get("_class_name"))) if isinstance(given, dict) else None


def open_file(path: Path, verify: bool | None) -> TensorFile:
    """A safetensors file, or a GGUF file by its suffix."""
    if path.suffix.lower() in PICKLES and path.is_file():
        raise CheckpointError(f"{path} is a pickle file, expected safetensors (pickles run code and are not read)")
    return GgufFile(path) if path.suffix.lower() == ".gguf" else SafetensorsFile(path, verify)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# What they hold -------------------------------------------------------------------------------------------------------


def read_parts(files: Sequence[TensorFile]) -> list[Part]:
    """Group shards and give every tensor its native name."""
    return [_read_part(group) for group in _shard_groups(files)]


def _shard_groups(files: Iterable[TensorFile]) -> list[tuple[TensorFile, ...]]:
    groups: dict[str, list[TensorFile]] = {}
    for file in files:
        match = SHARD.fullmatch(file.path.stem)
        name = f"{match['stem']}{match['variant'] or ''}" if match else file.path.name
        groups.setdefault(str(file.path.parent / name), []).append(file)
    for group in groups.values():
        match = SHARD.fullmatch(group[0].path.stem)
        if match and len(group) != int(match["count"]):
            raise CheckpointError(f"{group[0].path}: {len(group)} of {int(match['count'])} shards found")
    return [tuple(group) for group in groups.values()]


def _read_part(files: tuple[TensorFile, ...]) -> Part:
    tensors = _tensors(files)
    metadata = dict(next((file.metadata for file in files if "config" in file.metadata), files[0].metadata))
    path = files[0].path
    tensors = plain_layers(path, tensors, metadata)
    kind = diffusers_kind(path.parent)
    if kind is not None and not any(name.startswith(DIFFUSION_MODEL) for name in tensors):
        tensors, config = _from_diffusers(path.parent, kind, tensors)
    else:
        config = _config(path, metadata)
        tensors = _native(path, tensors, config)
    if isinstance(section := config.get("transformer"), Mapping) and "model_version" not in metadata:
        metadata = infer_metadata(section) | metadata
    return Part(files, tensors, metadata, config)


def _tensors(files: Sequence[TensorFile]) -> dict[str, Source]:
    """The tensors of one file, or of shards, among which an index beside them decides."""
    first = files[0].path
    match = SHARD.fullmatch(first.stem)
    variant = (match["variant"] or "") if match else ""
    index = first.parent / f"{match['stem'] if match else first.stem}{INDEX.replace('.json', variant + '.json')}"
    places = _weight_map(index) if match and index.is_file() else None
    tensors: dict[str, Source] = {}
    for file in files:
        for key in file.tensors:
            if places is not None and key not in places:
                raise CheckpointError(f"{file.path} holds {key}, which {index.name} does not name")
            if places is not None and places[key] != file.path.name:
                continue
            if key in tensors:
                raise CheckpointError(f"{file.path} and {tensors[key].file.path} both hold {key}")
            tensors[key] = Source(file, key)
    if lost := sorted((places or {}).keys() - tensors.keys()):
        raise CheckpointError(f"{index} names {lost[0]}, which no shard holds")
    return tensors


def _from_diffusers(folder: Path, kind: str, tensors: Mapping[str, Source]) -> tuple[dict[str, Source], dict[str, Any]]:
    """Published names and the config of a component in a diffusers folder."""
    from ltx_core.loader.diffusers_config import read_config
    from ltx_core.model.video_vae.config import VideoVaeConfig

    given = read_json(folder / "config.json")
    with as_checkpoint_error(str(folder)):
        blocks: diffusers.Pairs = ()
        if kind == "vae":
            vae = VideoVaeConfig.from_metadata(read_config(kind, given, {}))
            blocks = diffusers.vae_blocks(vae.encoder_blocks, vae.decoder_blocks)
        named = diffusers.read_names(kind, tensors, blocks)
        return named, read_config(kind, given, {name: source.info.shape for name, source in named.items()})


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    config = parse_metadata(metadata).get("config", {})
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its config is not a JSON object")
    return config


def _native(path: Path, tensors: Mapping[str, Source], config: dict[str, Any]) -> dict[str, Source]:
    """Tensors of a file under published names; the config gains the transformer's section where there was none."""
    if any(name.startswith(("transformer_blocks.", "diffusion_model.transformer_blocks.")) for name in tensors):
        bare = {from_diffusers_name(key.removeprefix("diffusion_model.")): source for key, source in tensors.items()}
        tensors = {DIFFUSION_MODEL + name: source for name, source in bare.items()}
    else:
        tensors = {_published_name(name, tensors): source for name, source in tensors.items()}
    start, embedding = len(DIFFUSION_MODEL), f"{DIFFUSION_MODEL}keyframes_abs_pos_embedding"
    if embedding in tensors and len(tensors[embedding].info.shape) == 1:  # GGUF tools lose leading ones
        lost = tensors[embedding]
        widened = Derived.of((lost,), lambda tensor: tensor.unsqueeze(0), (1, *lost.info.shape))
        tensors = {**tensors, embedding: widened}
    if "transformer" not in config and any(
        name.startswith(f"{DIFFUSION_MODEL}transformer_blocks.") for name in tensors
    ):
        beside = path.parent / "config.json"
        shapes = {
            name[start:]: source.info.shape for name, source in tensors.items() if name.startswith(DIFFUSION_MODEL)
        }
        config["transformer"] = infer_transformer_config(shapes, read_json(beside) if beside.is_file() else None)
    return dict(tensors)


def _published_name(name: str, names: Mapping[str, Source]) -> str:
    if "attention_pooler.query_tokens" in names:
        return f"duration_head.{name}"
    return next((full + name[len(bare) :] for bare, full in BARE.items() if name.startswith(bare)), name)


def as_paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(path) for path in given]
