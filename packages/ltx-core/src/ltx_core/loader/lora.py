"""LoRA adapters: files in every tool's dialect, read into one form and fitted to a model.

Official names are ``diffusion_model.<module path>.lora_A.weight`` ``(r, in)`` and ``.lora_B.weight`` ``(out, r)``.
The other spellings, the kinds and their formulas are listed in `adapters`. Where alpha comes
from: a tensor ``.alpha`` beside the pair, else the header ``lora_adapter_metadata`` (diffusers), else
``adapter_config.json`` in the same folder (PEFT), else the rank, which is scale 1.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ltx_core.errors import CheckpointError
from ltx_core.loader.adapters import (
    TEXT_ENCODER,
    LoraLayer,
    Pair,
    bare_name,
    flat_table,
    foreign_kind,
    is_flat,
    module_path,
    parse_key,
    unflatten,
)
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.textfiles import parse_object, read_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

REPORTED = 10  # names listed of what fits nothing
Shapes = Mapping[str, tuple[int, ...]]  # parameter name -> shape


@dataclass(frozen=True)
class Lora:
    """An adapter and the strength it is applied with; `open` reads one from a file.

    ``path`` is its file and ``metadata`` the header strings of that. ``layers`` are the changes by module path, whose
    flattened names `fit` resolves; ``unused`` names tensors of the file that are no part of any layer. ``strength``
    multiplies the change, 1 being as trained. ``in_bfloat16`` has adapters added up and fused in bfloat16,
    as the official package does, and not in float32.
    """

    path: Path
    layers: Mapping[str, LoraLayer]
    metadata: Mapping[str, str]
    unused: tuple[str, ...]
    strength: float = 1.0
    in_bfloat16: bool = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        strength: float = 1.0,
        use_alpha: bool = True,
        dora_norm: Literal["merged", "base"] | None = None,
    ) -> Lora:
        """Read an adapter; its tensors stay in the file until they are used.

        ``path`` is the file and ``strength`` what its change is multiplied by. ``use_alpha`` False ignores every alpha,
        as the official package does. ``dora_norm`` says which norm a ``dora_scale`` was made for, where its naming
        would guess wrong. Raises ``CheckpointError`` for a file that holds no adapter, or one of an unsupported kind.
        """
        file = SafetensorsFile(path)
        _refuse_foreign(file)
        config = _peft_config(file) if use_alpha else None
        parts: dict[str, dict[str, str]] = {}
        unused: list[str] = []
        for name in file.tensors:
            found = parse_key(name)
            if found is None or (found.part == "alpha" and not use_alpha):
                unused.append(name)
            elif (known := parts.setdefault(found.module, {})).setdefault(found.part, name) != name:
                raise CheckpointError(f"{file.path}: {known[found.part]} and {name} are the same part of one layer")
        layers: dict[str, LoraLayer] = {}
        for written, names in parts.items():
            module = module_path(written)
            if module in layers:
                raise CheckpointError(f"{file.path}: {module} is changed by two entries of the file")
            layer = _LayerReader(file, written, names, config, dora_norm).read()
            if layer is None:
                unused.extend(names.values())
            else:
                layers[module] = layer
        return cls(file.path, layers, file.metadata, tuple(unused), strength)

    def at(self, strength: float) -> Lora:
        """The same adapter with another strength."""
        return replace(self, strength=strength)

    def unmatched(self, weights: Collection[str]) -> list[str]:
        """Everything in the file that changes none of ``weights``, a model's parameter names."""
        lost = [path for path in self.layers if f"{path}.weight" not in weights and f"{path}.bias" not in weights]
        return [*lost, *self.unused]

    def fit(self, shapes: Shapes) -> Lora:
        """The adapter with its flattened names resolved among a model's parameters ``shapes``.

        Raises ``CheckpointError``, nothing being read, when no module fits, when one has another shape than its
        weight or bias, or when two entries name one module. Modules the model lacks are kept; `unmatched` lists them.
        """
        modules = {name.rpartition(".")[0] for name in shapes}
        table = flat_table(modules) if any(is_flat(path) for path in self.layers) else {}
        layers: dict[str, LoraLayer] = {}
        for written, layer in self.layers.items():
            path = (unflatten(written, table) or written) if is_flat(written) else written
            if path in layers:
                raise CheckpointError(f"{self.path}: {path} is changed by two entries of the file")
            _check_shapes(self.path, path, layer, shapes)
            layers[path] = layer
        if not layers.keys() & modules:
            example = next(iter(layers), "none")
            hint = ", it is an adapter of the text encoder" if TEXT_ENCODER.search(example) else ""
            raise CheckpointError(f"{self.path} names no module of this model{hint}; first: {example}")
        return replace(self, layers=layers)

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


