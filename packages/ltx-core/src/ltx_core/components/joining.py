"""Joining windows of a long clip: latents by a ramp over what they share, sounds by a cross-fade."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ltx_core.components.strength import smoothstep
from ltx_core.errors import ConfigError

Fade = Literal["linear", "equal_power", "matched"]


def join_latents(
    first: Tensor, second: Tensor, overlap: int, drop: int = 1, ramp: Literal["linear", "smoothstep"] = "linear"
) -> Tensor:
    """One latent from two that share ``overlap`` frames of axis 2; video ``[B, C, F, H, W]`` or audio ``[B, C, T, M]``.

    The first ``drop`` frames of ``second`` are not used (its first one may have been read as another thing than it
    is); the rest of the overlap is blended. ``drop`` equal to ``overlap`` is a cut.
    """
    length = min(first.shape[2], second.shape[2])
    if not 0 <= drop <= overlap <= length:
        raise ConfigError(f"overlap is {overlap} with {drop} dropped, expected 0 <= drop <= overlap <= {length}")
    blended = overlap - drop
    start = first.shape[2] - blended
    weights = [(j + 1) / (blended + 1) for j in range(blended)]
    if ramp == "smoothstep":
        weights = [smoothstep(weight) for weight in weights]
    rise = torch.tensor(weights, dtype=first.dtype, device=first.device).view(1, 1, -1, *[1] * (first.ndim - 3))
    middle = torch.lerp(first[:, :, start:], second[:, :, drop:overlap], rise) if blended else first[:, :, start:]
    return torch.cat((first[:, :, :start], middle, second[:, :, overlap:]), dim=2)


def crossfade(first: Tensor, second: Tensor, overlap: int, fade: Fade = "matched", correlation: float = 0.0) -> Tensor:
    """One sound ``[..., samples]`` from two that share ``overlap`` samples.

    ``linear`` keeps the amplitude of equal sounds, ``equal_power`` the power of unrelated ones, ``matched`` the power
    for a ``correlation`` in [0, 1] (`overlap_correlation` measures it).
    """
    if not 0 < overlap <= min(first.shape[-1], second.shape[-1]):
        raise ConfigError(f"overlap is {overlap} samples, expected 1 to {min(first.shape[-1], second.shape[-1])}")
    u = (torch.arange(overlap, dtype=first.dtype, device=first.device) + 0.5) / overlap
    fall, rise = 1 - u, u
    if fade == "equal_power":
        fall, rise = torch.cos(math.pi / 2 * u), torch.sin(math.pi / 2 * u)
    elif fade == "matched":
        power = (fall.square() + rise.square() + 2 * correlation * fall * rise).sqrt()
        fall, rise = fall / power, rise / power
    shared = first[..., -overlap:] * fall + second[..., :overlap] * rise
    return torch.cat((first[..., :-overlap], shared, second[..., overlap:]), dim=-1)


def overlap_correlation(first: Tensor, second: Tensor) -> float:
    """Correlation of two sounds ``[..., samples]`` of one span, clamped to [0, 1]; 0 when one of them is silent."""
    power = math.sqrt(float(first.square().sum()) * float(second.square().sum()))
    return min(max(float((first * second).sum()) / power, 0.0), 1.0) if power > 0 else 0.0
