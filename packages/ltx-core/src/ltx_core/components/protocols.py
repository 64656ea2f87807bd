"""Protocols of the parts that the sampling loop and the latent tools call."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape

__all__ = [
    "AudioLatentShape",
    "DiffusionStep",
    "Guider",
    "Patchifier",
    "Scheduler",
    "SpatioTemporalScaleFactors",
    "VideoLatentShape",
    "VideoPixelShape",
]


class Patchifier(Protocol):
    """Latents ``[B, C, ...]`` to tokens ``[B, N, D]`` and back, and the span of every token."""

    @property
    def patch_size(self) -> int: ...

    def get_token_count(self, shape: Any) -> int: ...

    def patchify(self, latents: Tensor) -> Tensor: ...

    def unpatchify(self, latents: Tensor, output_shape: Any) -> Tensor: ...

    def get_patch_grid_bounds(self, output_shape: Any, device: torch.device | str | None = None) -> Tensor: ...


class Scheduler(Protocol):
    """Makes a sigma schedule: float32 ``[steps + 1]`` on the CPU, falling from about 1 to 0."""

    def execute(self, steps: int) -> Tensor: ...


class Guider(Protocol):
    """A correction to be added to the conditional prediction."""

    def delta(self, cond: Tensor, uncond: Tensor) -> Tensor: ...

    def enabled(self) -> bool: ...


class DiffusionStep(Protocol):
    """Moves a sample from ``sigmas[step_index]`` to ``sigmas[step_index + 1]`` given its x0 prediction."""

    def step(self, sample: Tensor, denoised_sample: Tensor, sigmas: Tensor, step_index: int) -> Tensor: ...
