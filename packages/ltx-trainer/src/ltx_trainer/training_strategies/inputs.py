"""Values that pass between a strategy, the transformer and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.conditioning.types.keyframe_cond import VideoConditionByKeyframeIndex
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape

DEFAULT_FPS = 24.0
Source = Mapping[str, Any]
Batch = Mapping[str, Source]


@dataclass(frozen=True)
class Tokens:
    """The clean tokens of one latent, where they lie, and the grid they come from."""

    clean: Tensor  # [B, N, C]
    positions: Tensor  # [B, 3 or 1, N, 2] seconds, and pixels for video
    grid: tuple[int, int, int]  # latent frames, rows, columns; audio: (N, 1, 1)

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[1] * self.grid[2]


@dataclass(frozen=True)
class ModalityInputs:
    """One modality, ready for the transformer and the loss. References stand in front of the target's tokens."""

    latent: Tensor  # [B, T, C] noisy where generated, clean where given
    sigma: Tensor  # [B]
    timesteps: Tensor  # [B, T] sigma per token, 0 where given
    positions: Tensor  # [B, axes, T, 2]
    targets: Tensor | None  # [B, N, C] velocity of the target part; None = no loss
    loss_mask: Tensor  # [B, T] true where the loss is taken
    present: Tensor | None = None  # [B] false where an example lacks this modality; None = all have it
    loss_weight: Tensor | None = None  # [B, N] how much the target's tokens count; None: all alike
    tokens_per_frame: int = 0  # of the target
    reference_tokens: int = 0  # in front of the target's

    def with_reference(self, reference: Tokens) -> ModalityInputs:
        """Put clean tokens in front."""
        count = reference.clean.shape[1]
        zeros = self.timesteps.new_zeros(self.timesteps.shape[0], count)
        return replace(
            self,
            latent=torch.cat((reference.clean.to(self.latent.dtype), self.latent), dim=1),
            timesteps=torch.cat((zeros, self.timesteps), dim=1),
            positions=torch.cat((reference.positions, self.positions), dim=2),
            loss_mask=torch.cat((zeros.bool(), self.loss_mask), dim=1),
            reference_tokens=self.reference_tokens + count,
        )

    def first_frame_mask(self) -> Tensor:
        """``[B, T, 1]``, 1 at the tokens of the target's first latent frame, which holds one single pixel frame."""
        mask = self.latent.new_zeros(*self.latent.shape[:2], 1)
        mask[:, self.reference_tokens : self.reference_tokens + self.tokens_per_frame] = 1
        return mask


@dataclass(frozen=True)
class TrainingInputs:
    """Inputs of one batch per modality, and the reference factors found in it."""

    modalities: Mapping[str, ModalityInputs]
    reference_factors: tuple[int, int] | None = None  # spatial, temporal
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    balance: bool = False  # losses are divided by the mean square of their targets


@dataclass(frozen=True)
class Losses:
    """Element losses: ``total`` [B] is what is minimised, weighted; ``modalities`` [B] each are plain."""

    total: Tensor
    modalities: Mapping[str, Tensor]


def video_tokens(
    source: Source, factors: SpatioTemporalScaleFactors, fps: float | None = None, causal: bool = True
) -> Tokens:
    """Tokens of a stored video latent ``[B, C, F, H, W]``; its own ``fps`` unless one is given.

    ``causal``: the first latent frame stands for one pixel frame.
    """
    latents, tools = source["latents"], video_tools(source, factors, fps, causal)
    grid = tools.target_shape.to_torch_shape()[2:]
    return Tokens(tools.patchifier.patchify(latents), tools.positions(latents.device), (grid[0], grid[1], grid[2]))


