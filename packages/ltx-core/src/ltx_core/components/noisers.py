"""Noise: the start of a stage, and what stochastic samplers add on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltx_core.types import LatentState
from ltx_core.utils import widest_dtype

#: (like, generator) -> noise of the shape of ``like``, on its device.
NoiseSource = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class GaussianNoiser:
    """Fills the noisy tokens of a state. One generator serves a whole call: video first, then audio, stage by stage."""

    generator: torch.Generator

    def __call__(self, latent_state: LatentState, noise_scale: float = 1.0) -> LatentState:
        """Mix noise into ``latent`` by ``noise_scale``, then hold tokens at ``clean_latent`` by their mask.

        One draw in the latent's dtype for all tokens, also appended ones; mixed in float32.
        """
        latent = latent_state.latent
        noise = plain_noise(latent, self.generator)
        noisy = torch.lerp(latent.float(), noise.float(), noise_scale)
        held = torch.lerp(latent_state.clean_latent.float(), noisy, latent_state.denoise_mask.float())
        return replace(latent_state, latent=held.to(latent.dtype))


def plain_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise in the dtype of ``like``."""
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def normalized_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise ``[B, N, D]`` in double precision with mean 0 and standard deviation 1 in every batch item."""
    noise = torch.randn(like.shape, dtype=widest_dtype(like.device), device=like.device, generator=generator)
    noise = (noise - noise.mean()) / noise.std()
    return (noise - noise.mean(dim=(-2, -1), keepdim=True)) / noise.std(dim=(-2, -1), keepdim=True)