def _check_shapes(file: Path, path: str, layer: LoraLayer, shapes: Shapes) -> None:
    for leaf, change in (("weight", layer.weight_shape), ("bias", layer.bias_shape)):
        known = shapes.get(f"{path}.{leaf}")
        if change is None:
            continue
        if known is None and f"{path}.weight" in shapes:
            raise CheckpointError(f"{file}: {path} has no {leaf}, the adapter changes one of {_size(change)}")
        if known is not None and tuple(change) != tuple(known):
            sizes = f"the {leaf} is {_size(known)}, the adapter makes {_size(change)}"
            raise CheckpointError(f"{file}: {path}: {sizes}; it was made for another model")


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file with these tensors is an adapter; ``.alpha`` alone says nothing, vocoders have it too."""
    parts = (found.part for name in names if (found := parse_key(name)) is not None)
    return any(part not in ("alpha", "reshape_weight") for part in parts)


def fit_loras(loras: Sequence[Lora], shapes: Shapes) -> tuple[Lora, ...]:
    """Adapters fitted to a model's parameters; what of each changes nothing is reported in one line."""
    fitted = tuple(lora.fit(shapes) for lora in loras)
    for lora in fitted:
        if unmatched := lora.unmatched(shapes.keys()):
            share = len(unmatched) - len(lora.unused)
            most = " (most of it: is it an adapter of another model?)" if share > len(lora.layers) / 2 else ""
            names = ", ".join(unmatched[:REPORTED])
            logger.warning("%s: %d entries fit nothing%s: %s", lora.path, len(unmatched), most, names)
    return fitted


class _PeftConfig(BaseModel):
    """The fields of PEFT's ``LoraConfig``, ``LoKrConfig`` and ``LoHaConfig`` that change a result."""

    model_config = ConfigDict(extra="ignore", strict=True)
    peft_type: str = "LORA"
    r: int | None = None
    lora_alpha: float | None = None
    alpha: float | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    layer_replication: Any = None
    fan_in_fan_out: bool = False
    use_qalora: bool = False

    def scale(self, module: str, rank: int) -> float:
        """Of a module in the saving model's names, by the first pattern that matches it, else the general alpha."""
        alpha = _matching(self.alpha_pattern, module, self.lora_alpha if self.lora_alpha is not None else self.alpha)
        if alpha is None:
            return 1.0
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def rank_of(self, module: str) -> int | None:
        """Rank the file states for a module, for kinds whose tensors do not show it."""
        return _matching(self.rank_pattern, module, self.r)


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that covers the whole module name, or all of it after a dot."""
    for pattern, value in patterns.items():
        try:
            found = re.fullmatch(rf"(.*\.)?({pattern})" if not pattern.startswith("^") else pattern, module)
        except re.error as error:
            raise CheckpointError(f"adapter header: pattern {pattern!r}: {error}") from error
        if found:
            return value
    return default


def _refuse_foreign(file: SafetensorsFile) -> None:
    for name in file.tensors:
        if kind := foreign_kind(name):
            raise CheckpointError(f"{file.path}: {kind} is not supported, found {name}")
    if not is_lora(file.tensors):
        example = next(iter(file.tensors), "none")
        raise CheckpointError(f"{file.path} is not a LoRA adapter: no lora_A/lora_B pair, first tensor {example}")
    if plain := [name for name in file.tensors if parse_key(name) is None and name.endswith((".weight", ".bias"))]:
        raise CheckpointError(f"{file.path}: {plain[0]} is a whole tensor beside an adapter, which is not supported")


def _peft_config(file: SafetensorsFile) -> _PeftConfig | None:
    """The training tool's settings: from the header, else from ``adapter_config.json`` in the file's folder."""
    text = file.metadata.get("lora_adapter_metadata")
    where = f"{file.path}: lora_adapter_metadata"
    if text is None:
        beside = file.path.parent / "adapter_config.json"
        if not beside.is_file():
            return None
        where, text = str(beside), read_text(beside)
    fields = parse_object(text, where)
    try:
        config = _PeftConfig.model_validate({key.removeprefix("transformer."): value for key, value in fields.items()})
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for name in ("layer_replication", "fan_in_fan_out", "use_qalora"):
        if getattr(config, name):
            raise CheckpointError(f"{where}: {name} is set, which is not supported")
    return config


@dataclass(frozen=True)
class _LayerReader:
    """One module's tensors on their way to a `LoraLayer`."""

    file: SafetensorsFile
    module: str  # as the file writes it
    names: Mapping[str, str]  # part -> tensor
    config: _PeftConfig | None
    dora_norm: Literal["merged", "base"] | None

    def read(self) -> LoraLayer | None:
        """The layer; None when nothing of it is complete."""
        found = {part: self.file.read(name) for part, name in self.names.items()}
        alpha = self._alpha(found.pop("alpha", None))
        fields: dict[str, Any] = {part: found[part] for part in ("diff", "diff_b") if part in found}
        if "a" in found and "b" in found:
            a, b = self._matrix(found["a"]), self._matrix(found["b"])
            if a.shape[0] != b.shape[1]:
                raise self._error(f" has A {tuple(a.shape)} and B {tuple(b.shape)}, ranks must agree")
            fields |= {"a": a, "b": b, "scale": self._scale(alpha, a.shape[0])}
            if "bias" in found:
                fields["bias"] = found["bias"]
        elif any(part.startswith("lokr") for part in found):
            fields |= self._lokr(found, alpha)
        elif any(part.startswith("hada") for part in found):
            fields |= self._loha(found, alpha)
        if not fields:
            return None
        return LoraLayer(**fields, **self._dora(found))

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: {self.module}{text}")

    def _matrix(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 2:
            return tensor
        if tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1):
            return tensor.flatten(1)
        raise self._error(f" has a factor {list(tensor.shape)}, expected a matrix")

    def _alpha(self, tensor: Tensor | None) -> float | None:
        if tensor is None:
            return None
        if tensor.numel() != 1:
            raise self._error(f".alpha has shape {tuple(tensor.shape)}, expected a scalar")
        return tensor.float().item()

    def _scale(self, alpha: float | None, rank: int) -> float:
        if alpha is None:
            return 1.0 if self.config is None else self.config.scale(bare_name(self.module), rank)
        if not math.isfinite(alpha):
            raise self._error(f".alpha is {alpha}, expected a finite number")
        return alpha / rank

    def _factor(self, found: Mapping[str, Tensor], name: str) -> Pair | Tensor:
        """A factor of LoKr: whole, or a product of two."""
        return found[name] if name in found else self._pair(found, name)

    def _pair(self, found: Mapping[str, Tensor], name: str) -> Pair:
        missing = [part for part in (f"{name}_a", f"{name}_b") if part not in found]
        if missing:
            raise self._error(f".{missing[0]} is missing")
        first, second = found[f"{name}_a"], found[f"{name}_b"]
        if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[0]:
            sizes = f"{list(first.shape)} and {list(second.shape)}"
            raise self._error(f".{name} is a product of {sizes}, ranks must agree")
        return first, second

    def _lokr(self, found: Mapping[str, Tensor], alpha: float | None) -> dict[str, Any]:
        factors = self._factor(found, "lokr_w1"), self._factor(found, "lokr_w2")
        ranks = {factor[1].shape[0] for factor in factors if isinstance(factor, tuple)}
        if len(ranks) > 1:
            raise self._error(f" has LoKr factors of ranks {sorted(ranks)}")
        if ranks:
            return {"kron": factors, "scale": self._scale(alpha, ranks.pop())}
        rank = self.config.rank_of(bare_name(self.module)) if self.config and self.config.peft_type == "LOKR" else None
        scale = self.config.scale(bare_name(self.module), rank) if self.config and rank else 1.0
        return {"kron": factors, "scale": scale}  # both whole: a stored alpha means nothing and may be infinite

    def _loha(self, found: Mapping[str, Tensor], alpha: float | None) -> dict[str, Any]:
        first, second = self._pair(found, "hada_w1"), self._pair(found, "hada_w2")
        return {"hadamard": (first, second), "scale": self._scale(alpha, first[1].shape[0])}

    def _dora(self, found: Mapping[str, Tensor]) -> dict[str, Any]:
        if (magnitude := found.get("magnitude")) is not None:
            return {"magnitude": magnitude, "dora": "inside"}
        if (scale := found.get("dora_scale")) is None:
            return {}
        exported = scale.ndim == 2 and scale.shape[1] == 1 and not is_flat(self.module)
        return {"magnitude": scale, "dora": self.dora_norm or ("base" if exported else "merged")}


