"""Making a large frozen transformer fit: 8-bit weights, blocks that wait on the CPU, and what a run will need.

A frozen weight is needed twice, in the forward and in the backward pass, but its gradient never. So it is stored in 8
bits with one scale per output row and widened where it is used, and a block may leave the device between the passes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.errors import ConfigError

#: Storage formats of `acceleration.quantization`.
FORMATS: dict[str, torch.dtype] = {
    "int8-quanto": torch.int8,
    "fp8-quanto": torch.float8_e4m3fn,
    "fp8uz-quanto": torch.float8_e4m3fnuz,
}
LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}


def storage_format(name: str) -> torch.dtype:
    """The dtype a quantisation is stored in. Raises `ConfigError` for those under 8 bits."""
    if name not in FORMATS:
        raise ConfigError(f"quantization is {name!r}, which is not built; nearest: 'int8-quanto'")
    return FORMATS[name]


def quantize_rows(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``(quantized [out, in], scale [out, 1] float32)`` with ``weight ~ quantized * scale``."""
    weight, limit = weight.float(), LIMITS[dtype]
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / limit
    scaled = (weight / scale).clamp(-limit, limit)
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), scale


class _FrozenProduct(torch.autograd.Function):
    """``x W^T`` with W kept in 8 bits: the widened weight lives for one product, in either pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, widen(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return gradients[0] @ widen(weight, scale, gradients[0].dtype), None, None


def widen(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * scale.to(dtype)


class QuantizedLinear(nn.Module):
    """A frozen linear stored in 8 bits: ``weight`` [out, in], ``weight_scale`` [out, 1] float32, ``bias`` as it was."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight.detach(), dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = _FrozenProduct.apply(x, self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantize_frozen(network: nn.Module, name: str, device: torch.device | str | None = None) -> int:
    """Store the linears inside the blocks in 8 bits, except those the network calls sensitive; returns their number.

    With ``device`` every linear is quantised there and comes back. Raises `ConfigError` for unknown formats.
    """
    dtype, sensitive = storage_format(name), getattr(network, "SENSITIVE", ())
    blocks = network.get_submodule(getattr(network, "BLOCK_LIST", ""))
    chosen = [path for path, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    chosen = [path for path in chosen if not any(part in path for part in sensitive)]
    for path in chosen:
        parent, _, leaf = path.rpartition(".")
        linear = blocks.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        home = linear.weight.device
        quantized = QuantizedLinear(linear if device is None else linear.to(device), dtype).to(home)
        setattr(blocks.get_submodule(parent), leaf, quantized)
    return len(chosen)


class BlockSwap:
    """Keeps the frozen weights of the last ``count`` blocks in host memory and on the device only while they compute.

    It relies on recomputation: without it the backward pass would hold every block's weights. Trained tensors stay.
    """

    def __init__(self, network: nn.Module, count: int, device: torch.device) -> None:
        blocks = list(network.get_submodule(getattr(network, "BLOCK_LIST", "")).children())
        if not 0 < count <= len(blocks):
            raise ConfigError(f"blocks_to_swap is {count}, the transformer has {len(blocks)} blocks")
        self.device = device
        self.swapped = blocks[len(blocks) - count :]
        network.to("cpu")
        for block in self.swapped:
            for owner, leaf, parameter in _frozen_parameters(block):
                owner._parameters[leaf] = _host(parameter, device)
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave, always_call=True)
        self._waiting: dict[int, list[tuple[nn.Module, str, nn.Parameter]]] = {}

    def place(self, network: nn.Module) -> None:
        """Move everything but the swapped blocks' frozen weights to the device."""
        held = {id(parameter) for block in self.swapped for _, _, parameter in _frozen_parameters(block)}
        for module in network.modules():
            stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for store in stores:
                for leaf, tensor in store.items():
                    if tensor is not None and id(tensor) not in held:
                        store[leaf] = _move(tensor, self.device)

    def _enter(self, block: nn.Module, args: Any) -> None:
        waiting = list(_frozen_parameters(block))
        self._waiting[id(block)] = waiting
        for owner, leaf, parameter in waiting:
            copied = parameter.detach().to(self.device, non_blocking=True)
            owner._parameters[leaf] = nn.Parameter(copied, requires_grad=False)

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        for owner, leaf, parameter in self._waiting.pop(id(block), ()):
            owner._parameters[leaf] = parameter


def _frozen_parameters(block: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [
        (module, leaf, parameter)
        for module in block.modules()
        for leaf, parameter in module._parameters.items()
        if parameter is not None and not parameter.requires_grad
    ]


def _host(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """In host memory, page-locked where that speeds the copy."""
    tensor = parameter.detach().cpu()
    return nn.Parameter(tensor.pin_memory() if device.type == "cuda" else tensor, requires_grad=False)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.detach().to(device)
    return nn.Parameter(moved, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
