"""LoRA adapters: files of low-rank weight differences in every dialect, read into one form.

Official names are ``diffusion_model.<module path>.lora_A.weight`` ``(r, in)`` and ``.lora_B.weight`` ``(out, r)``.
Read too: ``lora_down`` / ``lora_up``, ``lora.down`` / ``lora.up``, PEFT's ``lora_A.default``, a missing ``.weight``,
the prefixes ``model.diffusion_model.``, ``transformer.``, ``base_model.model.`` or none, diffusers module names, an
``.alpha`` scalar beside the pair, and whole differences ``.diff`` (weight) and ``.diff_b`` (bias).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ltx_core.errors import CheckpointError
from ltx_core.loader.diffusers_names import from_diffusers_name
from ltx_core.loader.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
PART_OF_SUFFIX = {
    "lora_A": "a",
    "lora_down": "a",
    "lora.down": "a",
    "lora_B": "b",
    "lora_up": "b",
    "lora.up": "b",
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
}
PAIR = r"lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up"
NAME = re.compile(rf"(?P<module>.+)\.(?P<suffix>{PAIR})(\.default)?(\.weight)?")
SCALAR_NAME = re.compile(r"(?P<module>.+)\.(?P<suffix>alpha|diff|diff_b)")


@dataclass(frozen=True)
class LoraLayer:
    """What one adapter changes in one module: ``alpha / r * b @ a + diff`` in its weight, ``diff_b`` in its bias."""

    a: Tensor | None = None  # (r, in)
    b: Tensor | None = None  # (out, r)
    alpha: float | None = None  # None counts as r
    diff: Tensor | None = None  # shape of the weight
    diff_b: Tensor | None = None  # shape of the bias

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or self.a is None else self.alpha / self.a.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """Shape of the weight difference, None when there is none."""
        if self.a is not None and self.b is not None:
            return self.b.shape[0], self.a.shape[1]
        return None if self.diff is None else tuple(self.diff.shape)


@dataclass(frozen=True)
class Lora:
    """An adapter and the strength it is applied with."""

    path: Path
    layers: Mapping[str, LoraLayer]  # by module path as in the transformer checkpoint without its prefix
    metadata: Mapping[str, str]
    unused: tuple[str, ...]  # tensors of the file that are no part of any layer
    strength: float = 1.0

    @classmethod
    def open(cls, path: str | os.PathLike[str], strength: float = 1.0, use_alpha: bool = True) -> Lora:
        """Read an adapter; its tensors stay in the file until they are used.

        ``use_alpha`` False ignores ``.alpha`` scalars, as the official package does. Raises ``CheckpointError`` for a
        file that holds no adapter.
        """
        return read_lora(SafetensorsFile(path), strength, use_alpha)

    def at(self, strength: float) -> Lora:
        """The same adapter with another strength."""
        return replace(self, strength=strength)

    def unmatched(self, weights: Collection[str]) -> list[str]:
        """Everything in the file that changes none of ``weights``, a model's parameter names."""
        lost = [path for path in self.layers if f"{path}.weight" not in weights and f"{path}.bias" not in weights]
        return [*lost, *self.unused]

    @property
    def reference_downscale_factor(self) -> int:
        """Target / reference size of an IC-LoRA in space, 1 when undeclared."""
        return self._factor("reference_downscale_factor", self._factor("reference_spatial_scale_factor", 1))

    @property
    def reference_temporal_scale_factor(self) -> int:
        """Target / reference frame count of an IC-LoRA, 1 when undeclared."""
        return self._factor("reference_temporal_scale_factor", 1)

    @property
    def hdr_transform(self) -> str | None:
        """Transfer function of an HDR adapter, None for any other adapter."""
        named = self.metadata.get("hdr_transform")
        if named is None:
            return "logc3" if self.metadata.get("use_hdr_transform") else None
        return "logc3" if named.lower() == "true" else named

    def _factor(self, key: str, default: int) -> int:
        text = self.metadata.get(key)
        if text is None:
            return default
        if not text.strip().isdigit() or int(text) < 1:
            raise CheckpointError(f"{self.path}: {key} is {text!r}, expected a positive integer")
        return int(text)


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file with these tensors is an adapter."""
    return any(NAME.fullmatch(name) or name.endswith((".diff", ".diff_b")) for name in names)


def read_lora(file: SafetensorsFile, strength: float = 1.0, use_alpha: bool = True) -> Lora:
    """The adapter in an opened file."""
    if not is_lora(file.tensors):
        example = next(iter(file.tensors), "none")
        raise CheckpointError(f"{file.path} is not a LoRA adapter: no lora_A/lora_B pair, first tensor {example}")
    parts: dict[str, dict[str, str]] = {}
    unused: list[str] = []
    for name in file.tensors:
        match = NAME.fullmatch(name) or SCALAR_NAME.fullmatch(name)
        if match is None:
            unused.append(name)
        elif use_alpha or match["suffix"] != "alpha":
            parts.setdefault(module_path(match["module"]), {})[PART_OF_SUFFIX[match["suffix"]]] = name
        else:
            unused.append(name)
    layers: dict[str, LoraLayer] = {}
    for path, names in parts.items():
        layer = _read_layer(file, path, names)
        if layer is None:
            unused.extend(names.values())
        else:
            layers[path] = layer
    return Lora(file.path, layers, file.metadata, tuple(unused), strength)


def module_path(name: str) -> str:
    """A module's path in the transformer, whatever prefixes and diffusers names an adapter uses for it."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return from_diffusers_name(name)


