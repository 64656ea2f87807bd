"""The maths of ggml's block types: the bytes of a block to its values, in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

# A block's bytes [n, bytes] -> its values, float32 [n, elements].
Dequantize = Callable[[Tensor], Tensor]


def _half(b: Tensor, start: int) -> Tensor:
    """A little-endian half float in each block, [n, 1]."""
    return b[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(b: Tensor) -> Tensor:
    """Low nibbles of all bytes, then high nibbles."""
    return torch.cat([b & 15, b >> 4], dim=1).float()


def _bits(b: Tensor, count: int) -> Tensor:
    """``count`` single bits from little-endian bytes."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (b.unsqueeze(-1) >> shifts & 1).flatten(1)[:, :count].float()


def _pairs_of_two_bits(b: Tensor) -> Tensor:
    """256 two-bit values from 64 bytes: halves of 128, in each the four bit pairs of 32 bytes one after the other."""
    halves = b.view(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1) & 3
    return halves.reshape(-1, 256).float()


def _grouped_nibbles(b: Tensor) -> Tensor:
    """256 nibbles from 128 bytes: pairs of groups of 32 share 32 bytes, low nibbles first."""
    chunks = b.view(-1, 4, 1, 32) >> torch.tensor([0, 4], dtype=torch.uint8).view(1, 1, 2, 1) & 15
    return chunks.reshape(-1, 256).float()


def _six_bit_pairs(b: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and eight 6-bit minima from 12 bytes, [n, 8] each."""
    low, middle, high = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = torch.cat([low & 63, high & 15 | low >> 6 << 4], dim=1)
    minima = torch.cat([middle & 63, high >> 4 | middle >> 6 << 4], dim=1)
    return scales.float(), minima.float()


def _each(values: Tensor, count: int) -> Tensor:
    return values.repeat_interleave(count, dim=1)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * b[:, 2:].view(torch.int8).float()


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:]) - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:]) + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 6:]) + 16 * _bits(b[:, 2:6], 32) - 16)


def _q5_1(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 8:]) + 16 * _bits(b[:, 4:8], 32)) + _half(b, 2)


def _q2_k(b: Tensor) -> Tensor:
    scales, minima = (b[:, :16] & 15).float(), (b[:, :16] >> 4).float()
    quants = _pairs_of_two_bits(b[:, 16:80].contiguous())
    return _half(b, 80) * _each(scales, 16) * quants - _half(b, 82) * _each(minima, 16)


def _q3_k(b: Tensor) -> Tensor:
    low = torch.cat([b[:, 96:104] & 15, b[:, 96:104] >> 4], dim=1)  # [n, 16]
    high = torch.cat([b[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    scales = (low | high << 4).float() - 32
    mask = b[:, None, :32] >> torch.arange(8, dtype=torch.uint8).view(1, 8, 1) & 1  # bit g belongs to group g of 32
    quants = _pairs_of_two_bits(b[:, 32:96].contiguous()) - 4 * (1 - mask.reshape(-1, 256).float())
    return _half(b, 108) * _each(scales, 16) * quants


def _q4_k(b: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    quants = _grouped_nibbles(b[:, 16:].contiguous())
    return _half(b, 0) * _each(scales, 32) * quants - _half(b, 2) * _each(minima, 32)


def _q5_k(b: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    high = b[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8).view(1, 8, 1) & 1
    quants = _grouped_nibbles(b[:, 48:].contiguous()) + 16 * high.reshape(-1, 256).float()
    return _half(b, 0) * _each(scales, 32) * quants - _half(b, 2) * _each(minima, 32)


def _q6_k(b: Tensor) -> Tensor:
    low = b[:, :128].reshape(-1, 2, 1, 64) >> torch.tensor([0, 4], dtype=torch.uint8).view(1, 1, 2, 1) & 15
    high = _pairs_of_two_bits(b[:, 128:192].contiguous())
    quants = low.reshape(-1, 256).float() + 16 * high - 32
    return _half(b, 208) * _each(b[:, 192:208].view(torch.int8).float(), 16) * quants


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b, 0) * torch.tensor(IQ4_VALUES).float()[_nibbles(b[:, 2:]).long()]


def _iq4_xs(b: Tensor) -> Tensor:
    high = b[:, 2:4].contiguous().view(torch.int16).int() >> torch.arange(0, 16, 2, dtype=torch.int32) & 3  # [n, 8]
    low = torch.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], dim=-1).flatten(1).int()
    scales = (low | high << 4).float() - 32
    quants = b[:, 8:].reshape(-1, 8, 1, 16) >> torch.tensor([0, 4], dtype=torch.uint8).view(1, 1, 2, 1) & 15
    return _half(b, 0) * _each(scales, 32) * torch.tensor(IQ4_VALUES).float()[quants.reshape(-1, 256).long()]


DEQUANTIZE: dict[str, Dequantize] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}


# And back -------------------------------------------------------------------------------------------------------------


def _halves(values: Tensor) -> Tensor:
    """The bytes of float16 values ``[n]``, ``[n, 2]``."""
    return values.to(torch.float16).view(-1, 1).view(torch.uint8)


def _to_q8_0(x: Tensor) -> Tensor:
    d = x.abs().amax(dim=1) / 127
    codes = (x / torch.where(d > 0, d, 1.0)[:, None]).round().to(torch.int8)
    return torch.cat([_halves(d), codes.view(torch.uint8)], dim=1)


def _to_q4_k(x: Tensor) -> Tensor:
    groups = x.view(-1, 8, 32)
    low = groups.amin(dim=2).clamp(max=0)  # [n, 8]
    scale, offset = (groups.amax(dim=2).clamp(min=0) - low) / 15, -low
    d, dmin = (part.amax(dim=1).div(63).to(torch.float16).float() for part in (scale, offset))
    scales, offsets = (_steps(part, whole) for part, whole in ((scale, d), (offset, dmin)))
    step, base = (d[:, None] * scales)[..., None], (dmin[:, None] * offsets)[..., None]
    codes = ((groups + base) / torch.where(step > 0, step, 1.0)).round().clamp(0, 15).to(torch.uint8).view(-1, 4, 2, 32)
    scales, offsets = scales.to(torch.uint8), offsets.to(torch.uint8)
    packed = [
        scales[:, :4] | scales[:, 4:] >> 4 << 6,
        offsets[:, :4] | offsets[:, 4:] >> 4 << 6,
        scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4,
    ]
    return torch.cat([_halves(d), _halves(dmin), *packed, (codes[:, :, 0] | codes[:, :, 1] << 4).flatten(1)], dim=1)


def _steps(values: Tensor, unit: Tensor) -> Tensor:
    """Values ``[n, 8]`` in whole units of their row, 0 to 63."""
    return (values / torch.where(unit > 0, unit, 1.0)[:, None]).round().clamp(0, 63)


#: Values in float32 ``[n, elements]`` -> the bytes of their blocks ``[n, bytes]``.
QUANTIZE: dict[str, Dequantize] = {"Q8_0": _to_q8_0, "Q4_K": _to_q4_k}
