"""Latent tools: the token sequence of one stream before anything is known of it, and the way back to a latent.

target shape -> create_initial_state -> conditioning items, noise, sampling -> clear_conditioning -> unpatchify
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords, to_seconds
from ltx_core.components.protocols import Patchifier
from ltx_core.errors import ConditioningError, check_shape
from ltx_core.types import (
    AUDIO_MEL_BINS,
    VIDEO_LATENT_CHANNELS,
    AudioLatentShape,
    LatentState,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
    VideoPixelShape,
)

__all__ = ["AudioLatentTools", "LatentState", "LatentTools", "VideoLatentTools", "latent_tools"]

Shape = TypeVar("Shape", VideoLatentShape, AudioLatentShape)


@dataclass(frozen=True)
class LatentTools(Generic[Shape]):
    """The part that video and audio tools share. ``target_shape`` is the latent to be made."""

    patchifier: Patchifier
    target_shape: Shape

    @property
    def token_count(self) -> int:
        """Tokens of the target; conditioning items may append more."""
        return self.patchifier.get_token_count(self.target_shape)

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """Float32 spans ``[B, axes, N, 2]`` of the target's tokens."""
        return self.patchifier.get_patch_grid_bounds(self.target_shape, device)

    def create_initial_state(
        self, device: torch.device | str, dtype: torch.dtype, initial_latent: Tensor | None = None
    ) -> LatentState:
        """Zeros, or ``initial_latent`` as it is, in tokens; everything is to be denoised.

        Raises ``ConditioningError`` when ``initial_latent`` has not exactly the target's shape.
        """
        shape = self.target_shape.to_torch_shape()
        if initial_latent is None:
            initial_latent = torch.zeros(shape, device=device, dtype=dtype)
        mask = torch.ones(self.target_shape.mask_shape, device=device)
        state = LatentState(initial_latent, mask, self.positions(device), clean_latent=initial_latent.clone())
        return self.patchify(state)

    def patchify(self, state: LatentState) -> LatentState:
        """Latent, clean latent and masks to tokens; positions and attention mask stay."""
        check_shape("the latent", state.latent.shape, self.target_shape, ConditioningError)
        tokens: dict[str, Any] = {name: self.patchifier.patchify(x) for name, x in _of_tokens(state).items()}
        return replace(state, **tokens)

    def unpatchify(self, state: LatentState) -> LatentState:
        """The inverse of ``patchify``; appended tokens must be gone."""
        self.check_target_tokens(state, "unpatchify")
        shape, mask = self.target_shape, self.target_shape.mask_shape
        shapes = {"latent": shape, "clean_latent": shape, "denoise_mask": mask, "keyframes_mask": mask}
        spatial: dict[str, Any] = {}
        for name, x in _of_tokens(state).items():
            spatial[name] = self.patchifier.unpatchify(x, shapes[name])
        return replace(state, **spatial)

    def clear_conditioning(self, state: LatentState) -> LatentState:
        """Drop the appended tokens and all masks."""
        n = self.token_count
        return replace(
            state,
            latent=state.latent[:, :n],
            clean_latent=state.clean_latent[:, :n],
            positions=state.positions[:, :, :n],
            denoise_mask=torch.ones_like(state.denoise_mask[:, :n]),
            attention_mask=None,
            keyframes_mask=None,
            release=None,
        )

    def check_target_tokens(self, state: LatentState, what: str) -> None:
        """Refuse a state that holds appended tokens."""
        if (count := state.latent.shape[1]) != self.token_count:
            raise ConditioningError(f"{what} is given {count} tokens, expected the target's {self.token_count} alone")


def _of_tokens(state: LatentState) -> dict[str, Tensor]:
    """The tensors that are spatial before ``patchify`` and after ``unpatchify``, by name."""
    named = {"latent": state.latent, "clean_latent": state.clean_latent, "denoise_mask": state.denoise_mask}
    return named if state.keyframes_mask is None else {**named, "keyframes_mask": state.keyframes_mask}


