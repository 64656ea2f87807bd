"""Published tensors into MLX networks: read from mapped files, laid out as MLX computes, checked both ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
from torch import Tensor

from ltx_core.loader.lora import Lora, bias_delta, fit_loras, weight_delta
from ltx_core.loader.weights import ComponentWeights, Kind, check_fit
from ltx_mlx.arrays import DTYPES, flat_parameters, to_mlx, to_torch
from ltx_mlx.quantization import Quantization, replace_layer

Network = TypeVar("Network", bound=nn.Module)


def channels_last_names(network: nn.Module) -> frozenset[str]:
    """Parameters whose second axis a published file stores where they have their last."""
    return frozenset(
        f"{path}.{leaf}".removeprefix(".")
        for path, module in network.named_modules()
        for leaf in getattr(type(module), "CHANNELS_LAST", ())
    )


def published_kinds(network: nn.Module) -> dict[str, Kind]:
    """Contents required of a file for this network: shapes by name, as published."""
    turned = channels_last_names(network)

    def shape(name: str, array: mx.array) -> tuple[int, ...]:
        return (array.shape[0], array.shape[-1], *array.shape[1:-1]) if name in turned else tuple(array.shape)

    return {
        name: Kind(shape(name, array), mx.issubdtype(array.dtype, mx.floating))
        for name, array in flat_parameters(network).items()
    }


def fill(
    network: Network, tensors: Iterable[tuple[str, Tensor]], spare: Sequence[str] = (), where: str = "the file"
) -> Network:
    """Give a network its tensors, one by one; of ``spare`` ones both sides may lack any.

    Raises ``CheckpointError`` for missing, unexpected and misshapen tensors.
    """
    expected, turned = published_kinds(network), channels_last_names(network)
    arrays, given = [], {}
    for name, tensor in tensors:
        if name in expected or name not in spare:
            given[name] = Kind(tuple(tensor.shape), tensor.is_floating_point())
            arrays.append((name, lay_out(tensor, name in turned)))
            mx.eval(arrays[-1][1])
    kinds = {name: kind for name, kind in expected.items() if name in given or name not in spare}
    check_fit(where, type(network).__name__, kinds, given)
    network.load_weights(arrays, strict=False)
    network.eval()
    return network


def lay_out(tensor: Tensor, turned: bool) -> mx.array:
    """A published tensor as a parameter."""
    array = to_mlx(tensor)
    return mx.moveaxis(array, 1, -1) if turned and array.ndim > 1 else array


@dataclass(frozen=True)
class Loader:
    """Maker of parameters from the layers of one component, with adapters fused in and linears quantised."""

    weights: ComponentWeights
    turned: frozenset[str]  # parameters laid out anew
    formats: Mapping[str, Quantization]  # of quantised linears, by path
    stored: frozenset[str]  # those that the file holds quantised
    shapes: Mapping[str, tuple[int, ...]]  # of all parameters, as published and not quantised

    @classmethod
    def of(
        cls,
        network: nn.Module,
        weights: ComponentWeights,
        quantization: Quantization | None = None,
        spare: Sequence[str] = (),
    ) -> Loader:
        """Check a file's headers against an empty network, and put quantised linears into it.

        Raises ``CheckpointError`` for missing, unexpected and misshapen tensors.
        """
        modules = dict(network.named_modules())
        expected = published_kinds(network)
        stored = {
            path: shapes for path, shapes in _stored_shapes(weights).items() if isinstance(modules.get(path), nn.Linear)
        }
        formats = {
            path: Quantization.detect(path, shapes, expected[f"{path}.weight"].shape[1])
            for path, shapes in stored.items()
        }
        given = weights.kinds()
        for path in stored:
            given = {name: kind for name, kind in given.items() if name not in (f"{path}.scales", f"{path}.biases")}
            given[f"{path}.weight"] = expected[f"{path}.weight"]  # its size was derived from this
        for name in spare:
            if (name in expected) != (name in given):
                expected.pop(name, None), given.pop(name, None)
        check_fit(weights.where, weights.name, expected, given)
        if quantization is not None:
            formats = {**dict.fromkeys(quantization.covers(modules), quantization), **formats}
        for path, own in formats.items():
            replace_layer(network, path, own.linear(modules[path]))
        shapes = {name: kind.shape for name, kind in expected.items()}
        return cls(weights, channels_last_names(network), formats, frozenset(stored), shapes)

    def fill(self, network: Network, loras: Sequence[Lora] = (), paths: Iterable[str] | None = None) -> Network:
        """Read layers into a network, one after another: all, or those named."""
        own = flat_parameters(network)
        for path in self.weights.layers if paths is None else paths:
            arrays = [(name, array) for name, array in self.layer(path, loras) if name in own]
            mx.eval([array for _, array in arrays])
            network.load_weights(arrays, strict=False)
        network.eval()
        return network

    def part(self, module: Network, prefix: str, loras: Sequence[Lora] = ()) -> Network:
        """Read the layers under ``prefix`` into an empty module that stands for them."""
        layers = dict(module.named_modules())
        for path in (path for path in self.formats if path.startswith(prefix)):
            replace_layer(
                module, path.removeprefix(prefix), self.formats[path].linear(layers[path.removeprefix(prefix)])
            )
        arrays = [
            (name.removeprefix(prefix), array)
            for path in self.weights.layers
            if f"{path}.".startswith(prefix)
            for name, array in self.layer(path, loras)
        ]
        mx.eval([array for _, array in arrays])
        module.load_weights(arrays, strict=False)
        module.eval()
        return module

    def fit_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """The adapters that change anything; ``CheckpointError`` for one of which nothing fits."""
        return fit_loras([lora for lora in loras if lora.strength != 0], self.shapes)

    def changed_layers(self, old: Sequence[Lora], new: Sequence[Lora]) -> list[str]:
        """Paths of the layers that either set changes."""
        return sorted(self.weights.layers_changed_by(old) | self.weights.layers_changed_by(new))

    def layer(self, path: str, loras: Sequence[Lora] = ()) -> Iterator[tuple[str, mx.array]]:
        """The parameters of one module by their full names."""
        if path in self.stored:
            parts = self._stored_layer(path, loras)
        else:
            tensors = self.weights.load_layer(path, loras)
            parts = {leaf: lay_out(tensor, _join(path, leaf) in self.turned) for leaf, tensor in tensors.items()}
            if path in self.formats:
                parts |= self.formats[path].quantize(parts["weight"])
        for leaf, array in parts.items():
            yield _join(path, leaf), array

    def _stored_layer(self, path: str, loras: Sequence[Lora]) -> dict[str, mx.array]:
        """A layer as the file holds it; with adapters widened, changed and quantised again."""
        form = self.formats[path]
        parts = {leaf: to_mlx(source.read()) for leaf, source in self.weights.layers[path].items()}
        if self.weights.dtype is not None:
            dtype = DTYPES[self.weights.dtype]
            floats = {leaf for leaf, array in parts.items() if mx.issubdtype(array.dtype, mx.floating)}
            parts |= {leaf: parts[leaf].astype(dtype) for leaf in floats}
        if (delta := weight_delta(loras, path, base=lambda: to_torch(form.dequantize(parts)))) is not None:
            wide = form.dequantize(parts) + to_mlx(delta.float())
            parts |= form.quantize(wide.astype(parts["scales"].dtype if form.mode == "affine" else mx.float32))
        if (change := bias_delta(loras, path)) is not None and "bias" in parts:
            parts["bias"] = (parts["bias"].astype(mx.float32) + to_mlx(change.float())).astype(parts["bias"].dtype)
        return parts


def _stored_shapes(weights: ComponentWeights) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the tensors of every layer that a file holds quantised as MLX does."""
    return {
        path: {leaf: source.info.shape for leaf, source in layer.items()}
        for path, layer in weights.layers.items()
        if {"weight", "scales"} <= layer.keys()
    }


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf
