"""Joining windows of a long clip: latents by a ramp over what they share, sounds by a cross-fade.

Against the drift of windows that follow each other the statistics of latents are matched to a reference.
"""

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


# Statistics of latents ------------------------------------------------------------------------------------------------


SMALLEST_STD = 1e-8


def adain(latent: Tensor, reference: Tensor, factor: float = 1.0, per_frame: bool = False) -> Tensor:
    """Move mean and standard deviation of each channel towards those of ``reference``.

    ``latent`` ``[B, C, F, H, W]``, ``reference`` ``[B, C, F', H', W']``; deviations count n - 1. ``factor`` 0 returns
    the input itself, 1 matches exactly. ``per_frame`` matches frame by frame; a reference of one frame serves all.
    Raises `ConfigError` when ``per_frame`` finds another number of frames. Source: Huang and Belongie, 2017.
    """
    if factor == 0:
        return latent
    if per_frame and reference.shape[2] not in (1, latent.shape[2]):
        raise ConfigError(f"reference has {reference.shape[2]} frames, expected 1 or {latent.shape[2]}")
    dims = (3, 4) if per_frame else (2, 3, 4)
    exact = latent.to(torch.promote_types(latent.dtype, torch.float32))
    std, mean = _moments(exact, dims)
    target_std, target_mean = _moments(reference.to(exact.dtype), dims)
    matched = (exact - mean) / std * target_std + target_mean
    return (exact + factor * (matched - exact)).to(latent.dtype)


def _moments(values: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(values, dim=dims, keepdim=True)
    return std.clamp(min=SMALLEST_STD), mean


def match_percentiles(
    latent: Tensor,
    factor: float,
    percentile: float = 95.0,
    target_mean: float = 0.0,
    target_std: float = 1.0,
    clip_outliers: bool = False,
) -> Tensor:
    """Map each channel so that its values within ``percentile`` have the target mean and deviation.

    ``latent`` ``[B, C, F, H, W]``. Outliers are mapped with the rest and, with ``clip_outliers``, held at the bounds.
    ``factor`` 0 returns the input itself. A channel without spread is only shifted.
    """
    if factor == 0:
        return latent
    exact = latent.to(torch.promote_types(latent.dtype, torch.float32)).flatten(2)
    low, high = _quantiles(exact, (100 - percentile) / 200)
    inside = (exact >= low) & (exact <= high)
    count = inside.sum(dim=2, keepdim=True)
    mean = (exact * inside).sum(dim=2, keepdim=True) / count
    std = (((exact - mean) * inside).square().sum(dim=2, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    scale = torch.where(std > SMALLEST_STD, target_std / std.clamp(min=SMALLEST_STD), torch.ones_like(std))
    values = exact.clamp(low, high) if clip_outliers else exact
    matched = (values - mean) * scale + target_mean
    return (exact + factor * (matched - exact)).view_as(latent).to(latent.dtype)


def _quantiles(values: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The ``share`` quantile of the last axis and its mirror, by linear interpolation, for any number of values."""
    ordered = values.sort(dim=-1).values
    place = share * (values.shape[-1] - 1)
    below, weight = int(place), place - int(place)
    above = min(below + 1, values.shape[-1] - 1)

    def between(first: int, second: int) -> Tensor:
        return torch.lerp(ordered[..., first : first + 1], ordered[..., second : second + 1], weight)

    last = values.shape[-1] - 1
    return between(below, above), between(last - below, last - above)
