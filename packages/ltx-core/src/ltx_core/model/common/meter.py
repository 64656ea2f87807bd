"""Operations and live bytes of a network, counted on the meta device, where tensors have shapes but no values.

Operations are counted exactly; the bytes alive at once are what a real run allocates, up to workspaces of kernels and
rounding by the allocator. torch's own rules for shapes on that device import its compiler, which takes a second; those
at the end are of what networks call most, and whatever they lack is left to torch.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


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


# Shapes, strides and types on the meta device -------------------------------------------------------------------------


aten = torch.ops.aten


class ShapesOnly(TorchDispatchMode):
    """Inside, operations on meta tensors go by the rules below."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = RULES.get(function.overloadpacket, function)
        return rule(*args, **(kwargs or {}))


def like(x: Tensor, dtype: torch.dtype | None = None, **ignored: Any) -> Tensor:
    """A dense tensor with the shape of another, its dimensions in the same order in memory."""
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    made = x.new_empty([x.shape[axis] for axis in order], dtype=dtype)
    return made.permute([order.index(axis) for axis in range(x.ndim)])


def elementwise(*operands: Any, **ignored: Any) -> Tensor:
    """Of tensors and numbers that broadcast."""
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    ndim = max(tensor.ndim for tensor in tensors)
    padded = [(1,) * (ndim - tensor.ndim) + tensor.shape for tensor in tensors]
    shape = tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))
    dtype = reduce(torch.promote_types, (torch.result_type(operands[0], other) for other in operands))
    whole = next((tensor for tensor in tensors if tensor.shape == shape), None)
    return tensors[0].new_empty(shape, dtype=dtype) if whole is None else like(whole, dtype)


def quotient(*operands: Any, **ignored: Any) -> Tensor:
    return function_of(elementwise(*operands))


def function_of(x: Tensor, *ignored: Any, **also: Any) -> Tensor:
    """A function of each element, of floating point."""
    return like(x, x.dtype if x.is_floating_point() else torch.get_default_dtype())


def in_place(x: Tensor, *ignored: Any, **also: Any) -> Tensor:
    return x


def mean(x: Tensor, axes: Sequence[int], keepdim: bool = False, **ignored: Any) -> Tensor:
    gone = {axis % x.ndim for axis in axes}
    return x.new_empty([1 if axis in gone else n for axis, n in enumerate(x.shape) if keepdim or axis not in gone])


def cat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    first = tensors[0]
    shape = list(first.shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return first.new_empty(shape, dtype=reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape.insert(axis % (len(shape) + 1), len(tensors))
    return tensors[0].new_empty(shape)


def repeat(x: Tensor, times: Sequence[int]) -> Tensor:
    sides = [1] * (len(times) - x.ndim) + list(x.shape)
    return x.new_empty([n * count for n, count in zip(sides, times, strict=True)])


def product(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-1]))


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], *more: Any
) -> Tensor:
    dilation, transposed, *_ = more
    if transposed:
        return aten.convolution(x, weight, bias, stride, padding, *more)
    reach = [d * (n - 1) for d, n in zip(dilation, weight.shape[2:], strict=True)]
    sides = [(n + 2 * p - r - 1) // s + 1 for n, p, r, s in zip(x.shape[2:], padding, reach, stride, strict=True)]
    return x.new_empty((x.shape[0], weight.shape[0], *sides))


def pad(x: Tensor, sides: Sequence[int], *ignored: Any) -> Tensor:
    """With cells before and after the last dimensions, the last one first."""
    shape = list(x.shape)
    for axis, (before, after) in enumerate(zip(sides[::2], sides[1::2], strict=True), 1):
        shape[-axis] += before + after
    return x.new_empty(shape)


def layer_norm(x: Tensor, shape: Sequence[int], *ignored: Any) -> tuple[Tensor, ...]:
    statistics = [*x.shape[: x.ndim - len(shape)], *(1 for _ in shape)]
    return x.new_empty(x.shape), *(x.new_empty(statistics, dtype=torch.float32) for _ in range(2))


def group_norm(x: Tensor, *also: Any) -> tuple[Tensor, ...]:
    count, groups = x.shape[0], also[-2]
    return x.new_empty(x.shape), *(x.new_empty((count, groups)) for _ in range(2))


def arange(*bounds: float, dtype: torch.dtype | None = None, device: Any = None, **ignored: Any) -> Tensor:
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    exact = torch.int64 if all(isinstance(bound, int) for bound in bounds) else torch.get_default_dtype()
    return torch.empty(math.ceil((end - start) / step), dtype=dtype or exact, device=device)


def linspace(start: float, end: float, steps: int, dtype: torch.dtype | None = None, **also: Any) -> Tensor:
    return torch.empty(steps, dtype=dtype, device=also.get("device"))


RULES: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((aten.add, aten.sub, aten.mul, aten.addcmul, aten.pow), elementwise),
    **dict.fromkeys((aten.cos, aten.sin, aten.exp, aten.sqrt, aten.rsqrt), function_of),
    **dict.fromkeys((aten.sigmoid, aten.silu, aten.gelu), function_of),
    **dict.fromkeys((aten.add_, aten.mul_, aten.div_, aten.clamp_, aten.addcmul_, aten.silu_, aten.copy_), in_place),
    aten.div: quotient,
    aten.empty_like: like,
    aten.mean: mean,
    aten.cat: cat,
    aten.stack: stack,
    aten.repeat: repeat,
    aten.mm: product,
    aten.bmm: product,
    aten.addmm: lambda bias, a, b, **ignored: product(a, b),
    aten.convolution: convolution,
    aten.constant_pad_nd: pad,
    aten.upsample_nearest2d: lambda x, sides, *ignored: x.new_empty((*x.shape[:2], *sides)),
    aten.native_layer_norm: layer_norm,
    aten.native_group_norm: group_norm,
    aten.arange: arange,
    aten.linspace: linspace,
}
