"""Adapters of a network: put beside the linears of a frozen one, trained, saved in the layout every loader reads.

A module is adapted when its dotted name is a target or ends with "." and a target. Groups give some of the modules
another rank, strength or learning rate; the first group that means a module decides. Saved tensors are
``diffusion_model.<module>.<part>``; what the parts are, and how each kind computes, stands in `ltx_trainer.adapters`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError
from ltx_core.loader.lora import Lora
from ltx_core.loader.safetensors_file import save_tensors
from ltx_trainer.adapters import KINDS, Adapter, LayerSettings, refuse, trained_tensors
from ltx_trainer.targets import SHORT_TARGETS, LoraGroup, adapted_linears

PREFIX = "diffusion_model."


@dataclass(frozen=True)
class LoraSettings:
    """Kind, size, strength and place of an adapter.

    ``kind`` is lora, rslora, dora or lokr. ``rank`` is the inner size of its matrices, at least 1; its strength is
    ``alpha`` / ``rank`` (rslora: ``alpha`` / sqrt(``rank``)). ``dropout``, from 0 to 1, is the share of a module's
    inputs left out in training. ``target_modules`` are names, or name endings, of the linears that are adapted: by
    default those of attention. ``factor`` bounds the rows and columns of lokr's first matrix. ``groups`` give some of
    the modules settings of their own; the first one that means a module decides.
    """

    rank: int = 64
    alpha: float = 64
    dropout: float = 0.0
    target_modules: tuple[str, ...] = SHORT_TARGETS
    kind: str = "lora"
    factor: int = 8  # of lokr
    groups: tuple[LoraGroup, ...] = ()

    def of(self, group: LoraGroup | None) -> LayerSettings:
        """The settings of a module of ``group``."""
        plain = LayerSettings(self.rank, self.alpha, self.kind, self.dropout, self.factor)
        if group is None:
            return plain
        rank = plain.rank if group.rank is None else group.rank
        alpha = plain.alpha if group.alpha is None else group.alpha
        return LayerSettings(rank, alpha, self.kind, self.dropout, self.factor, group.rate)


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps features by one matrix, in whatever format it is stored."""
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("Linear") and isinstance(weight, Tensor) and weight.ndim == 2


def add_lora(network: nn.Module, settings: LoraSettings, seed: int = 0) -> list[str]:
    """Freeze ``network`` and adapt the linears ``settings`` names; returns their names.

    The adapter's start depends on ``seed`` and the names alone. Raises `ConfigError` when a target matches nothing.
    """
    linears = [name for name, module in network.named_modules() if is_linear(module)]
    chosen = adapted_linears(linears, settings.target_modules, settings.groups)
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, group in chosen.items():
        parent, _, leaf = name.rpartition(".")
        layer = settings.of(group)
        setattr(network.get_submodule(parent), leaf, KINDS[layer.kind](network.get_submodule(name), layer, generator))
    return list(chosen)


def lora_layers(network: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Adapted linears by name."""
    for name, module in network.named_modules():
        if isinstance(module, Adapter):
            yield name, module


def rate_factors(network: nn.Module, prefix: str = "") -> dict[str, float]:
    """By how much the learning rate of parameters differs from the run's, by name behind ``prefix``."""
    return {
        f"{prefix}{name}.{part}": layer.settings.rate
        for name, layer in lora_layers(network)
        if layer.settings.rate != 1
        for part in trained_tensors(layer)
    }


def lora_tensors(network: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter under the names it is saved with, its strength multiplied in, float32.

    ``weights`` replaces the network's own parameters, by their names in it (an average, say).
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in lora_layers(network):
        values = {
            part: value if weights is None else weights[f"{name}.{part}"]
            for part, value in trained_tensors(layer).items()
        }
        tensors |= {f"{PREFIX}{name}.{part}": value for part, value in layer.file_tensors(values).items()}
    return tensors


def save_lora(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write an adapter to the safetensors file ``path`` and return that.

    ``tensors`` are those of `lora_tensors`, stored as ``dtype``; ``metadata`` is text for the file's header, None for
    none. Raises `CheckpointError` when it cannot be written.
    """
    save_tensors(path, {name: tensor.cpu().to(dtype) for name, tensor in tensors.items()}, metadata or {})
    return path


def load_lora(network: nn.Module, path: Path) -> None:
    """Put the adapter saved at ``path`` into ``network``, which `add_lora` adapted; its strength is divided out again.

    Raises `CheckpointError` that names what does not fit: other modules, another kind or rank.
    """
    lora = Lora.open(path)
    layers = dict(lora_layers(network))
    absent, foreign = sorted(layers.keys() - lora.layers.keys()), sorted({*lora.layers, *lora.unused} - layers.keys())
    for names, what in ((absent, "lacks"), (foreign, "holds unknown")):
        if names:
            raise CheckpointError(f"{path} {what} {len(names)} of the adapter's modules, first: {names[0]}")
    with torch.no_grad():
        for name, layer in layers.items():
            if not layer.load(lora.layers[name]):
                raise refuse(path, name, layer, lora.layers[name])


def reference_metadata(factors: tuple[int, int] | None, legacy: bool = False) -> dict[str, str]:
    """Metadata of an adapter trained with references: factors (spatial, temporal) that are not 1.

    ``legacy`` adapters (video_to_video) always name the spatial factor.
    """
    spatial, temporal = factors or (1, 1)
    metadata = {}
    if spatial != 1 and not legacy:
        metadata["reference_spatial_scale_factor"] = str(spatial)
    if spatial != 1 or (legacy and factors is not None):
        metadata["reference_downscale_factor"] = str(spatial)
    if temporal != 1:
        metadata["reference_temporal_scale_factor"] = str(temporal)
    return metadata
