"""Show the model a picture or a clip at a moment of the video, as extra tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltx_core.components.patchifiers import to_seconds
from ltx_core.components.strength import Curve
from ltx_core.conditioning.item import append_tokens, check_axes, check_strength
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.types import LatentState, VideoLatentShape


@dataclass(frozen=True)
class VideoConditionByKeyframeIndex:
    """Appends the tokens of ``keyframes`` ``[B, C, f, h, w]`` at pixel frame ``frame_idx``.

    ``strength`` from 0 to 1 is how firmly they are held: 1 unchanged, 0 not at all. ``num_pixel_frames`` is the length
    of the clip that was encoded; 1 gives every token the span of one pixel frame. With a negative ``frame_idx`` they
    stand before the video and are seen by all of it. ``release`` is how the strength falls with sigma: not
    (``"hold"``), or to 0 along a ``"linear"`` or ``"smoothstep"`` curve. ``apply_to`` raises ``ConditioningError`` for
    another batch or channel count than the target's and for a strength out of range.
    """

    keyframes: Tensor
    frame_idx: int
    strength: float = 1.0
    num_pixel_frames: int = 1
    release: Curve = "hold"

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        check_strength(self.strength)
        check_axes("keyframes", self.keyframes.shape, latent_tools.target_shape, (0, 1))
        tokens = latent_tools.patchifier.patchify(self.keyframes)
        positions = self.positions(latent_tools, latent_state.latent.device)
        return append_tokens(latent_state, latent_tools, tokens, positions, self.strength, self.release)

    def positions(self, latent_tools: VideoLatentTools, device: torch.device | str | None = None) -> Tensor:
        """Spans of the tokens, float32 ``[B, 3, f*h*w, 2]``: seconds, rows, columns."""
        shape = VideoLatentShape.from_torch_shape(self.keyframes.shape)
        coords = latent_tools.pixel_coords(shape, latent_tools.causal_fix and self.frame_idx == 0, device)
        coords[:, 0] += self.frame_idx
        if self.num_pixel_frames == 1:
            coords[:, 0, :, 1] = coords[:, 0, :, 0] + 1
        return to_seconds(coords, latent_tools.fps)
