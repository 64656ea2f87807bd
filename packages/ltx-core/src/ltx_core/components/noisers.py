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
    """Fills the noisy tokens of a state.

    Numbers are drawn from ``generator`` on its device, then moved to the tokens. One serves a whole call: video first,
    then audio, stage by stage.
    """

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


#: Kinds of device that draw random numbers themselves; for others they are drawn on the host.
DRAWING = ("cpu", "cuda", "mps", "xpu")


def seeded_generator(device: torch.device, seed: int) -> torch.Generator:
    """A generator on ``device``, or on the host where the device has none."""
    return torch.Generator(device if device.type in DRAWING else "cpu").manual_seed(seed)


def plain_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise in the dtype of ``like``, on its device; drawn where ``generator`` is."""
    return draw(like, generator, like.dtype).to(like.device)


def draw(like: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Standard normal noise of the shape of ``like``, where ``generator`` is."""
    return torch.randn(like.shape, dtype=dtype, device=generator.device, generator=generator)


def normalized_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise ``[B, N, D]`` in double precision with mean 0 and standard deviation 1 in every batch item."""
    noise = draw(like, generator, widest_dtype(like.device)).to(like.device)
    noise = (noise - noise.mean()) / noise.std()
    return (noise - noise.mean(dim=(-2, -1), keepdim=True)) / noise.std(dim=(-2, -1), keepdim=True)
