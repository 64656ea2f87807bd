"""The files of a Gemma text encoder: a Hugging Face folder, or one packed safetensors file.

A packed file holds the weights, ``gemma_config`` in its metadata, ``tokenizer_json`` (the bytes of ``tokenizer.json``
as a tensor) and each further file as ``hf_asset__<name>``, or as metadata under its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.layouts import component_files
from ltx_core.loader.packed import plain_layers
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.sources import Source
from ltx_core.text_encoders.gemma.config import EmbeddingsConfig
from ltx_core.textfiles import parse_object

MODEL_TYPES = ("gemma3", "gemma4_unified", "gemma4")
PUBLISHED = "google/gemma-3-12b-it-qat-q4_0-unquantized"
ASSET_PREFIX = "hf_asset__"
SIDE_CAR_SUFFIXES = (".json", ".jinja")
GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class GemmaAssets:
    """Opened files; tensors are not read yet."""

    path: Path
    config: Mapping[str, Any]  # the Hugging Face config.json
    tokenizer_json: bytes
    side_cars: Mapping[str, str]  # text of the other small files by name
    weights: tuple[SafetensorsFile, ...]
    is_packed: bool

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GemmaAssets:
        """Open a folder or a packed file.

        Raises ``CheckpointError`` that says what is missing and where to get it, and for a model that is no Gemma.
        """
        given = os.fspath(path)
        if re.match(r"[a-z][a-z0-9+]+:/", given, re.IGNORECASE):
            advice = f"download it first (hf download {PUBLISHED}) and give the folder"
            raise CheckpointError(f"text encoder is a URL: {given}; {advice}")
        where = Path(given)
        if not where.exists():
            raise CheckpointError(f"text encoder not found: {where}; expected a Gemma folder (such as {PUBLISHED})")
        assets = _open_folder(where) if where.is_dir() else _open_packed(where)
        if (kind := assets.config.get("model_type")) not in MODEL_TYPES:
            raise CheckpointError(f"{where} has model_type {kind!r}, expected one of {', '.join(MODEL_TYPES)}")
        return assets

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    def side_car(self, name: str) -> dict[str, Any]:
        """The parsed JSON of a side-car; ``CheckpointError`` when there is none."""
        if name not in self.side_cars:
            raise CheckpointError(f"{self.path} has no {name}; download the whole text encoder again")
        return parse_object(self.side_cars[name], str(self.path / name))

    def language_model(self) -> dict[str, Source]:
        """The tensors of the decoder under its own names (``embed_tokens.weight``, ``layers.0...``, ``norm.weight``).

        Vision and audio towers and the output head are not read. Raises ``CheckpointError`` for unknown formats.
        """
        stored = {name: Source(file, name) for file in self.weights for name in file.tensors}
        sources = plain_layers(self.path, stored, self.weights[0].metadata)
        tables = [name for name in sources if re.fullmatch(r"((language_)?model\.)*embed_tokens\.weight", name)]
        if len(tables) != 1:
            raise CheckpointError(f"{self.path} has {len(tables)} embedding tables, expected one language model")
        prefix = tables[0].removesuffix("embed_tokens.weight")
        parts = ("embed_tokens", "layers.", "norm.", "per_layer_")
        named = {name: source for name, source in sources.items() if name.startswith(tuple(prefix + p for p in parts))}
        for name, source in named.items():
            if not source.info.dtype.is_floating_point:
                raise CheckpointError(f"{self.path}: {name} is {source.info.dtype}, expected floating-point weights")
        return {name.removeprefix(prefix): source for name, source in named.items()}


def embeddings_parts(
    assets: GemmaAssets, checkpoint: Checkpoint, *, audio: bool = True
) -> tuple[EmbeddingsConfig, dict[str, Source]]:
    """Config and tensors of feature extractor and connectors, from the checkpoint and, if packed, the encoder's file.

    ``audio`` False leaves the audio stream out. Raises ``CheckpointError`` where there is no projection of states, and
    ``ConfigError`` where audio is wanted and not described.
    """
    sources = checkpoint.sources("embeddings")
    if assets.is_packed:
        sources |= Checkpoint.open(assets.path).sources("embeddings")
    if not any(name.startswith("feature_extractor.") for name in sources):
        advice = "give the packed text-encoder file of its split pack instead of a Gemma folder"
        raise CheckpointError(f"{checkpoint.where} holds no text_embedding_projection; {advice}")
    config = EmbeddingsConfig.from_metadata(checkpoint.component_config("embeddings"), assets.config)
    if audio and config.audio is None:
        raise ConfigError(f"{checkpoint.where} describes no audio stream, expected one; load its video encoder alone")
    if audio:
        return config, sources
    return config.video_only(), {name: source for name, source in sources.items() if "audio_" not in name}


def _open_folder(folder: Path) -> GemmaAssets:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts)
    config = next((file for file in files if file.name == "config.json"), None)
    if config is None:
        raise CheckpointError(f"{folder} has no config.json, expected a Gemma folder (such as {PUBLISHED})")
    beside = folder.parent / "tokenizer"
    if beside.is_dir() and not any(file.name == "tokenizer.json" for file in files):  # a diffusers folder
        files += sorted(file for file in beside.iterdir() if file.is_file())
    tokenizer = next((file for file in files if file.name == "tokenizer.json"), None)
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer.json; download it from {PUBLISHED} into this folder")
    model = next((file for file in files if re.fullmatch(r"model.*\.safetensors", file.name)), None)
    if model is None:
        raise CheckpointError(f"{folder} has no model*.safetensors; download the weights of {PUBLISHED}")
    side_cars: dict[str, str] = {}
    for file in files:
        if file.suffix in SIDE_CAR_SUFFIXES and file not in (config, tokenizer):
            side_cars.setdefault(file.name, _read(file).decode(errors="replace"))
    return GemmaAssets(
        path=folder,
        config=parse_object(_read(config), str(config)),
        tokenizer_json=_read(tokenizer),
        side_cars=side_cars,
        weights=tuple(SafetensorsFile(file) for file in component_files(model.parent)),
        is_packed=False,
    )


def _open_packed(path: Path) -> GemmaAssets:
    file = SafetensorsFile(path)
    if "gemma_config" not in file.metadata:
        raise CheckpointError(f"{path} has no gemma_config in its metadata, expected a packed text encoder or a folder")
    if "tokenizer_json" not in file.tensors:
        raise CheckpointError(f"{path} has no tokenizer_json, expected a packed text encoder with its tokenizer")
    side_cars = {name: text for name, text in file.metadata.items() if name.endswith(SIDE_CAR_SUFFIXES)}
    for name in file.tensors:
        if name.startswith(ASSET_PREFIX):
            side_cars[name.removeprefix(ASSET_PREFIX)] = _bytes(file, name).decode(errors="replace")
    config = parse_object(file.metadata["gemma_config"], str(path))
    return GemmaAssets(path, config, _bytes(file, "tokenizer_json"), side_cars, (file,), is_packed=True)


def _bytes(file: SafetensorsFile, name: str) -> bytes:
    return file.read(name).to(torch.uint8).numpy().tobytes()


def _read(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    if data.startswith(GIT_LFS):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the file; fetch it with 'git lfs pull'")
    return data
