"""The protocol of what latent tools call, and the shapes it speaks of."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape

__all__ = ["AudioLatentShape", "Patchifier", "SpatioTemporalScaleFactors", "VideoLatentShape", "VideoPixelShape"]


class Patchifier(Protocol):
    """Latents ``[B, C, ...]`` to tokens ``[B, N, D]`` and back, and the span of every token."""

    @property
    def patch_size(self) -> int: ...

    def get_token_count(self, shape: Any) -> int: ...

    def patchify(self, latents: Tensor) -> Tensor: ...

    def unpatchify(self, latents: Tensor, output_shape: Any) -> Tensor: ...

    def get_patch_grid_bounds(self, output_shape: Any, device: torch.device | str | None = None) -> Tensor: ...
