"""Arithmetic on frame counts and frame indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltx_core.errors import ConfigError, check_least
from ltx_core.types import SpatioTemporalScaleFactors


def evenly_spaced_keyframe_positions(num_keyframes: int, num_frames: int) -> list[int]:
    """Pixel frames of ``num_keyframes`` keyframes between the first and the last frame of a clip.

    Raises ``ConfigError`` for a clip of fewer than ``num_keyframes + 2`` frames.
    """
    check_least("num_keyframes", num_keyframes, 0)
    if num_keyframes == 0:
        return []
    if num_frames < num_keyframes + 2:
        most = num_frames - 2
        raise ConfigError(f"num_keyframes is {num_keyframes} for {num_frames} frames, expected at most {most}")
    positions = torch.linspace(0, num_frames - 1, num_keyframes + 2).round().to(torch.int64).tolist()
    return positions[1:-1]


def resolve_keyframe_positions(keyframes: int | Sequence[int], num_frames: int) -> list[int]:
    """Pixel frames from a count (evenly spaced) or from a list (sorted, without repeats, checked)."""
    if isinstance(keyframes, int):
        return evenly_spaced_keyframe_positions(keyframes, num_frames)
    positions = sorted(set(keyframes))
    for position in positions:
        if not 0 <= position < num_frames:
            raise ConfigError(f"keyframe position is {position}, expected 0 to {num_frames - 1}")
    return positions


def seconds_to_frames(
    seconds: float,
    frame_rate: float,
    min_frames: int,
    max_frames: int,
    scale_factors: SpatioTemporalScaleFactors = SpatioTemporalScaleFactors(8, 32, 32),
) -> int:
    """The valid frame count for a duration: rounded, clamped to the limits, snapped down to the grid.

    Where that falls under ``min_frames`` it is the next grid point above, at most ``max_frames``.
    """
    frames = scale_factors.snap_frames(max(min_frames, min(round(seconds * frame_rate), max_frames)))
    if frames < min_frames:
        frames = min(scale_factors.snap_frames(min_frames + scale_factors.time - 1), max_frames)
    return frames


def conform_latent_length(latent: Tensor, frames: int) -> Tensor:
    """Cut or zero-pad the latent frames (axis 2) at the end."""
    missing = frames - latent.shape[2]
    if missing <= 0:
        return latent[:, :, :frames]
    padding = latent.new_zeros(*latent.shape[:2], missing, *latent.shape[3:])
    return torch.cat((latent, padding), dim=2)


def temporal_subsample(video: Tensor, temporal_scale_factor: int) -> Tensor:
    """Frame 0 and every ``temporal_scale_factor``-th from frame 1 of ``[B, C, F, H, W]``."""
    check_least("temporal_scale_factor", temporal_scale_factor, 1)
    if temporal_scale_factor == 1:
        return video
    return torch.cat((video[:, :, :1], video[:, :, 1::temporal_scale_factor]), dim=2)
