"""The tensors of one component: where they lie in the files, how they become a module's state, the module they fill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError, as_checkpoint_error
from ltx_core.loader.lora import Lora, bias_delta, fit_loras, weight_delta
from ltx_core.loader.quantization import (
    COMPANIONS,
    LayerLoad,
    QuantizationPolicy,
    check_scales,
    load_plain,
    widen_plain,
)
from ltx_core.loader.safetensors_file import TensorInfo
from ltx_core.loader.sources import Source
from ltx_core.model.common.meter import without_data
from ltx_core.precision import Precision, computed_and_stored
from ltx_core.textfiles import parse_json

PACKING = frozenset({"scales", "biases"})  # beside a weight that is packed for MLX
READERS = 4  # threads that read layers
REPORTED = 10  # names listed per kind of misfit


class Kind(NamedTuple):
    """The properties in which a file and a network must agree."""

    shape: tuple[int, ...]
    is_float: bool

    def __str__(self) -> str:
        return f"{list(self.shape)}{'' if self.is_float else ' of integers'}"


@dataclass(frozen=True)
class ComponentWeights:
    """A component to read: its tensors by module name, their dtype and device, the policy for its linears."""

    name: str
    sources: Mapping[str, Source]
    precision: torch.dtype | Precision | None = None  # None keeps the file's dtypes
    device: torch.device | str = "cpu"
    policy: QuantizationPolicy | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that the network computes in."""
        return computed_and_stored(self.precision)[0]

    @property
    def stored(self) -> torch.dtype | None:
        """Of matrices that are widened to ``dtype`` when they are read; None where none are."""
        return computed_and_stored(self.precision)[1]

    @cached_property
    def layers(self) -> dict[str, dict[str, Source]]:
        """Tensors by owning module path, then by the last part of their names, in file order."""
        layers: dict[str, dict[str, Source]] = {}
        for key, source in self.sources.items():
            path, _, leaf = key.rpartition(".")
            layers.setdefault(path, {})[leaf] = source
        return layers

    @cached_property
    def quantized(self) -> frozenset[str]:
        """Paths of the layers the policy covers."""
        if self.policy is None:
            return frozenset()
        infos = {path: self.infos(path) for path, layer in self.layers.items() if "weight" in layer}
        covered = frozenset(path for path, layer in infos.items() if self.policy.covers(path, layer))
        if self.policy.spares_ends:
            covered = _without_ends(covered)
        if self.policy.prequantized and not covered:
            raise CheckpointError(f"{self.where}: no layer is stored as {self.policy.name} needs it")
        check_scales(self.where, infos, self.policy)
        return covered

    @cached_property
    def widened(self) -> frozenset[str]:
        """Paths of the layers whose weight is kept narrow and widened when it is read."""
        if self.stored is None:
            return frozenset()
        matrices = (path for path, layer in self.layers.items() if "weight" in layer)
        return frozenset(path for path in matrices if len(self.layers[path]["weight"].info.shape) > 1) - self.quantized

    @property
    def where(self) -> str:
        """The files, for messages."""
        return ", ".join(sorted({str(source.file.path) for source in self.sources.values()}))

    def infos(self, path: str) -> dict[str, TensorInfo]:
        """Header entries that the files store for one module."""
        return {leaf: source.info for leaf, source in self.layers[path].items()}

    def fit_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """Adapters fitted to this component; ``CheckpointError`` for one that does not belong to it."""
        return fit_loras(loras, {name: kind.shape for name, kind in self.kinds().items()}) if loras else ()

    def kinds(self) -> dict[str, Kind]:
        """Contents required of a plain network: logical shapes by module name, without scales."""
        return {_join(path, leaf): kind for path in self.layers for leaf, kind in self._layer_kinds(path).items()}

    def _layer_kinds(self, path: str) -> dict[str, Kind]:
        infos = self.infos(path)
        scales = COMPANIONS if "weight" in infos else frozenset()
        kinds = {leaf: Kind(i.shape, i.dtype.is_floating_point) for leaf, i in infos.items() if leaf not in scales}
        if self.policy is not None and path in self.quantized:
            kinds["weight"] = Kind(self.policy.file_shape(kinds["weight"].shape), True)
        if "scales" in infos and (bits := packed_bits(self.layers[path]["weight"])):
            rows, words = infos["weight"].shape
            plain = {leaf: kind for leaf, kind in kinds.items() if leaf not in PACKING}
            return plain | {"weight": Kind((rows, words * 32 // bits), True)}
        return kinds

    def load_layer(self, path: str, loras: Sequence[Lora] = ()) -> dict[str, Tensor]:
        """The tensors of one module by their last name part, on the device, adapters fused in.

        Raises ``CheckpointError`` for weights that are packed for MLX.
        """
        if "scales" in self.layers[path] and packed_bits(self.layers[path]["weight"]):
            expected = "expected plain weights; compute with backend mlx"
            raise CheckpointError(f"{self.where} is quantised for MLX, {expected}")
        policy = self.policy if path in self.quantized else None
        raw = {leaf: source.read().to(self.device) for leaf, source in self.layers[path].items()}

        widen = policy.widen if policy else widen_plain
        plain = torch.bfloat16 if any(lora.in_bfloat16 for lora in loras) else torch.float32
        dtype = policy.delta_dtype if policy else plain
        delta = weight_delta(loras, path, self.device, dtype, lambda: widen(raw))
        if policy and delta is not None:
            delta = delta.float()  # rounded once, and added without another rounding
        kept = self.stored if path in self.widened else None
        load = LayerLoad(self.dtype, delta, bias_delta(loras, path, self.device), kept)
        return policy.load(raw, load) if policy else load_plain(raw, load)

    def state_dict(self, loras: Sequence[Lora] = ()) -> dict[str, Tensor]:
        """Every tensor by module name, adapters fused in; several layers are read and converted at once."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as readers:
            layers = readers.map(lambda path: list(self.module_tensors(path, loras)), self.layers)
            return {name: tensor for layer in layers for name, tensor in layer}

    def layers_changed_by(self, loras: Iterable[Lora]) -> set[str]:
        """Paths of the layers these adapters change."""
        return {path for lora in loras if lora.strength != 0 for path in lora.layers if path in self.layers}

    def swap_loras(self, network: nn.Module, old: Sequence[Lora], new: Sequence[Lora]) -> None:
        """Make a live network that holds ``old`` hold ``new`` instead.

        Every layer either set touches is read again from its file, so removing adapters gives back the base bit for
        bit.
        """
        state = network.state_dict()
        with torch.no_grad():
            for path in sorted(self.layers_changed_by(old) | self.layers_changed_by(new)):
                for name, tensor in self.module_tensors(path, new):
                    state[name].copy_(tensor)

    def module_tensors(self, path: str, loras: Sequence[Lora] = ()) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one module by their full names."""
        for leaf, tensor in self.load_layer(path, loras).items():
            yield _join(path, leaf), tensor


def packed_bits(weight: Source) -> int | None:
    """Bits of a value in a file that ``ltx convert`` wrote for MLX; None for any other file."""
    text = getattr(weight.file, "metadata", {}).get("quantization")
    if text is None:
        return None
    with as_checkpoint_error(f"{weight.file.path}: quantization"):
        given = parse_json(text, "metadata")
        return int(given["bits"]) if given.get("format") == "mlx" else None


def _without_ends(paths: frozenset[str]) -> frozenset[str]:
    """The layers of blocks other than the first and the last."""
    blocks = {path: int(path.split(".")[1]) for path in paths}
    ends = {min(blocks.values(), default=0), max(blocks.values(), default=0)}
    return frozenset(path for path, block in blocks.items() if block not in ends)


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def check_fit(where: str, name: str, expected: Mapping[str, Kind], given: Mapping[str, Kind]) -> None:
    """Refuse a file that does not fill a network exactly, with the first ten of each kind of misfit in one line."""
    shared = expected.keys() & given.keys()
    wrong = sorted(key for key in shared if expected[key] != given[key])
    lists = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "misshapen": [f"{key} {given[key]} instead of {expected[key]}" for key in wrong],
    }
    parts = [f"{len(items)} {kind}: {_first(items)}" for kind, items in lists.items() if items]
    if parts:
        raise CheckpointError(f"{where} does not fit {name}: {'; '.join(parts)}")


def _first(items: Sequence[str]) -> str:
    rest = f", and {len(items) - REPORTED} more" if len(items) > REPORTED else ""
    return ", ".join(items[:REPORTED]) + rest


# From tensors in files to a network: built without data, checked by names and shapes, filled -----------------------


def build(
    construct: Callable[[], nn.Module], weights: ComponentWeights, loras: Sequence[Lora] = (), spare: Sequence[str] = ()
) -> nn.Module:
    """The network that ``construct`` makes, with its weights, in evaluation mode and without gradients.

    ``spare`` are tensors that nothing computes with: the files, the network or both may lack them. Raises
    ``CheckpointError`` that lists missing, unexpected and misshapen tensors, and for adapters that do not fit.
    """
    return fill(empty(construct, weights, spare), weights.state_dict(weights.fit_loras(loras)), spare)


def empty(construct: Callable[[], nn.Module], weights: ComponentWeights, spare: Sequence[str] = ()) -> nn.Module:
    """The network without data, checked against the files, with the layers of the weights' format in place."""
    with without_data():
        with as_checkpoint_error(f"{weights.where}: no {weights.name} can be made of its config"):
            network = construct()
        expected = {
            name: Kind(tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in network.state_dict().items()
        }
        given = weights.kinds()
        for name in spare:
            if (name in expected) != (name in given):
                expected.pop(name, None), given.pop(name, None)
        check_fit(weights.where, weights.name, expected, given)
        _replace_linears(network, weights)
    for path in weights.widened:
        _widen(network.get_submodule(path), weights.dtype)
    return network


def fill(network: nn.Module, state: Mapping[str, Tensor], spare: Sequence[str] = ()) -> nn.Module:
    """Give a network without data its tensors, without copying them; absent ``spare`` ones are zero."""
    own = network.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if name in own or name not in spare}
    absent = [name for name in spare if name in own and name not in state]
    device = next(iter(state.values())).device if state else "cpu"
    zeros = {name: torch.zeros_like(own[name], device=device) for name in absent}
    network.load_state_dict(tensors | zeros, strict=True, assign=True)
    left = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    if left:
        raise CheckpointError(f"{type(network).__name__}: no data for {', '.join(left[:10])}")
    return network.eval().requires_grad_(False)


def _replace_linears(network: nn.Module, weights: ComponentWeights) -> None:
    """Put the policy's module in the place of every linear it covers."""
    if weights.policy is None:
        return
    for path in weights.quantized:
        parent_path, _, leaf = path.rpartition(".")
        linear = network.get_submodule(path)
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(f"{path} is {type(linear).__name__}, {weights.policy.name} covers linears only")
        setattr(network.get_submodule(parent_path), leaf, weights.policy.module(linear, weights.infos(path)))


def widen_loaded(network: nn.Module, dtype: torch.dtype | None) -> None:
    """Let a network that is loaded compute in ``dtype``: matrices are widened when they are read, the rest now."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and parameter.ndim > 1:
                _widen(module, dtype)
            else:
                parameter.data = parameter.to(dtype)


def _widen(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Make a module's weight, kept narrow, appear in ``dtype`` wherever it is read."""
    kind: Any = type(module)
    module.__class__ = _widening(kind, dtype)


@cache
def _widening(kind: type[nn.Module], dtype: torch.dtype | None) -> Any:
    """The class whose ``weight`` is its parameter of that name in ``dtype``."""
    return type(kind.__name__, (kind,), {"weight": property(lambda module: module._parameters["weight"].to(dtype))})
