"""Velocity, x0, sinusoids and RMS normalisation: the formulas that everything else shares."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SINUSOID_WIDTH = 256


def to_velocity(
    sample: Tensor, sigma: float | Tensor, denoised_sample: Tensor, calc_dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(sample - denoised) / sigma`` in ``calc_dtype``, in the sample's dtype.

    ``sigma`` is one number; keep it off the accelerator, for its value is read. Raises ``ValueError`` when it is 0.
    """
    if isinstance(sigma, Tensor):
        sigma = sigma.to(calc_dtype)
    if sigma == 0:
        raise ValueError("sigma is 0, expected a positive noise level: a clean sample has no velocity")
    return ((sample.to(calc_dtype) - denoised_sample.to(calc_dtype)) / sigma).to(sample.dtype)


def to_denoised(
    sample: Tensor, velocity: Tensor, sigma: float | Tensor, calc_dtype: torch.dtype = torch.float32
) -> Tensor:
    """``sample - velocity * sigma`` in ``calc_dtype``, in the sample's dtype.

    ``sigma`` is a number or broadcasts: ``[B, N, 1]`` gives every token its own.
    """
    if isinstance(sigma, Tensor):
        sigma = sigma.to(calc_dtype)
    return (sample.to(calc_dtype) - velocity.to(calc_dtype) * sigma).to(sample.dtype)


def timestep_embedding(timesteps: Tensor, width: int = SINUSOID_WIDTH, max_period: float = 10000.0) -> Tensor:
    """Sinusoids ``[R, width]`` of scaled timesteps ``[R]``: cosines first, then sines, in float32."""
    half = width // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * exponents.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` over the last axis, times ``weight`` when given; float32 inside."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()  # torch's own writes x^2 out on a CPU
    normed = x * (square / x.shape[-1] + eps).rsqrt()
    return normed if weight is None else normed * weight


class RMSNorm(nn.RMSNorm):
    """``rms_norm`` over the last axis with a learned weight ``[width]``."""

    eps: float

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def has_doubles(device: torch.device) -> bool:
    """Whether a device has float64; Apple's GPUs have not."""
    return device.type != "mps"


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without it."""
    return torch.float64 if has_doubles(device) else torch.float32


def device_of_doubles(device: torch.device | str | None) -> torch.device:
    """The device where float64 is computed for another: that one, or the host."""
    wanted = torch.device(device or "cpu")
    return wanted if has_doubles(wanted) else torch.device("cpu")
