"""8-bit float linears: storage only (``fp8-cast``), scaled matrix products (``fp8-scaled-mm``), scaled rows
(``fp8-rowwise``).

The number format is e4m3fn: 1-4-3 bits, largest value 448, no infinities. Values are clamped to +-448 before every
cast, because what an overflowing cast gives depends on the framework's version.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def to_fp8(x: Tensor) -> Tensor:
    """Round to the nearest e4m3fn value, ties to even, saturating at +-448."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def quantize_per_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3fn weight, float32 scalar scale) with ``weight ~ quantized * scale``; a zero weight has scale 1 / 448."""
    weight = weight.float()
    largest = weight.abs().amax()
    factor = FP8_MAX / torch.where(largest > 0, largest, torch.ones_like(largest))
    return to_fp8(weight * factor), 1.0 / factor


def quantize_per_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3fn ``[N, in]``, float32 scales ``[N, 1]``) with ``x ~ quantized * scales``; a zero row has scale 1 / 448."""
    x = x.float()
    largest = x.abs().amax(dim=1, keepdim=True)
    factor = FP8_MAX / torch.where(largest > 0, largest, torch.ones_like(largest))
    return to_fp8(x * factor), 1.0 / factor


class RowwiseLinear(nn.Module):
    """A linear whose weight is stored in e4m3fn with one float32 scale per output row.

    On GPUs with 8-bit matrix products its input is quantised by rows too; elsewhere the weight is widened in every
    forward. ``weight`` e4m3fn (out, in), ``weight_scale`` float32 (out, 1), ``bias`` (out,) or None.
    """

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, 1, dtype=torch.float32), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if has_row_products(x, self.weight):
            rows, scales = quantize_per_row(x.flatten(0, -2))  # [N, in], [N, 1]
            y = torch._scaled_mm(
                rows, self.weight.t(), scales, self.weight_scale.t(), out_dtype=x.dtype, use_fast_accum=True
            ).unflatten(0, x.shape[:-1])
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.flatten().to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def has_row_products(x: Tensor, weight: Tensor) -> bool:
    """Whether this device multiplies e4m3fn matrices with a scale per row: bfloat16 results, sides in sixteens."""
    fits = x.dtype == torch.bfloat16 and all(side % 16 == 0 for side in weight.shape)
    return fits and x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)


class CastLinear(nn.Linear):
    """A linear whose weight and bias are stored in e4m3fn without scale and widened in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class ScaledLinear(nn.Module):
    """A linear on e4m3fn inputs and weights, each with one float32 scale.

    ``weight`` e4m3fn (out, in), ``weight_scale`` and ``input_scale`` float32 scalars, ``bias`` (out,) or None.
    """

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty((), dtype=torch.float32), requires_grad=False)
        self.input_scale = nn.Parameter(torch.empty((), dtype=torch.float32), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        rows = quantize_input(x, self.input_scale).flatten(0, -2)  # [N, in]
        y = scaled_product(rows, self.weight, self.input_scale, self.weight_scale, x.dtype)  # [N, out]
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantize_input(x: Tensor, input_scale: Tensor) -> Tensor:
    """Activations as e4m3fn in units of ``input_scale``; the division is a product in the dtype of ``x``."""
    return to_fp8(x * (1.0 / input_scale))


def scaled_product(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``(x @ weight.T) * x_scale * weight_scale`` of e4m3fn ``[N, in]`` and ``[out, in]``, in ``dtype``."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 9):
        return torch._scaled_mm(x, weight.t(), x_scale, weight_scale, out_dtype=dtype, use_fast_accum=True)
    return (F.linear(x.float(), weight.float()) * (x_scale * weight_scale)).to(dtype)
