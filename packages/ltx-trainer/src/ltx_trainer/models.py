"""From a checkpoint to what is trained, and from trained weights to files that load again.

A run resident in memory holds the transformer and the text connectors; VAEs are read when samples are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import ADAPTER_PREFIX, DIFFUSION_MODEL
from ltx_core.loader.weights import ComponentWeights, build
from ltx_core.model.transformer.config import AUDIO_ADAPTER
from ltx_core.text_encoders.gemma.config import EmbeddingsConfig
from ltx_core.text_encoders.gemma.embeddings import EmbeddingsProcessor
from ltx_trainer.lora import lora_tensors, save_lora
from ltx_trainer.state import newest, save_tensors
from ltx_trainer.targets import is_target

LORA_NAME = "lora_weights_step_{step:05d}.safetensors"
MODEL_NAME = "model_weights_step_{step:05d}.safetensors"
AUDIO_ADAPTER_NAME = "audio_adapter_weights_step_{step:05d}.safetensors"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TEXT_PROJECTION = "text_embedding_projection."


def load_connectors(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str = "cpu", audio: bool = True
) -> EmbeddingsProcessor:
    """The text connectors without their feature extractor, frozen. ``audio`` False leaves the audio connector out.

    Raises `CheckpointError` when the file lacks them or they do not fit its config.
    """
    config = EmbeddingsConfig.connectors_from_metadata(checkpoint.component_config("transformer"))
    config = config if audio else config.video_only()
    parts = ("video_", "audio_") if audio else ("video_",)
    found = checkpoint.sources("embeddings") if "embeddings" in checkpoint.components else {}
    sources = {name: source for name, source in found.items() if name.startswith(parts)}
    if not sources:
        raise CheckpointError(f"{checkpoint.where} lacks the text connectors")
    weights = ComponentWeights("text connectors", sources, dtype, device)
    network = build(partial(EmbeddingsProcessor, config), weights)
    assert isinstance(network, EmbeddingsProcessor)
    return network


@dataclass(frozen=True)
class LoraWriter:
    """Writes adapters: ``lora_weights_step_NNNNN.safetensors``."""

    network: nn.Module
    dtype: torch.dtype
    metadata: Callable[[], Mapping[str, str]] = dict

    def __call__(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        path = folder / LORA_NAME.format(step=step)
        return [save_lora(path, lora_tensors(self.network, weights), self.dtype, self.metadata())]


@dataclass(frozen=True)
class ModelWriter:
    """Writes transformers that load like a published one: ``model_weights_step_NNNNN.safetensors``.

    The file holds the trained tensors, everything else that the checkpoint's transformer and text path consist of, the
    published names and the transformer's config: the transformer part of a split pack.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype

    def __call__(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        tensors = {DIFFUSION_MODEL + name: weight.cpu().to(self.dtype) for name, weight in weights.items()}
        for part in self.checkpoint.parts:
            for name, source in part.tensors.items():
                if name not in tensors and name.startswith((DIFFUSION_MODEL, TEXT_PROJECTION)):
                    tensors[name] = source.read()
        metadata = {"config": json.dumps({"transformer": self.checkpoint.config["transformer"]})}
        if version := self.checkpoint.model_version:
            metadata["model_version"] = version
        path = folder / MODEL_NAME.format(step=step)
        save_tensors(path, tensors, metadata)
        return [path]


@dataclass(frozen=True)
class AudioAdapterWriter:
    """Writes audio adapters of LTX-Video: ``audio_adapter_weights_step_NNNNN.safetensors``."""

    section: Mapping[str, Any]
    dtype: torch.dtype

    def __call__(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        path = folder / AUDIO_ADAPTER_NAME.format(step=step)
        tensors = {ADAPTER_PREFIX + name: weight.cpu().to(self.dtype) for name, weight in weights.items()}
        save_tensors(path, tensors, {"config": json.dumps({AUDIO_ADAPTER: self.section})})
        return [path]


def load_weights(network: nn.Module, *paths: Path) -> None:
    """Put the weights of a full fine-tune, or of a model and an audio adapter, into ``network``.

    Every tensor must be there.
    """
    checkpoint = Checkpoint.open(paths)
    given = checkpoint.weights("transformer").state_dict()
    state = network.state_dict()
    missing = [name for name in state if name not in given]
    if missing:
        lacking = f"lacks {len(missing)} tensors of the transformer, first: {missing[0]}"
        raise CheckpointError(f"{checkpoint.where} {lacking}")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(given[name])


def find_weights(path: Path) -> Path:
    """A weights file: ``path`` itself, or the newest of the folder ``path``. Raises `CheckpointError` when none."""
    if path.is_file():
        return path
    found = newest(file for file in path.rglob("*weights_step_*.safetensors") if not file.name.startswith("."))
    if not found:
        raise CheckpointError(f"{path} holds no weights file, expected *_weights_step_*.safetensors")
    return found[0]


def choose_trainable(network: nn.Module, modules: tuple[str, ...] | None) -> None:
    """Train all parameters in float32, or those of the modules whose names are, or end with, one of ``modules``.

    Raises `ConfigError` for a name that matches no module.
    """
    network.requires_grad_(modules is None)
    if modules is None:
        network.float()
        return
    for wanted in modules:
        found = [module for name, module in network.named_modules() if is_target(name, (wanted,))]
        if not found:
            raise ConfigError(f"trainable module {wanted!r} matches no module of the transformer")
        for module in found:
            module.float().requires_grad_(True)
