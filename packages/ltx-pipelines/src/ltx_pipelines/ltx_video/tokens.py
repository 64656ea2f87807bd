"""The tokens of an LTX-Video pass: the latent grid, with the conditions placed in it or as extra tokens before it.

    grid latent [1, C, F, h, w]  ->  tokens [1, N, C], coordinates [1, 3, N], strengths [1, N] when there are conditions

N counts the extra tokens of all conditions, in order, then the grid by frame, row and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.components.patchifiers import VideoLatentPatchifier, get_pixel_coords
from ltx_core.errors import ConditioningError
from ltx_core.types import SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape
from ltx_pipelines.ltx_video.noise import Noise

PATCHIFIER = VideoLatentPatchifier(1)
LEADING_LATENTS = 2  # of a clip placed inside the video: these become extra tokens, the rest go into the grid


@dataclass(frozen=True)
class LTXVCondition:
    """Pictures that the video shows from ``start_frame`` on, at any size.

    At frame 0 they go into the grid. Elsewhere a single picture becomes extra tokens; a clip needs a start that
    divides by 8 and at least 9 frames. Strength 1 holds them fixed (apart from `image_cond_noise_scale`), 0 ignores
    them.
    """

    media: Tensor  # [1, 3, f, H, W] in [-1, 1], f = 8k + 1
    start_frame: int = 0
    strength: float = 1.0

    def check(self, shape: VideoPixelShape, factors: SpatioTemporalScaleFactors) -> None:
        """Refuse a condition that does not fit a video, as ``ConditioningError``."""
        if self.media.ndim != 5 or tuple(self.media.shape[:2]) != (1, 3):
            raise ConditioningError(f"condition media has shape {list(self.media.shape)}, expected [1, 3, f, H, W]")
        if not 0 <= self.strength <= 1:
            raise ConditioningError(f"condition strength is {self.strength}, expected 0 to 1")
        frames = self.media.shape[2]
        if (frames - 1) % factors.time:
            nearest = factors.snap_frames(frames)
            raise ConditioningError(
                f"condition has {frames} frames, expected {factors.time}k+1; nearest valid: {nearest}"
            )
        if self.start_frame < 0 or self.start_frame + frames > shape.frames:
            last = shape.frames - frames
            raise ConditioningError(
                f"condition of {frames} frames starts at {self.start_frame}, expected 0 to {last} in {shape.frames}"
            )
        if frames > 1 and self.start_frame % factors.time:
            nearest = round(self.start_frame / factors.time) * factors.time
            raise ConditioningError(
                f"a clip starts at frame {self.start_frame}, expected a multiple of {factors.time}; nearest: {nearest}"
            )


@dataclass(frozen=True)
class EncodedCondition:
    """A condition as a latent ``[1, C, f, h, w]`` of the grid's height and width."""

    latent: Tensor
    start_frame: int
    strength: float


@dataclass(frozen=True)
class VideoTokens:
    """All tokens of a pass, and what does not change while they are denoised."""

    tokens: Tensor  # [1, N, C]
    pixel_coords: Tensor  # [1, 3, N] float32: pixel frame, row and column where each token starts
    strengths: Tensor | None  # [1, N] float32 in [0, 1], 1 = held; None: nothing is conditioned
    grid: VideoLatentShape

    @property
    def num_extra(self) -> int:
        return self.tokens.shape[1] - self.grid.token_count

    @cached_property
    def latent(self) -> Tensor:
        """The grid ``[1, C, F, h, w]`` without the extra tokens."""
        return PATCHIFIER.unpatchify(self.tokens[:, self.num_extra :], self.grid)

    def positions(self, fps: float) -> Tensor:
        """``[1, 3, N]`` float32: seconds, and pixels."""
        scale = torch.tensor([1.0 / fps, 1.0, 1.0], device=self.pixel_coords.device)
        return self.pixel_coords * scale[:, None]


@dataclass(frozen=True)
class Placement:
    """How latent cells lie in pixels, and where noise comes from."""

    factors: SpatioTemporalScaleFactors
    causal: bool  # the first latent frame covers one pixel frame
    noise: Noise

    def coordinates(self, latent: Tensor, start_frame: int = 0) -> Tensor:
        """Where each cell of ``latent`` starts, ``[1, 3, N]``."""
        cells = PATCHIFIER.get_patch_grid_bounds(VideoLatentShape(*latent.shape), latent.device)
        starts = get_pixel_coords(cells, self.factors, self.causal)[..., 0].to(torch.float32)
        starts[:, 0] += start_frame
        return starts

    def tokens(self, latent: Tensor, conditions: Sequence[EncodedCondition]) -> VideoTokens:
        """The noisy grid ``latent`` with the conditions placed, in order."""
        grid = VideoLatentShape(*latent.shape)
        if not conditions:
            return VideoTokens(PATCHIFIER.patchify(latent), self.coordinates(latent), None, grid)
        latent = latent.clone()
        strengths = latent.new_zeros(grid.mask_shape, dtype=torch.float32)
        extra: list[tuple[Tensor, Tensor, Tensor]] = []
        for condition in conditions:
            inside, first, outside = self._split(condition)
            if inside.shape[2]:
                window = slice(first, first + inside.shape[2])
                latent[:, :, window] = torch.lerp(latent[:, :, window], inside, condition.strength)
                strengths[:, :, window] = condition.strength
            if outside is not None:
                extra.append(self._extra(outside, condition))
        parts = [*extra, (PATCHIFIER.patchify(latent), self.coordinates(latent), strengths.flatten(1))]
        tokens, coordinates, weights = zip(*parts, strict=True)
        return VideoTokens(torch.cat(tokens, 1), torch.cat(coordinates, 2), torch.cat(weights, 1), grid)

    def _split(self, condition: EncodedCondition) -> tuple[Tensor, int, Tensor | None]:
        """What goes into the grid, from which latent frame on, and what becomes extra tokens."""
        latent, start = condition.latent, condition.start_frame
        if start == 0:
            return latent, 0, None
        return (
            latent[:, :, LEADING_LATENTS:],
            start // self.factors.time + LEADING_LATENTS,
            latent[:, :, :LEADING_LATENTS],
        )

    def _extra(self, latent: Tensor, condition: EncodedCondition) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, coordinates and strengths of a soft condition, mixed with noise by its strength."""
        noise = self.noise.draw("condition", tuple(latent.shape), latent)
        tokens = PATCHIFIER.patchify(torch.lerp(noise, latent, condition.strength))
        strengths = torch.full(tokens.shape[:2], condition.strength, dtype=torch.float32, device=tokens.device)
        return tokens, self.coordinates(latent, condition.start_frame), strengths


def resize_video(video: Tensor, height: int, width: int) -> Tensor:
    """``[1, C, F, H, W]`` at another size, each frame bilinearly between pixel centres."""
    if tuple(video.shape[-2:]) == (height, width):
        return video
    frames = video.transpose(1, 2).flatten(0, 1)  # [F, C, H, W]
    frames = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
    return frames.unflatten(0, (video.shape[0], -1)).transpose(1, 2)