def _read_layer(file: SafetensorsFile, path: str, names: Mapping[str, str]) -> LoraLayer | None:
    """None when neither a pair nor a difference is complete."""
    found = {part: file.read(name) for part, name in names.items()}
    alpha, a, b = found.pop("alpha", None), found.get("a"), found.get("b")
    if a is None or b is None or a.ndim != 2 or b.ndim != 2:
        found.pop("a", None)
        found.pop("b", None)
        if not found:
            return None
    elif a.shape[0] != b.shape[1]:
        raise CheckpointError(f"{file.path}: {path} has A {tuple(a.shape)} and B {tuple(b.shape)}, ranks must agree")
    if alpha is not None and alpha.numel() != 1:
        raise CheckpointError(f"{file.path}: {path}.alpha has shape {tuple(alpha.shape)}, expected a scalar")
    return LoraLayer(alpha=None if alpha is None else alpha.float().item(), **found)


def weight_delta(loras: Iterable[Lora], path: str, device: torch.device | str, dtype: torch.dtype) -> Tensor | None:
    """What all adapters together add to a module's weight, ``(out, in)``, summed in ``dtype``; None for nothing."""
    delta: Tensor | None = None
    for lora in loras:
        layer = lora.layers.get(path)
        if layer is None or lora.strength == 0:
            continue
        if layer.a is not None and layer.b is not None:
            factor = lora.strength * layer.scale
            a, b = layer.a.to(device).to(dtype), layer.b.to(device).to(dtype)  # (r, in), (out, r)
            delta = (b * factor) @ a if delta is None else delta.addmm(b, a, alpha=factor)
        if layer.diff is not None:
            term = layer.diff.to(device).to(dtype) * lora.strength
            delta = term if delta is None else delta + term
    return delta


def bias_delta(loras: Iterable[Lora], path: str, device: torch.device | str = "cpu") -> Tensor | None:
    """What all adapters together add to a module's bias, float32 ``(out,)``; None for nothing."""
    delta = None
    for lora in loras:
        layer = lora.layers.get(path)
        if layer is not None and layer.diff_b is not None and lora.strength != 0:
            term = layer.diff_b.to(device).float() * lora.strength
            delta = term if delta is None else delta + term
    return delta