def weight_delta(
    loras: Iterable[Lora],
    path: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    base: Callable[[], Tensor] | None = None,
) -> Tensor | None:
    """The sum that all adapters add, in list order, to a module's weight ``(out, in)``; None for nothing.

    Linear ones add up in ``dtype`` (float32). ``base`` gives the weight itself in float32; it is called for a DoRA,
    which changes what the adapters before it have left.
    """
    import torch

    total: Tensor | None = None
    weight: Tensor | None = None
    for lora in loras:
        layer = lora.layers.get(path)
        if layer is None or lora.strength == 0 or layer.weight_shape is None:
            continue
        if layer.magnitude is None:
            total = layer.add_to(total, lora.strength, device, dtype or torch.float32)
            continue
        assert base is not None, "DoRA needs the weight itself"
        weight = base() if weight is None else weight
        total = layer.normalise(weight if total is None else weight + total.float(), lora.strength) - weight
    return total


def bias_delta(loras: Iterable[Lora], path: str, device: torch.device | str = "cpu") -> Tensor | None:
    """The sum that all adapters add to a module's bias, float32 ``(out,)``; None for nothing."""
    changing = [lora for lora in loras if path in lora.layers and lora.strength != 0]
    changes = [lora.layers[path].bias_change(lora.strength, device) for lora in changing]
    found = [change for change in changes if change is not None]
    return sum(found[1:], start=found[0]) if found else None
