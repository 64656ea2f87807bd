"""Hold what is known of a clip in place, token by token; the rest is made."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltx_core.components.strength import CURVES, Curve
from ltx_core.conditioning.item import check_axes
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.errors import ConditioningError, check_shape
from ltx_core.types import LatentState


@dataclass(frozen=True)
class VideoConditionBySeen:
    """Holds the tokens of ``latent`` ``[B, C, F, H, W]`` where ``seen`` ``[F, H, W]`` is true, from frame 1 on.

    ``release`` is how the hold falls with sigma. Raises ``ConditioningError`` for another size than the target's.
    """

    latent: Tensor
    seen: Tensor
    release: Curve = "hold"

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        shape = latent_tools.target_shape
        check_axes("the latent", self.latent.shape, shape, (0, 1, 2, 3, 4))
        check_shape("seen", self.seen.shape, shape[2:], ConditioningError)
        tokens = latent_tools.patchifier.patchify(self.latent).to(latent_state.clean_latent)
        seen = self.seen.flatten()[None, :, None].to(tokens.device).clone()
        seen[:, : latent_tools.tokens_per_frame] = False
        count = tokens.shape[1]
        mask, clean = latent_state.denoise_mask.clone(), latent_state.clean_latent.clone()
        release = torch.zeros_like(mask) if latent_state.release is None else latent_state.release.clone()
        clean[:, :count] = torch.where(seen, tokens, clean[:, :count])
        mask[:, :count] = torch.where(seen, 0.0, mask[:, :count])
        release[:, :count] = torch.where(seen, float(CURVES.index(self.release)), release[:, :count])
        released = release if bool(release.any()) else None
        return replace(latent_state, clean_latent=clean, denoise_mask=mask, release=released)
