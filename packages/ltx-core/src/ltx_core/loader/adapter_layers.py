"""The change that an adapter makes in one module, in every published kind, and its strength.

======================  ====================================================================
low rank                ``W + s * scale * B @ A``, bias ``+ s * scale * b``
LoKr                    ``W + s * scale * kron(w1, w2)``
LoHa                    ``W + s * scale * (w1_a @ w1_b) * (w2_a @ w2_b)``
difference              ``W + s * diff``, bias ``+ s * diff_b``
DoRA, magnitude vector  ``g * V / |V|`` by rows with ``V = W + s * D``: the strength is inside the norm
DoRA, ``dora_scale``    ``W + s * (g * V / |N| - W)`` with ``V = W + D`` and N = V, or W for ComfyUI's exports
======================  ====================================================================

``scale`` is alpha / rank. Everything but DoRA is linear in the strength and adds up in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EPSILON = 2.0**-23  # of float32, added to the norms of ``dora_scale``
Pair: TypeAlias = "tuple[Tensor, Tensor]"


@dataclass(frozen=True)
class LoraLayer:
    """The change of one adapter in one module. Tensors are as stored; they are widened before they are multiplied."""

    a: Tensor | None = None  # (r, in)
    b: Tensor | None = None  # (out, r)
    scale: float = 1.0
    kron: tuple[Pair | Tensor, Pair | Tensor] | None = None  # each factor whole, or as a product of two
    hadamard: tuple[Pair, Pair] | None = None
    diff: Tensor | None = None  # shape of the weight
    diff_b: Tensor | None = None  # shape of the bias
    bias: Tensor | None = None  # bias factor of a low-rank pair, scaled like it
    magnitude: Tensor | None = None  # (out,), (out, 1) or (1, in): makes it a DoRA
    dora: Literal["inside", "merged", "base"] = "inside"  # strength inside the norm; or interpolated, with that norm

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """Shape of the weight difference, None when there is none."""
        if self.a is not None and self.b is not None:
            return self.b.shape[0], self.a.shape[1]
        if self.kron is not None:
            (o1, i1), (o2, i2) = (_product_shape(factor) for factor in self.kron)
            return o1 * o2, i1 * i2
        if self.hadamard is not None:
            return _product_shape(self.hadamard[0])
        return None if self.diff is None else tuple(self.diff.shape)

    @property
    def bias_shape(self) -> tuple[int, ...] | None:
        """Shape of the bias difference, None when there is none."""
        change = self.diff_b if self.diff_b is not None else self.bias
        return None if change is None else tuple(change.shape)

    def terms(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[tuple[Tensor, float]]:
        """Differences of the weight but for a low-rank pair, each with its factor at strength 1."""
        if self.kron is not None:
            w1, w2 = (_product(factor, device, dtype) for factor in self.kron)
            yield w1.kron(w2), self.scale
        if self.hadamard is not None:
            w1, w2 = (_product(factor, device, dtype) for factor in self.hadamard)
            yield w1 * w2, self.scale
        if self.diff is not None:
            yield self.diff.to(device).to(dtype), 1.0

    def add_to(self, total: Tensor | None, strength: float, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """``total`` (None is nothing yet) with this layer's difference of the weight, DoRA's magnitude left out."""
        if self.a is not None and self.b is not None:
            factor = strength * self.scale
            a, b = self.a.to(device).to(dtype), self.b.to(device).to(dtype)  # (r, in), (out, r)
            total = (b * factor) @ a if total is None else total.addmm(b, a, alpha=factor)
        for term, factor in self.terms(device, dtype):
            change = term * (strength * factor)
            total = change if total is None else total + change
        assert total is not None, "a layer without a weight difference"
        return total

    def normalise(self, weight: Tensor, strength: float) -> Tensor:
        """The weight ``(out, in)`` float32 that a DoRA layer makes of ``weight``."""
        assert self.magnitude is not None
        g = self.magnitude.to(weight.device).float()
        g = g[:, None] if g.ndim == 1 else g
        axis = 1 if g.shape[1] == 1 else 0  # what the norm runs over
        if self.dora == "inside":
            changed = self.add_to(weight, strength, weight.device, weight.dtype)
            return g * changed / changed.norm(dim=axis, keepdim=True)
        changed = self.add_to(weight, 1.0, weight.device, weight.dtype)
        measured = weight if self.dora == "base" and axis == 1 else changed
        whole = changed * g / (measured.norm(dim=axis, keepdim=True) + EPSILON)
        return weight + strength * (whole - weight)

    def bias_change(self, strength: float, device: torch.device | str) -> Tensor | None:
        """The change of the bias, float32 ``(out,)``."""
        if self.diff_b is not None:
            return self.diff_b.to(device).float() * strength
        return None if self.bias is None else self.bias.to(device).float() * (strength * self.scale)


def _product(factor: Pair | Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    if not isinstance(factor, tuple):
        return factor.to(device).to(dtype)
    first, second = (part.to(device).to(dtype) for part in factor)
    return first @ second


def _product_shape(factor: Pair | Tensor) -> tuple[int, int]:
    first, second = factor if isinstance(factor, tuple) else (factor, factor)
    return first.shape[0], second.shape[1]
