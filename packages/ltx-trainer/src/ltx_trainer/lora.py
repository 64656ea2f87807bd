"""LoRA adapters: put beside the linears of a frozen network, trained, saved in the layout every loader reads.

A module is adapted when its dotted name is a target or ends with "." and a target. An adapted linear computes::

    y = W x + (alpha / rank) B A x        A [rank, in] Kaiming-uniform, B [out, rank] zero, both float32

Saved tensors are ``diffusion_model.<module>.lora_A.weight`` and ``.lora_B.weight``. Loaders apply ``B A`` alone, so
``alpha / rank`` is multiplied into the saved B: an adapter acts at inference as it did in training, whatever its alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError
from ltx_core.loader.lora import Lora
from ltx_core.loader.safetensors_file import save_tensors
from ltx_trainer.targets import matching

PREFIX = "diffusion_model."
SHORT_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")


@dataclass(frozen=True)
class LoraSettings:
    """Size, strength and place of an adapter."""

    rank: int = 64
    alpha: float = 64
    dropout: float = 0.0
    target_modules: tuple[str, ...] = SHORT_TARGETS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """A frozen linear of any storage format and the low-rank difference learned beside it."""

    def __init__(self, base: nn.Module, settings: LoraSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base = base
        self.scale = settings.scale
        self.enabled = True  # off: the base alone
        inputs, outputs = linear_size(base)
        device = next(base.parameters()).device
        self.lora_A = nn.Linear(inputs, settings.rank, bias=False, device="meta")
        self.lora_B = nn.Linear(settings.rank, outputs, bias=False, device="meta")
        bound = math.sqrt(1 / inputs)  # Kaiming-uniform with a = sqrt 5
        drawn = torch.empty(settings.rank, inputs).uniform_(-bound, bound, generator=generator)
        self.lora_A.weight = nn.Parameter(drawn.to(device))
        self.lora_B.weight = nn.Parameter(torch.zeros(outputs, settings.rank, device=device))
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.enabled:
            return y
        low = x if torch.is_autocast_enabled(x.device.type) else x.to(self.lora_A.weight.dtype)
        return y + (self.lora_B(self.lora_A(self.dropout(low))) * self.scale).to(y.dtype)


def linear_size(linear: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear in any storage format."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    outputs, inputs = linear.weight.shape  # type: ignore[misc]
    return int(inputs), int(outputs)


def matching_linears(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linears that ``targets`` adapt. Raises `ConfigError` for a target that matches none."""
    return matching([name for name, module in network.named_modules() if is_linear(module)], targets)


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps features by one matrix, in whatever format it is stored."""
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("Linear") and isinstance(weight, Tensor) and weight.ndim == 2


def add_lora(network: nn.Module, settings: LoraSettings, seed: int = 0) -> list[str]:
    """Freeze ``network`` and adapt the linears ``settings`` names; returns their names.

    The adapter's start depends on ``seed`` and the names alone. Raises `ConfigError` when a target matches nothing.
    """
    names = matching_linears(network, settings.target_modules)
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        adapted = LoraLinear(network.get_submodule(name), settings, generator)
        setattr(network.get_submodule(parent), leaf, adapted)
    return names


def lora_layers(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Adapted linears by name."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def lora_tensors(network: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter under the names it is saved with, ``alpha / rank`` multiplied into B, float32.

    ``weights`` replaces the network's own parameters, by their names in it (an average, say).
    """
    tensors = {}
    for name, layer in lora_layers(network):
        own = {"lora_A": layer.lora_A.weight.detach(), "lora_B": layer.lora_B.weight.detach()}
        for part, tensor in own.items():
            value = tensor if weights is None else weights[f"{name}.{part}.weight"]
            scale = layer.scale if part == "lora_B" else 1.0
            tensors[f"{PREFIX}{name}.{part}.weight"] = value.float() * scale if scale != 1 else value.float()
    return tensors


def save_lora(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write an adapter. Raises `CheckpointError` when it cannot be written."""
    save_tensors(path, {name: tensor.cpu().to(dtype) for name, tensor in tensors.items()}, metadata or {})
    return path


def load_lora(network: nn.Module, path: Path) -> None:
    """Put a saved adapter into an adapted network, its scale divided out of B again.

    Raises `CheckpointError` that names what does not fit: other modules or another rank.
    """
    lora = Lora.open(path)
    layers = dict(lora_layers(network))
    absent, foreign = sorted(layers.keys() - lora.layers.keys()), sorted({*lora.layers, *lora.unused} - layers.keys())
    for names, what in ((absent, "lacks"), (foreign, "holds unknown")):
        if names:
            raise CheckpointError(f"{path} {what} {len(names)} of the adapter's modules, first: {names[0]}")
    with torch.no_grad():
        for name, layer in layers.items():
            saved = lora.layers[name]
            if saved.a is None or saved.b is None or saved.a.shape != layer.lora_A.weight.shape:
                rank = None if saved.a is None else saved.a.shape[0]
                raise CheckpointError(f"{path}: {name} has rank {rank}, expected {layer.lora_A.weight.shape[0]}")
            layer.lora_A.weight.copy_(saved.a)
            layer.lora_B.weight.copy_(saved.b.float() * (saved.scale / layer.scale))


def reference_metadata(factors: tuple[int, int] | None, legacy: bool = False) -> dict[str, str]:
    """What an adapter trained with references says about them: factors (spatial, temporal) that are not 1.

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
