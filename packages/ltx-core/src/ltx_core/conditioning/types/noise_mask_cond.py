"""Make a stretch of time anew and hold the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ltx_core.components.patchifiers import to_seconds
from ltx_core.conditioning.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import LatentState


@dataclass(frozen=True)
class TemporalRegionMask:
    """Denoises exactly the tokens whose time span overlaps ``[start_time, end_time)`` seconds.

    Video spans are in pictures at ``fps``. Comes before items that append tokens; raises ``ConditioningError`` after
    them.
    """

    start_time: float
    end_time: float
    fps: float

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools | AudioLatentTools) -> LatentState:
        latent_tools.check_target_tokens(latent_state, "a region mask")
        device = latent_state.denoise_mask.device
        if isinstance(latent_tools, VideoLatentTools):
            coords = latent_tools.pixel_coords(latent_tools.target_shape, latent_tools.causal_fix, device)
            spans = to_seconds(coords, self.fps)[:, 0]
        else:
            spans = latent_tools.positions(device)[:, 0]  # [B, N, 2]
        inside = (spans[..., 1] > self.start_time) & (spans[..., 0] < self.end_time)
        return replace(latent_state, denoise_mask=inside[..., None].to(latent_state.denoise_mask))
