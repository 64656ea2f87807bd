"""Rotary positions on three axes: each head's channels are split into one part per axis, adjacent channels rotate."""

from __future__ import annotations

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae.diffusion.config import Axes
from ltx_core.utils import device_of_doubles

BASE = 10000.0


def axis_widths(head_dim: int) -> Axes:
    """How many channels of a head turn with time, height and width; all even, height and width alike."""
    time = 2 * (head_dim // 4 // 2)
    if (head_dim - time) // 2 % 2:
        time -= 2
    space = (head_dim - time) // 2
    if time < 0 or space % 2 or time + 2 * space != head_dim:
        raise ConfigError(f"head_dim is {head_dim}, expected an even number that three axes can share in pairs")
    return time, space, space


def axis_frequencies(width: int, base: float = BASE, device: torch.device | None = None) -> Tensor:
    """``base^(-2i / width)``, ``[width / 2]`` in float32, computed in float64."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=device_of_doubles(device)) / max(width, 1)
    return torch.pow(base, -exponents).to(device=device, dtype=torch.float32)


def rotate(x: Tensor, first: Axes = (0, 0, 0), base: float = BASE) -> Tensor:
    """Turn ``[B, T, H, W, heads, head_dim]`` by its positions, which count up from ``first``; float32 inside."""
    turned = []
    for axis, (part, start) in enumerate(zip(x.split(axis_widths(x.shape[-1]), dim=-1), first, strict=True)):
        positions = torch.arange(start, start + x.shape[axis + 1], dtype=torch.float32, device=x.device)
        angles = positions[:, None] * axis_frequencies(part.shape[-1], base, x.device)  # [n, width / 2]
        shape = [1, 1, 1, 1, 1, angles.shape[1]]
        shape[axis + 1] = angles.shape[0]
        cos, sin = angles.cos().view(shape), angles.sin().view(shape)
        even, odd = part.float().unflatten(-1, (-1, 2)).unbind(dim=-1)
        pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        turned.append(pairs.flatten(-2).to(x.dtype))
    return torch.cat(turned, dim=-1)
