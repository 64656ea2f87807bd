"""Latents to tokens and back, and where in space and time every token lies.

    video latent [B, C, F, H, W]  ->  tokens [B, F*H*W / p^2, C*p^2], positions [B, 3, N, 2] = (seconds, row, column)
    audio latent [B, C, T, M]     ->  tokens [B, T, C*M],             positions [B, 1, N, 2] = (seconds,)

A position is a span ``[start, end)``. Tokens run over frame, then row, then column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltx_core.errors import ConfigError, check_least
from ltx_core.types import (
    AUDIO_HOP_LENGTH,
    AUDIO_LATENT_DOWNSAMPLE_FACTOR,
    AUDIO_SAMPLE_RATE,
    AudioLatentShape,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
)

__all__ = [
    "AudioLatentShape",
    "AudioPatchifier",
    "VideoLatentPatchifier",
    "VideoLatentShape",
    "get_pixel_coords",
    "to_seconds",
]


@dataclass(frozen=True)
class VideoLatentPatchifier:
    """Cuts a video latent into patches of one frame and ``patch_size`` x ``patch_size`` latent cells, one token each.

    Published models take 1. Raises ``ConfigError`` for a size below 1.
    """

    patch_size: int = 1

    def __post_init__(self) -> None:
        check_least("patch_size", self.patch_size, 1)

    def get_token_count(self, shape: VideoLatentShape) -> int:
        """Tokens of a latent; with ``frames = k`` the number of tokens before latent frame k."""
        return shape.token_count // self.patch_size**2

    def patchify(self, latents: Tensor) -> Tensor:
        """``[B, C, F, H*p, W*p] -> [B, F*H*W, C*p*p]``; within a token: channel, patch row, patch column."""
        p = self.patch_size
        if p == 1:
            return latents.flatten(2).transpose(1, 2).contiguous()
        if latents.shape[-2] % p or latents.shape[-1] % p:
            size = tuple(latents.shape[-2:])
            raise ConfigError(f"latent height x width is {size}, expected multiples of patch_size {p}")
        b, c, f, h, w = latents.shape
        patches = latents.reshape(b, c, f, h // p, p, w // p, p)
        return patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, f * (h // p) * (w // p), c * p * p)

    def unpatchify(self, latents: Tensor, output_shape: VideoLatentShape) -> Tensor:
        """``[B, F*H*W, C*p*p] -> [B, C, F, H*p, W*p] = output_shape``."""
        p = self.patch_size
        b, c, f, h, w = output_shape
        patches = latents.reshape(b, f, h // p, w // p, c, p, p)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(b, c, f, h, w).contiguous()

    def get_patch_grid_bounds(self, output_shape: VideoLatentShape, device: torch.device | str | None = None) -> Tensor:
        """Span of every token in latent cells: int64 ``[B, 3, N, 2]``, axis 1 = (frame, row, column)."""
        if not isinstance(output_shape, VideoLatentShape):
            raise ConfigError(f"the shape is {type(output_shape).__name__}, expected VideoLatentShape")
        sizes = (1, self.patch_size, self.patch_size)
        extents = (output_shape.frames, output_shape.height, output_shape.width)
        axes = [torch.arange(0, n, step, device=device) for n, step in zip(extents, sizes, strict=True)]
        starts = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # [3, N]
        ends = starts + torch.tensor(sizes, device=device).unsqueeze(1)
        bounds = torch.stack((starts, ends), dim=-1)  # [3, N, 2]
        return bounds.expand(output_shape.batch, -1, -1, -1).contiguous()


def get_pixel_coords(
    latent_coords: Tensor, scale_factors: SpatioTemporalScaleFactors, causal_fix: bool = False
) -> Tensor:
    """Spans in latent cells to spans in pixel frames, rows and columns; ``[B, 3, N, 2]``, dtype kept.

    With ``causal_fix`` latent frame 0 covers pixel frame 0 alone and latent frame k the frames ``8k-7 .. 8k``.
    """
    factors = torch.tensor(tuple(scale_factors), device=latent_coords.device, dtype=latent_coords.dtype)
    coords = latent_coords * factors.view(1, 3, 1, 1)
    if causal_fix:
        coords[:, 0] = (coords[:, 0] + 1 - scale_factors.time).clamp(min=0)
    return coords


def to_seconds(pixel_coords: Tensor, fps: float) -> Tensor:
    """Pixel spans to float32 positions: axis 0 (pixel frames) divided by ``fps``, rows and columns kept."""
    positions = pixel_coords.to(torch.float32, copy=True)
    positions[:, 0] /= fps
    return positions


@dataclass(frozen=True)
class AudioPatchifier:
    """One token per audio latent frame; ``patch_size`` is only part of the common interface, audio has no patches.

    The rest places tokens in time: ``sample_rate`` in Hz, ``hop_length`` in samples per mel frame,
    ``audio_latent_downsample_factor`` in mel frames per latent frame, by default 25 latent frames a second. With
    ``is_causal`` the first latent frame covers one mel frame alone. ``shift`` is the number of the first latent frame,
    other than 0 where the latent is a part of a longer one.
    """

    patch_size: int = 1
    sample_rate: int = AUDIO_SAMPLE_RATE
    hop_length: int = AUDIO_HOP_LENGTH
    audio_latent_downsample_factor: int = AUDIO_LATENT_DOWNSAMPLE_FACTOR
    is_causal: bool = True
    shift: int = 0

    def get_token_count(self, shape: AudioLatentShape) -> int:
        return shape.token_count

    def patchify(self, latents: Tensor) -> Tensor:
        """``[B, C, T, M] -> [B, T, C*M]``."""
        return latents.transpose(1, 2).flatten(2).contiguous()

    def unpatchify(self, latents: Tensor, output_shape: AudioLatentShape) -> Tensor:
        """``[B, T, C*M] -> [B, C, T, M] = output_shape``."""
        b, c, t, m = output_shape
        return latents.reshape(b, t, c, m).transpose(1, 2).contiguous()

    def get_patch_grid_bounds(self, output_shape: AudioLatentShape, device: torch.device | str | None = None) -> Tensor:
        """Span of every token in seconds: float32 ``[B, 1, T, 2]``."""
        if not isinstance(output_shape, AudioLatentShape):
            raise ConfigError(f"the shape is {type(output_shape).__name__}, expected AudioLatentShape")
        edges = self.get_time_in_seconds(self.shift, self.shift + output_shape.frames + 1, device)
        spans = torch.stack((edges[:-1], edges[1:]), dim=-1)  # [T, 2]
        return spans.expand(output_shape.batch, 1, -1, -1).contiguous()

    def get_time_in_seconds(self, start: int, end: int, device: torch.device | str | None = None) -> Tensor:
        """Start time of the latent frames ``start .. end - 1``: float32 ``[end - start]``."""
        mel_frames = torch.arange(start, end, dtype=torch.float32, device=device) * self.audio_latent_downsample_factor
        if self.is_causal:
            mel_frames = (mel_frames + 1 - self.audio_latent_downsample_factor).clamp(min=0)
        return mel_frames * self.hop_length / self.sample_rate
