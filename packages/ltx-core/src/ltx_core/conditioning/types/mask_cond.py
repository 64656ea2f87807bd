"""Hold the masked part of a video at given content."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ltx_core.conditioning.item import check_axes, check_strength
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.types import LatentState


@dataclass(frozen=True)
class VideoConditionByMask:
    """Blends ``latent`` ``[B, C, F, H, W]`` into the clean tokens by ``mask`` ``[B, F, H, W]``, 1 = conditioned.

    Comes before items that append tokens; raises ``ConditioningError`` after them.
    """

    latent: Tensor
    mask: Tensor
    strength: float = 1.0

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        check_strength(self.strength)
        shape = latent_tools.target_shape
        check_axes("the latent", self.latent.shape, shape, range(5))
        check_axes("the mask", self.mask.shape, (shape.batch, *shape[2:]), range(4))
        latent_tools.check_target_tokens(latent_state, "a mask condition")
        patchify = latent_tools.patchifier.patchify
        tokens = patchify(self.latent).to(latent_state.latent)
        m = patchify(self.mask[:, None].to(tokens))
        return replace(
            latent_state,
            clean_latent=latent_state.clean_latent * (1 - m) + tokens * m,
            denoise_mask=latent_state.denoise_mask * (1 - m) + (1 - self.strength) * m,
        )
