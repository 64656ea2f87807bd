"""Hold whole latent frames at given content."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ltx_core.conditioning.item import check_axes, check_strength
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.errors import ConditioningError
from ltx_core.types import LatentState


@dataclass(frozen=True)
class VideoConditionByLatentIndex:
    """Replaces the clean tokens of the latent frames from ``latent_idx`` on, in place.

    ``latent`` is ``[B, C, f, H, W]`` of the target's size. ``strength`` from 0 to 1 is how firmly it is held: 1
    unchanged, 0 not at all. The noisy tokens follow when noise is mixed in. ``apply_to`` raises ``ConditioningError``
    for another size, for frames beyond the target and for a strength out of range.
    """

    latent: Tensor
    strength: float = 1.0
    latent_idx: int = 0

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        check_strength(self.strength)
        check_axes("the latent", self.latent.shape, latent_tools.target_shape, (0, 1, 3, 4))
        last = latent_tools.target_shape.frames - self.latent.shape[2]
        if not 0 <= self.latent_idx <= last:
            raise ConditioningError(f"latent_idx is {self.latent_idx}, expected 0 to {last}")
        tokens = latent_tools.patchifier.patchify(self.latent)
        start = self.latent_idx * latent_tools.tokens_per_frame
        span = slice(start, start + tokens.shape[1])
        clean, mask = latent_state.clean_latent.clone(), latent_state.denoise_mask.clone()
        clean[:, span] = tokens.to(clean)
        mask[:, span] = 1 - self.strength
        return replace(latent_state, clean_latent=clean, denoise_mask=mask)