@dataclass(frozen=True)
class VideoLatentTools(LatentTools[VideoLatentShape]):
    """Tools for a video latent of ``fps`` pictures per second.

    ``patchifier`` cuts tokens, ``target_shape`` is the latent to be made, ``scale_factors`` are the pixels per latent
    cell: by default 8 frames and 32 x 32. ``causal_fix``: the first latent frame holds one pixel frame, as with every
    causal video VAE.
    """

    patchifier: VideoLatentPatchifier
    fps: float
    scale_factors: SpatioTemporalScaleFactors = SpatioTemporalScaleFactors(8, 32, 32)
    causal_fix: bool = True

    @property
    def tokens_per_frame(self) -> int:
        return self.patchifier.get_token_count(self.target_shape._replace(frames=1))

    def pixel_coords(
        self, shape: VideoLatentShape, causal_fix: bool, device: torch.device | str | None = None
    ) -> Tensor:
        """Integer spans ``[B, 3, N, 2]`` of any latent's tokens in pixel frames, rows and columns."""
        bounds = self.patchifier.get_patch_grid_bounds(shape, device)
        return get_pixel_coords(bounds, self.scale_factors, causal_fix)

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        return to_seconds(self.pixel_coords(self.target_shape, self.causal_fix, device), self.fps)

    def create_initial_state(
        self, device: torch.device | str, dtype: torch.dtype, initial_latent: Tensor | None = None
    ) -> LatentState:
        """As for any stream; the tokens of latent frame 0 are marked as a standalone pixel frame."""
        state = super().create_initial_state(device, dtype, initial_latent)
        keyframes = torch.zeros_like(state.denoise_mask)
        keyframes[:, : self.tokens_per_frame] = 1
        return replace(state, keyframes_mask=keyframes)

    def clear_conditioning(self, state: LatentState) -> LatentState:
        """Drop the appended tokens; what was generated in keyframe slots becomes ``generated_keyframes``.

        A generated keyframe is decoded as a clip of its own of one frame.
        """
        return replace(super().clear_conditioning(state), generated_keyframes=self._generated_keyframes(state))

    def _generated_keyframes(self, state: LatentState) -> Tensor | None:
        """The slots as latent frames ``[B, C, K, H, W]``."""
        layout = state.generated_keyframe_layout
        if layout is None:
            return state.generated_keyframes
        own, end, count = layout.tokens_per_keyframe, layout.token_slice.stop, state.latent.shape[1]
        if own != self.tokens_per_frame:
            raise ConditioningError(f"a keyframe slot has {own} tokens, expected {self.tokens_per_frame}")
        if end > count:
            raise ConditioningError(f"keyframe slots end at token {end}, expected at most {count}")
        shape = self.target_shape._replace(frames=layout.num_keyframes)
        return self.patchifier.unpatchify(state.latent[:, layout.token_slice], shape)


@dataclass(frozen=True)
class AudioLatentTools(LatentTools[AudioLatentShape]):
    """Tools for an audio latent.

    ``patchifier`` cuts tokens, ``target_shape`` is the latent to be made. ``spans`` are the seconds of each of its
    tokens where it is a part of a longer sound; None: it starts at 0, or at the patchifier's ``shift``.
    """

    patchifier: AudioPatchifier
    spans: tuple[tuple[float, float], ...] | None = None

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        if self.spans is None:
            return super().positions(device)
        return torch.tensor(self.spans, device=device).expand(self.target_shape.batch, 1, -1, -1).contiguous()


def latent_tools(
    shape: VideoPixelShape,
    streams: Collection[str],
    scale_factors: SpatioTemporalScaleFactors,
    channels: int = VIDEO_LATENT_CHANNELS,
    mel_bins: int = AUDIO_MEL_BINS,
) -> dict[str, LatentTools[Any]]:
    """The tools of a clip's streams ("video", "audio"), video first; ``channels`` are those of a video latent."""
    tools: dict[str, LatentTools[Any]] = {}
    if "video" in streams:
        video = VideoLatentShape.from_pixel_shape(shape, channels, scale_factors)
        tools["video"] = VideoLatentTools(VideoLatentPatchifier(), video, shape.fps, scale_factors)
    if "audio" in streams:
        audio = AudioLatentShape.from_video_pixel_shape(shape, mel_bins=mel_bins)
        tools["audio"] = AudioLatentTools(AudioPatchifier(), audio)
    return tools
