"""NVFP4: 4-bit floats with one e4m3 scale per 16 values of a row and one float32 scale per tensor.

Values are e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, two in a byte with the even element in the high
nibble. Block scales are stored in tiles of 128 rows x 4 columns. The formats run on any device; the product here is a
plain one.
"""

from __future__ import annotations

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.loader.fp8 import FP8, FP8_MAX

BLOCK = 16  # values that share a scale
TILE_ROWS, TILE_COLUMNS = 128, 4
E2M1_MAX = 6.0
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between neighbours; a tie goes to the even code


class ActivationScale(Enum):
    """Source of the per-tensor scale of activations."""

    FIXED_1 = "fixed_1"
    DYNAMIC = "dynamic"  # largest magnitude / 2688
    STATIC = "static"  # stored input_scale


def per_tensor_scale(x: Tensor) -> Tensor:
    """The float32 scale that uses the whole range of both factors: largest magnitude / (6 * 448); NaN is ignored."""
    return x.float().abs().nan_to_num(0.0, float("inf")).amax() / (E2M1_MAX * FP8_MAX)


def quantize(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(packed uint8 ``(rows, K/2)``, e4m3fn block scales ``(rows, K/16)``) of a matrix whose K divides by 16."""
    rows, columns = x.shape
    if columns % BLOCK:
        raise ConfigError(f"matrix has {columns} columns, expected a multiple of {BLOCK}")
    blocks = x.float().view(rows, -1, BLOCK)
    largest = blocks.abs().amax(dim=-1)
    scales = (largest / E2M1_MAX / scale).nan_to_num(0.0).clamp(max=FP8_MAX).to(FP8)  # [rows, K/16]
    product = scale * scales.float()
    inverse = torch.where(product == 0, 0.0, 1.0 / product)
    return pack(to_e2m1((blocks * inverse.unsqueeze(-1)).view(rows, columns))), scales


def dequantize(packed: Tensor, scales: Tensor, scale: Tensor) -> Tensor:
    """The float32 matrix of packed values, their block scales ``(rows, K/16)`` and the tensor's scale."""
    values = from_e2m1(unpack(packed)).view(packed.shape[0], -1, BLOCK)
    return (values * (scale * scales.float()).unsqueeze(-1)).flatten(1)


def to_e2m1(x: Tensor) -> Tensor:
    """4-bit codes (uint8) of the nearest values, ties to the even code, saturating at +-6."""
    magnitude = x.abs()
    middle = torch.tensor(MIDPOINTS, device=x.device)
    below = torch.bucketize(magnitude, middle)  # a tie counts as below its midpoint
    tie_up = (below % 2 == 1) & (magnitude == middle[below.clamp(max=len(MIDPOINTS) - 1)])
    return (below + tie_up).to(torch.uint8) | torch.signbit(x).to(torch.uint8) << 3


def from_e2m1(codes: Tensor) -> Tensor:
    """float32 values of 4-bit codes."""
    table = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)], device=codes.device)
    return table[codes.long()]


def pack(codes: Tensor) -> Tensor:
    """Two codes in a byte, the even element in the high nibble."""
    return codes[..., 0::2] << 4 | codes[..., 1::2]


def unpack(packed: Tensor) -> Tensor:
    """The codes of packed bytes."""
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)


def swap_nibbles(packed: Tensor) -> Tensor:
    """The same values with the even element in the low nibble."""
    return packed << 4 | packed >> 4


def to_tiles(scales: Tensor) -> Tensor:
    """Block scales ``(rows, K/16)`` in stored order: zero-padded to whole tiles, same two axes."""
    rows, columns = scales.shape
    padded = torch.zeros(_up(rows, TILE_ROWS), _up(columns, TILE_COLUMNS), dtype=torch.uint8, device=scales.device)
    padded[:rows, :columns] = scales.view(torch.uint8)
    return padded.flatten()[_from_padded(padded.shape)].view(padded.shape)


def from_tiles(stored: Tensor, rows: int, columns: int) -> Tensor:
    """e4m3fn block scales ``(rows, columns)`` from stored order."""
    shape = (_up(rows, TILE_ROWS), _up(columns, TILE_COLUMNS))
    plain = torch.zeros(shape[0] * shape[1], dtype=torch.uint8, device=stored.device)
    plain[_from_padded(shape)] = _padded_bytes(stored, shape)
    return plain.view(shape)[:rows, :columns].contiguous().view(FP8)


def _padded_bytes(stored: Tensor, shape: tuple[int, int]) -> Tensor:
    if stored.numel() != shape[0] * shape[1]:
        raise ConfigError(f"block scales are {tuple(stored.shape)}, expected {shape} in tiles")
    return stored.contiguous().view(torch.uint8).flatten()


def _from_padded(shape: tuple[int, ...]) -> Tensor:
    """For each stored position, the row-major position in the padded matrix."""
    rows, columns = shape
    matrix = torch.arange(rows * columns).view(rows // TILE_ROWS, 4, 32, columns // TILE_COLUMNS, TILE_COLUMNS)
    return matrix.permute(0, 3, 2, 1, 4).flatten()  # tile row, tile column, row % 32, row / 32, column


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Nvfp4Linear(nn.Module):
    """A linear on NVFP4 weights and activations.

    ``weight`` uint8 (out, in/2), ``weight_scale`` uint8 in tiles or, with fewer rows than tiles have, row by row,
    ``weight_scale_2`` float32 scalar, ``input_scale`` float32 scalar (static activations only), ``bias`` (out,) or
    None.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_scale_2: Tensor
    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: ActivationScale = ActivationScale.FIXED_1,
        scale_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.activation = in_features, activation
        scales = (scale_rows or _up(out_features, TILE_ROWS), _up(in_features // BLOCK, TILE_COLUMNS))
        self.register_buffer("weight", torch.empty(out_features, in_features // 2, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.empty(scales, dtype=torch.uint8))
        self.register_buffer("weight_scale_2", torch.empty(()))
        self.register_buffer("input_scale", torch.empty(()) if activation is ActivationScale.STATIC else None)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self.rounded_input(x), dequantize_layer(self.weight, self.weight_scale, self.weight_scale_2))
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)

    def activation_scale(self, x: Tensor) -> Tensor:
        """The per-tensor scale of an input, float32 scalar."""
        if self.activation is ActivationScale.DYNAMIC:
            return per_tensor_scale(x)
        return self.input_scale if self.input_scale is not None else torch.ones((), device=x.device)

    def rounded_input(self, x: Tensor) -> Tensor:
        """The input after NVFP4 rounding, float32."""
        scale, rows = self.activation_scale(x), x.reshape(-1, self.in_features)
        return dequantize(*quantize(rows, scale), scale).view(x.shape)


def quantize_layer(weight: Tensor) -> dict[str, Tensor]:
    """A weight (out, in) as the tensors a layer stores."""
    scale = per_tensor_scale(weight)
    packed, scales = quantize(weight, scale)
    return {"weight": packed, "weight_scale": to_tiles(scales), "weight_scale_2": scale}


def dequantize_layer(weight: Tensor, weight_scale: Tensor, weight_scale_2: Tensor) -> Tensor:
    """The float32 weight (out, in) of the tensors a layer stores."""
    rows, columns = weight.shape[0], weight.shape[1] * 2 // BLOCK
    if weight_scale.shape[0] == _up(rows, TILE_ROWS):
        scales = from_tiles(weight_scale, rows, columns)
    else:
        scales = weight_scale.view(FP8)[:rows, :columns]
    return dequantize(weight, scales, weight_scale_2)
