"""Operations and live bytes of a network, counted on the meta device, where tensors have shapes but no values.

Operations are counted exactly; the bytes alive at once are what a real run allocates, up to workspaces of kernels and
rounding by the allocator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ltx_core.model.common.shapes import ShapesOnly


@dataclass(frozen=True)
class Work:
    """Operations and the bytes of tensors alive at once, weights not counted; of several devices, those of one."""

    flops: float = 0.0
    activations: int = 0
    sent: int = 0  # bytes, to the others


def measure(network: torch.nn.Module, call: Callable[[], Any], copies: bool = False) -> Work:
    """Operations and live bytes of ``call()``, which runs ``network`` on the meta device.

    ``copies`` counts what a convolution holds on a CPU besides: what it reads, then what it writes, laid out in blocks.
    """
    held = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    meter, attention = Meter(held, copies), CountedAttention()
    with torch.no_grad(), torch.device("meta"), attention, ShapesOnly(), meter:
        call()
    return Work(meter.flops + attention.flops, meter.peak)


@contextmanager
def without_data() -> Iterator[None]:
    """Inside, networks are made on the meta device, their parameters unset: to compute them imports the compiler."""
    with torch.device("meta"), _Unset():
        yield


class _Unset(TorchFunctionMode):
    """Leaves out what `torch.nn.init` does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class Meter(TorchDispatchMode):
    """Counts ``flops``, and follows storages until they are freed: ``peak`` is the most bytes at once."""

    def __init__(self, held: set[int], copies: bool = False) -> None:
        super().__init__()
        self.copies = copies
        self.held = set(held)  # storages that were there before, and those alive now
        self.now = self.peak = 0
        self.flops = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if (formula := flop_registry.get(function.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.held:
                self._follow(tensor.untyped_storage())
        if self.copies and function.overloadpacket is torch.ops.aten.convolution:
            self.peak = max(self.peak, self.now + max(args[0].nbytes, result.nbytes))
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.held.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.held.discard(key)
        self.now -= size


class CountedAttention(TorchFunctionMode):
    """Attention that is counted but holds no matrix of scores, as its fused kernels do not."""

    flops = 0.0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            query, key = args[0], args[1]
            self.flops += 4.0 * query.numel() * key.shape[-2]
            return torch.empty_like(query)
        return function(*args, **(kwargs or {}))
