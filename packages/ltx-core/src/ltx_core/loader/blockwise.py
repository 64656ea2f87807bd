"""Blockwise 8- and 6-bit float weights: one float32 scale per 128 x 128 block. Formats only, no kernel uses them.

fp8 stores e4m3fn values up to 448. fp6 stores e4m3fn values up to 0.1171875, whose two top exponent bits are zero:
six bits ``s e m m m m`` hold each of them, and four fit in three bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.loader.fp8 import FP8, FP8_MAX, to_fp8

BLOCK = 128
FP6_MAX = 0.1172


def quantize_blocks(weight: Tensor, largest: float = FP8_MAX) -> tuple[Tensor, Tensor]:
    """(e4m3fn ``(out, in)``, float32 scales ``(out/128, in/128)``) with values up to ``largest`` in each block."""
    rows, columns = weight.shape
    if rows % BLOCK or columns % BLOCK:
        raise ConfigError(f"weight is {rows} x {columns}, expected multiples of {BLOCK}")
    blocks = weight.float().unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))  # [O, 128, I, 128]
    factor = largest / _nonzero(blocks.abs().amax(dim=(1, 3), keepdim=True))  # [O, 1, I, 1]
    return to_fp8(blocks * factor).flatten(2, 3).flatten(0, 1), (1.0 / factor).flatten(1)


def dequantize_blocks(quantized: Tensor, scale: Tensor) -> Tensor:
    """The bfloat16 weight of e4m3fn values and their block scales."""
    wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)  # [out, in]
    return (quantized.float() * wide).to(torch.bfloat16)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3fn ``[..., K]``, float32 scales ``[K/128, tokens]``): one scale per token and 128 channels."""
    groups = x.float().unflatten(-1, (-1, BLOCK))  # [..., K/128, 128]
    largest = _nonzero(groups.abs().amax(dim=-1, keepdim=True))
    scales = (largest / FP8_MAX).squeeze(-1).flatten(0, -2).t().contiguous()
    return to_fp8(groups * FP8_MAX / largest).flatten(-2), scales


def fp6_codes(quantized: Tensor) -> Tensor:
    """The six bits ``s e m m m m`` of e4m3fn values as uint8: sign, exponent bit 1, and the low nibble."""
    raw = quantized.view(torch.uint8) if quantized.dtype == FP8 else quantized
    return (raw >> 7 << 5) | (raw >> 4 & 1) << 4 | raw & 15


def pack_fp6(codes: Tensor) -> Tensor:
    """Four 6-bit codes in three bytes: ``[..., K]`` to ``[..., 3K/4]``."""
    v0, v1, v2, v3 = codes.unflatten(-1, (-1, 4)).unbind(-1)
    return torch.stack([v0 << 2 | v1 >> 4, (v1 & 15) << 4 | v2 >> 2, (v2 & 3) << 6 | v3], dim=-1).flatten(-2)


def unpack_fp6(packed: Tensor) -> Tensor:
    """The e4m3fn bytes of packed codes, bits 6 and 5 zero: ``[..., 3K/4]`` to uint8 ``[..., K]``."""
    b0, b1, b2 = packed.unflatten(-1, (-1, 3)).unbind(-1)
    codes = torch.stack([b0 >> 2, (b0 & 3) << 4 | b1 >> 4, (b1 & 15) << 2 | b2 >> 6, b2 & 63], dim=-1).flatten(-2)
    return (codes >> 5 << 7) | codes & 31


def _nonzero(largest: Tensor) -> Tensor:
    return torch.where(largest > 0, largest, torch.ones_like(largest))
