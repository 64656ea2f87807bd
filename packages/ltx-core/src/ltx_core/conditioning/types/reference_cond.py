"""In-context references: a clip or a sound to follow, as extra tokens (IC-LoRA)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ltx_core.components.patchifiers import to_seconds
from ltx_core.conditioning.item import append_tokens, check_axes, check_strength
from ltx_core.conditioning.tools import AudioLatentTools, VideoLatentTools
from ltx_core.errors import ConditioningError, check_least
from ltx_core.types import LatentState, VideoLatentShape


@dataclass(frozen=True)
class VideoConditionByReferenceLatent:
    """Appends the tokens of ``latent`` ``[B, C, f, h, w]`` where they correspond to the target.

    A reference at ``1 / downscale_factor`` of the target's size and of every ``temporal_scale_factor``-th frame gets
    its positions stretched to the target's. The factors are those its LoRA was trained with.
    """

    latent: Tensor
    downscale_factor: int = 1
    temporal_scale_factor: int = 1
    strength: float = 1.0

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        check_strength(self.strength)
        check_axes("the reference latent", self.latent.shape, latent_tools.target_shape, (0, 1))
        for name in ("downscale_factor", "temporal_scale_factor"):
            check_least(name, getattr(self, name), 1, ConditioningError)
        tokens = latent_tools.patchifier.patchify(self.latent)
        positions = self._positions(latent_state, latent_tools)
        return append_tokens(latent_state, latent_tools, tokens, positions, self.strength)

    def _positions(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> Tensor:
        shape, scale = VideoLatentShape.from_torch_shape(self.latent.shape), self.temporal_scale_factor
        coords = latent_tools.pixel_coords(shape, latent_tools.causal_fix, latent_state.latent.device)
        positions = to_seconds(coords, latent_tools.fps / scale)
        if scale != 1:
            first_end = latent_state.positions[:, 0, 0, 1].view(-1, 1, 1)
            positions[:, 0] = (positions[:, 0] - (scale - 1) * first_end).clamp(min=0)
        positions[:, 1:] *= self.downscale_factor
        return positions


@dataclass(frozen=True)
class AudioConditionByReferenceLatent:
    """Appends audio tokens ``patchified`` ``[B, T, C*M]`` at ``positions`` ``[B, 1, T, 2]`` in seconds.

    A reference that is to be heard but not repeated lies before time 0 (``before_the_start``).
    """

    patchified: Tensor
    positions: Tensor
    strength: float = 1.0

    def apply_to(self, latent_state: LatentState, latent_tools: AudioLatentTools) -> LatentState:
        check_strength(self.strength)
        batch, _, width = latent_state.latent.shape
        check_axes("the reference tokens", self.patchified.shape, (batch, 0, width), (0, 2))
        check_axes("the reference positions", self.positions.shape, (batch, 1, self.patchified.shape[1], 2), range(4))
        return append_tokens(latent_state, latent_tools, self.patchified, self.positions, self.strength)


def before_the_start(positions: Tensor, gap: float = 0.04) -> Tensor:
    """Positions ``[B, 1, T, 2]`` moved to end ``gap`` seconds (one audio latent frame) before time 0."""
    return positions - positions[:, :, -1, 1].max() - gap
