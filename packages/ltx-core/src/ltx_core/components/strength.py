"""Strengths that hold known content: over the latents of an overlap, and over sigma while denoising.

A token of strength ``s`` has denoise mask ``1 - s`` and stands at noise level ``(1 - s) * sigma``. A constant strength
between 0 and 1 ends as ``s * clean + (1 - s) * x0``, two pictures in one; so a strength that steers without showing
falls to 0 at the last evaluated sigma. Importing this takes no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ltx_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Curve = Literal["hold", "linear", "smoothstep"]
CURVES: tuple[Curve, ...] = ("hold", "linear", "smoothstep")
ORDERS: dict[Curve, int] = {"linear": 1, "smoothstep": 3}


def smoothstep(u: float, order: int = 3) -> float:
    """From 0 to 1 with zero slope at both ends, for ``order`` 5 with zero curvature too, for 1 on a straight line.

    ``u`` is clamped to [0, 1].
    """
    u = min(max(u, 0.0), 1.0)
    if order == 1:
        return u
    if order == 3:
        return u * u * (3 - 2 * u)
    if order == 5:
        return u**3 * (u * (6 * u - 15) + 10)
    raise ConfigError(f"smoothstep order is {order}, expected 1, 3 or 5")


@dataclass(frozen=True)
class StrengthOverSigma:
    """Strength that moves from ``first`` at ``sigma_from`` to ``last`` at ``sigma_to`` and is constant outside."""

    sigma_from: float = 1.0
    sigma_to: float = 0.421875
    first: float = 1.0
    last: float = 0.0
    order: int = 3

    def __post_init__(self) -> None:
        if not self.sigma_from > self.sigma_to:
            raise ConfigError(f"sigma_from is {self.sigma_from}, expected above sigma_to ({self.sigma_to})")

    def at(self, sigma: float) -> float:
        """The strength at a noise level."""
        u = (self.sigma_from - sigma) / (self.sigma_from - self.sigma_to)
        return self.first + (self.last - self.first) * smoothstep(u, self.order)


def strength_over_overlap(overlap: int, first: float = 1.0, last: float = 0.0, order: int = 3) -> list[float]:
    """One strength per overlap latent, oldest first: old latents firm, those next to the new part free."""
    return [first + (last - first) * smoothstep((j + 1) / (overlap + 1), order) for j in range(overlap)]


def strength_around(strength: float, reach: int, curve: Curve) -> list[float]:
    """Strengths at the distances 0 to ``reach`` from a place that is held: the same, or falling to 0 just beyond."""
    order = ORDERS.get(curve)
    return [strength * (1 if order is None else smoothstep(1 - d / (reach + 1), order)) for d in range(reach + 1)]


def rebuild_tokens(latent: Tensor, before: Tensor, after: Tensor, known: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Bring tokens whose denoise mask has changed to the noise level their new mask says; others stay as they are.

    ``latent``, ``known`` (the last blended prediction, at the first step the clean tokens) and ``noise`` are
    ``[..., D]``; ``before`` and ``after`` are denoise masks ``[..., 1]``. ``noise`` is each token's own, drawn once.
    """
    import torch

    level = after * sigma
    return torch.where(before == after, latent, (1 - level) * known + level * noise)


def strengths_along(schedule: StrengthOverSigma, sigmas: Sequence[float]) -> list[float]:
    """The strength at each evaluated sigma; the last of ``sigmas`` is never evaluated."""
    return [schedule.at(sigma) for sigma in sigmas[:-1]]
