"""Between a latent state and the transformer: noise levels per token on the way in, held tokens on the way out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ltx_core.model.transformer.masks import StrengthGroups
from ltx_core.model.transformer.modality import Modality, TimestepGroups
from ltx_core.types import LatentState

#: The streams of a stage by name, video before audio; either may be absent.
States = Mapping[str, LatentState]


def modality_from_latent_state(
    state: LatentState,
    context: Tensor,
    sigma: Tensor,
    enabled: bool = True,
    mask_groups: TimestepGroups | None = None,
    strength_groups: StrengthGroups | None = None,
) -> Modality:
    """The transformer's input for one stream at noise level ``sigma`` ``[B]``, 0 for a frozen stream.

    ``mask_groups`` are those of the state's denoise mask, where all samples share one sigma, ``strength_groups`` those
    of its attention mask.
    """
    sigma = torch.zeros_like(sigma) if state.frozen else sigma
    groups = None if mask_groups is None else mask_groups.scale_by(sigma[:1])
    return Modality(
        latent=state.latent,
        sigma=sigma,
        timesteps=timesteps_from_mask(state.denoise_mask, sigma) if groups is None else groups.timesteps,
        timestep_groups=groups,
        positions=state.positions,
        context=context,
        enabled=enabled,
        attention_mask=state.attention_mask,
        strength_groups=strength_groups,
        keyframes_mask=state.keyframes_mask,
    )


def timesteps_from_mask(denoise_mask: Tensor, sigma: Tensor | float) -> Tensor:
    """Noise level of every token ``[B, N, 1]``: the mask times sigma, one number or ``[B]``."""
    if isinstance(sigma, Tensor) and sigma.ndim:
        sigma = sigma.view(-1, *[1] * (denoise_mask.ndim - 1))
    return denoise_mask * sigma


def post_process_latent(denoised: Tensor, denoise_mask: Tensor, clean: Tensor) -> Tensor:
    """The x0 prediction with held tokens put back to their clean content, by the mask; in the prediction's dtype."""
    return (denoised * denoise_mask + clean.float() * (1 - denoise_mask)).to(denoised.dtype)


def sigma_for(state: LatentState, sigma: Tensor) -> Tensor:
    """A 0-d CPU sigma as ``[B]`` on the state's device, filled there: nothing is copied and nothing waits."""
    return torch.full((state.latent.shape[0],), float(sigma), dtype=sigma.dtype, device=state.latent.device)