def video_tools(
    source: Source, factors: SpatioTemporalScaleFactors, fps: float | None = None, causal: bool = True
) -> VideoLatentTools:
    """The tools with which generation would make a stored video latent; the rest as for `video_tokens`."""
    if fps is None:
        stored = source.get("fps")
        fps = DEFAULT_FPS if stored is None else float(stored.flatten()[0])
    shape = VideoLatentShape.from_torch_shape(source["latents"].shape)
    return VideoLatentTools(VideoLatentPatchifier(), shape, fps, factors, causal)


def keyframe_tokens(pictures: Tensor, frames: Sequence[int], tools: VideoLatentTools) -> Tokens:
    """Tokens of pictures ``[B, C, H, W]``, one of each example, at their pixel frames, as generation appends them."""
    latents = pictures.unsqueeze(2)
    items = [VideoConditionByKeyframeIndex(one[None], frame) for one, frame in zip(latents, frames, strict=True)]
    positions = torch.cat([item.positions(tools, pictures.device) for item in items])
    return Tokens(tools.patchifier.patchify(latents), positions, (1, pictures.shape[2], pictures.shape[3]))


def audio_tokens(source: Source) -> Tokens:
    """Tokens of a stored audio latent ``[B, C, T, M]``."""
    latents: Tensor = source["latents"]
    shape = AudioLatentShape.from_torch_shape(latents.shape)
    patchifier = AudioPatchifier()
    positions = patchifier.get_patch_grid_bounds(shape, latents.device)
    return Tokens(patchifier.patchify(latents), positions, (shape.frames, 1, 1))


def velocity_inputs(tokens: Tokens, sigma: Tensor, noise: Tensor) -> ModalityInputs:
    """All tokens noised to their example's sigma; the target is the velocity ``noise - clean``."""
    clean, weight = tokens.clean, sigma.view(-1, 1, 1)
    batch, count = clean.shape[:2]
    return ModalityInputs(
        latent=(1 - weight) * clean + weight * noise,
        sigma=sigma,
        timesteps=sigma.view(-1, 1).expand(batch, count),
        positions=tokens.positions,
        targets=noise - clean,
        loss_mask=torch.ones(batch, count, dtype=torch.bool, device=clean.device),
        tokens_per_frame=tokens.tokens_per_frame,
    )


def frozen_inputs(tokens: Tokens) -> ModalityInputs:
    """A modality that is only attended to: clean, sigma 0, no loss, no draw."""
    batch, count = tokens.clean.shape[:2]
    zeros = torch.zeros(batch, count, device=tokens.clean.device)
    return ModalityInputs(
        tokens.clean,
        zeros[:, 0],
        zeros,
        tokens.positions,
        targets=None,
        loss_mask=zeros.bool(),
        tokens_per_frame=tokens.tokens_per_frame,
    )


def give_tokens(inputs: ModalityInputs, clean: Tensor, given: Tensor) -> ModalityInputs:
    """Hold the tokens of ``given`` ``[B, N]`` at their clean value: timestep 0, no loss."""
    return replace(
        inputs,
        latent=torch.where(given.unsqueeze(-1), clean.to(inputs.latent.dtype), inputs.latent),
        timesteps=torch.where(given, torch.zeros_like(inputs.timesteps), inputs.timesteps),
        loss_mask=inputs.loss_mask & ~given,
    )


def masked_velocity_loss(prediction: Tensor, inputs: ModalityInputs) -> Tensor:
    """Mean squared error over the tokens of the loss mask, per example ``[B]``; 0 where it is empty.

    ``prediction`` ``[B, T, C]`` covers references too; the targets are its last part.
    """
    targets = inputs.targets
    assert targets is not None
    count = targets.shape[1]
    mask = inputs.loss_mask[:, -count:].unsqueeze(-1).to(torch.float32)
    if inputs.loss_weight is not None:
        mask = mask * inputs.loss_weight.to(mask).unsqueeze(-1)
    squared = (prediction[:, -count:].float() - targets.float()).square() * mask
    return squared.mean(dim=(1, 2)) / mask.mean(dim=(1, 2)).clamp(min=1e-8)
