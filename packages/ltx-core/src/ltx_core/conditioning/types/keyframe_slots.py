"""Empty keyframes that the model fills in itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltx_core.components.patchifiers import to_seconds
from ltx_core.conditioning.item import append_tokens, check_axes
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.errors import ConditioningError
from ltx_core.types import GeneratedKeyframeLayout, LatentState


@dataclass(frozen=True)
class VideoGeneratedKeyframeSlots:
    """Appends one latent frame of noisy tokens per pixel frame index; each spans that one pixel frame.

    ``initial_keyframes`` ``[B, C, K, H, W]`` seeds the noisy tokens. Needs a transformer with keyframe embeddings.
    ``clear_conditioning`` cuts the results out. Raises ``ConditioningError`` for indices that are empty, not strictly
    increasing or outside the video, and for a second item of this kind.
    """

    pixel_frame_indices: Sequence[int]
    initial_keyframes: Tensor | None = None

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        self._check(latent_state, latent_tools)
        shape = latent_tools.target_shape._replace(frames=len(self.pixel_frame_indices))
        first = latent_state.latent.shape[1]
        device = latent_state.latent.device
        coords = latent_tools.pixel_coords(shape, False, device)  # [B, 3, K*H*W, 2]
        starts = torch.tensor(list(self.pixel_frame_indices), device=device)
        starts = starts.repeat_interleave(latent_tools.tokens_per_frame)
        coords[:, 0] = torch.stack((starts, starts + 1), dim=-1)
        empty = latent_state.latent.new_zeros(shape.batch, coords.shape[2], latent_state.latent.shape[2])
        positions = to_seconds(coords, latent_tools.fps)
        state = append_tokens(latent_state, latent_tools, empty, positions, strength=0.0)
        if self.initial_keyframes is not None:
            seeds = latent_tools.patchifier.patchify(self.initial_keyframes).to(state.latent)
            state = replace(state, latent=torch.cat((state.latent[:, :first], seeds), dim=1))
        marks = state.keyframes_mask
        marks = torch.zeros_like(state.denoise_mask) if marks is None else marks.clone()
        marks[:, first:] = 1
        layout = GeneratedKeyframeLayout(tuple(self.pixel_frame_indices), latent_tools.tokens_per_frame, first)
        return replace(state, keyframes_mask=marks, generated_keyframe_layout=layout)

    def _check(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> None:
        indices = list(self.pixel_frame_indices)
        frames = latent_tools.target_shape.upscale(latent_tools.scale_factors).frames
        if latent_state.generated_keyframe_layout is not None:
            raise ConditioningError("the state already has keyframe slots, expected one slots item per video")
        if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= frames:
            expected = f"strictly increasing frames from 0 to {frames - 1}"
            raise ConditioningError(f"pixel_frame_indices are {indices}, expected {expected}")
        if self.initial_keyframes is not None:
            shape = latent_tools.target_shape._replace(frames=len(indices))
            check_axes("initial_keyframes", self.initial_keyframes.shape, shape, range(5))
