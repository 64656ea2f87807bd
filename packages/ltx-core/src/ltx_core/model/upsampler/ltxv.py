"""Latents of LTX-Video between its two passes: matched statistics and tone mapping."""

from __future__ import annotations

import torch
from torch import Tensor

from ltx_core.errors import ConfigError

LATENT_MULTIPLE = 32  # pixels per latent cell: sizes of the first pass are multiples of it


def adain_latent(latent: Tensor, reference: Tensor, factor: float = 1.0) -> Tensor:
    """Give each sample and channel of ``latent`` the mean and standard deviation it has in ``reference``.

    Both [B, C, T, H, W], sizes may differ; the deviation is the unbiased one. ``factor`` blends from the latent (0)
    to the matched one (1).
    """
    axes = (-3, -2, -1)
    std, mean = torch.std_mean(latent, dim=axes, keepdim=True)
    reference_std, reference_mean = torch.std_mean(reference, dim=axes, keepdim=True)
    matched = (latent - mean) / std * reference_std + reference_mean
    return torch.lerp(latent, matched, factor)


def tone_map_latent(latent: Tensor, compression: float) -> Tensor:
    """Compress large latent values; ``compression`` in [0, 1], 0 is the identity."""
    if not 0 <= compression <= 1:
        raise ConfigError(f"tone map compression is {compression}, expected a number in [0, 1]")
    strength = 0.75 * compression
    return latent * (1 - 0.8 * strength * torch.sigmoid(4 * strength * (latent.abs() - 1)))


def first_pass_size(height: int, width: int, downscale_factor: float) -> tuple[int, int]:
    """(height, width) in pixels of the first pass; the second pass is twice that in each direction."""

    def shrink(size: int) -> int:
        return int(size * downscale_factor) // LATENT_MULTIPLE * LATENT_MULTIPLE

    return shrink(height), shrink(width)
