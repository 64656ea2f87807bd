"""Published tensors into MLX networks: laid out anew while they are read, checked both ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
from torch import Tensor

from ltx_core.loader.lora import Lora
from ltx_core.loader.weights import ComponentWeights, Kind, check_fit
from ltx_mlx.arrays import flat_parameters, to_mlx

Network = TypeVar("Network", bound=nn.Module)


def channels_last_names(network: nn.Module) -> frozenset[str]:
    """Parameters whose second axis a published file stores where they have their last."""
    return frozenset(
        f"{path}.{leaf}".removeprefix(".")
        for path, module in network.named_modules()
        for leaf in getattr(type(module), "CHANNELS_LAST", ())
    )


def published_kinds(network: nn.Module) -> dict[str, Kind]:
    """What a file must hold for this network: shapes by name, as published."""
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
    """Give a network its tensors, one by one, laid out as it computes; of ``spare`` ones both sides may lack any.

    Raises ``CheckpointError`` for missing, unexpected and misshapen tensors.
    """
    expected, turned = published_kinds(network), channels_last_names(network)
    arrays, given = [], {}
    for name, tensor in tensors:
        if name in expected or name not in spare:
            given[name] = Kind(tuple(tensor.shape), tensor.is_floating_point())
            array = to_mlx(tensor)
            arrays.append((name, mx.moveaxis(array, 1, -1) if name in turned and array.ndim > 1 else array))
            mx.eval(arrays[-1][1])
    kinds = {name: kind for name, kind in expected.items() if name in given or name not in spare}
    check_fit(where, type(network).__name__, kinds, given)
    network.load_weights(arrays, strict=False)
    network.eval()
    return network


def read(weights: ComponentWeights, loras: Sequence[Lora] = ()) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a component by name, adapters fused in, one layer after another."""
    for path in weights.layers:
        yield from weights.named(path, loras)
