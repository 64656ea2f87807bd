"""Begin a stream with what another one ended with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ltx_core.components.strength import CURVES, Curve
from ltx_core.conditioning.item import check_axes, check_strength
from ltx_core.conditioning.tools import LatentTools
from ltx_core.errors import ConditioningError
from ltx_core.types import LatentState


@dataclass(frozen=True)
class ConditionByStart:
    """Holds the first latent frames of either stream in place, each by a strength of its own.

    ``latent`` is ``[B, C, O, H, W]`` or ``[B, C, O, M]``, ``strengths`` has O entries; ``release`` is how strengths
    below 1 fall with sigma. Raises ``ConditioningError`` for another size.
    """

    latent: Tensor
    strengths: Sequence[float]
    release: Curve = "hold"

    def apply_to(self, latent_state: LatentState, latent_tools: LatentTools[Any]) -> LatentState:
        shape = latent_tools.target_shape
        check_axes("the start", self.latent.shape, shape, [axis for axis in range(len(shape)) if axis != 2])
        if not self.latent.shape[2] == len(self.strengths) <= shape.frames:
            frames = f"{self.latent.shape[2]} frames and {len(self.strengths)} strengths"
            raise ConditioningError(f"the start has {frames}, expected as many of both, at most {shape.frames}")
        for strength in self.strengths:
            check_strength(strength)
        tokens = latent_tools.patchifier.patchify(self.latent)
        count = tokens.shape[1]
        clean, mask = latent_state.clean_latent.clone(), latent_state.denoise_mask.clone()
        release = torch.zeros_like(mask) if latent_state.release is None else latent_state.release.clone()
        free = mask.new_tensor([1 - strength for strength in self.strengths])
        free = free.repeat_interleave(count // len(self.strengths))[:, None]
        clean[:, :count], mask[:, :count] = tokens.to(clean), free
        release[:, :count] = (free > 0) * CURVES.index(self.release)
        falls = CURVES.index(self.release) > 0 and min(self.strengths) < 1  # known without reading the device
        released = release if falls or latent_state.release is not None else None
        return replace(latent_state, clean_latent=clean, denoise_mask=mask, release=released)
