"""Matching the statistics of latents to a reference, against the drift of chained windows."""

from __future__ import annotations

import torch
from torch import Tensor

from ltx_core.errors import ConfigError

SMALLEST_STD = 1e-8


def adain(latent: Tensor, reference: Tensor, factor: float, per_frame: bool = False) -> Tensor:
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
