"""From tensors in files to a network: built without data, checked by names and shapes, filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError, as_checkpoint_error
from ltx_core.loader.lora import Lora
from ltx_core.loader.weights import ComponentWeights, Kind, check_fit
from ltx_core.model.common.meter import without_data


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
