"""Shapes without torch's own rules for the meta device are those that torch gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.model.common.meter import Meter, ShapesOnly

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "broadcast": lambda x: x[:, :1] + x[0],
    "of two types": lambda x: x * x.double(),
    "with a number": lambda x: 1 - x,
    "whole numbers": lambda x: torch.arange(3, 8, 2, device=x.device) / 2,
    "whole numbers times": lambda x: torch.arange(5, device=x.device) * 0.5,
    "power": lambda x: x.bfloat16() ** 2,
    "base": lambda x: 2.0**x,
    "three": lambda x: torch.addcmul(x, x[0], x.mT.contiguous().mT),
    "turned": lambda x: x.permute(2, 0, 1).cos(),
    "cut": lambda x: F.silu(x[:, 1:]),
    "bf16 function": lambda x: F.gelu(x.bfloat16(), approximate="tanh"),
    "in place": lambda x: x.clone().add_(1).mul_(x),
    "mean": lambda x: x.mean((0, 2)),
    "mean kept": lambda x: x.mean(-1, keepdim=True),
    "joined": lambda x: torch.cat([x, x.double()], dim=1),
    "stacked": lambda x: torch.stack([x, x], dim=-1),
    "repeated": lambda x: x.repeat(2, 1, 3, 1),
    "linear": lambda x: F.linear(x[0], x[1, :2], x[0, 0, :2]),
    "product": lambda x: x[0] @ x[1].T,
    "products": lambda x: torch.bmm(x, x.mT),
    "convolution": lambda x: F.conv3d(x[None, None], x[None, None, :1, :2, :3], stride=(1, 2, 1), padding=(0, 1, 1)),
    "dilated": lambda x: F.conv1d(x, x.new_empty(5, 3, 2), dilation=2),
    "transposed": lambda x: F.conv_transpose1d(x, x.new_empty(3, 5, 2)),
    "normalised": lambda x: F.layer_norm(x, x.shape[-1:]),
    "normalised in groups": lambda x: F.group_norm(x, 3),
    "spread": lambda x: torch.linspace(0, 1, 7, device=x.device),
    "empty": lambda x: torch.empty_like(x.mT, dtype=torch.float16),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_rules_say_what_torch_gives(name: str) -> None:
    x = torch.empty(3, 3, 6, device="meta")
    with torch.no_grad():
        expected = OPERATIONS[name](x)
        with ShapesOnly():
            found = OPERATIONS[name](x)
    assert (found.shape, found.stride(), found.dtype, found.device) == (
        expected.shape,
        expected.stride(),
        expected.dtype,
        expected.device,
    )


def test_a_meter_counts_operations_and_bytes() -> None:
    a, b = torch.empty(4, 8, device="meta"), torch.empty(8, 2, device="meta")
    meter = Meter({a.untyped_storage()._cdata, b.untyped_storage()._cdata})
    with torch.no_grad(), ShapesOnly(), meter:
        product = a @ b
        product.add_(1)
        del product
        product = torch.cat([a, a])
    assert meter.flops == 2 * 4 * 8 * 2
    assert meter.peak == product.nbytes and meter.now == product.nbytes
