"""Rotary position embedding over several axes, in the two layouts of the family.

Every token has a point with n coordinates. A width of ``dim`` has ``dim // (2n)`` frequencies from pi/2 to
theta * pi/2; an angle is a frequency times a coordinate scaled to [-1, 1]. Angles are flattened with the axis
fastest, padded at the front with cos 1 and sin 0, and rotate

* ``split``: the two halves of each head's channels, with tables ``[B, H, T, dim / 2H]`` (LTX-2);
* ``interleaved``: neighbouring channels of the full width, with tables ``[B, T, dim]`` (LTX-Video).

Angles reach 15708 rad, so the order of the float32 operations is part of the definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.utils import device_of_doubles


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of every token: split ``[B, H, T, head_dim / 2]`` or interleaved ``[B, T, dim]``."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate ``x`` ``[B, T, dim]`` in its own dtype."""
        return self._rotate_split(x) if self.cos.ndim == 4 else self._rotate_interleaved(x)

    def _rotate_split(self, x: Tensor) -> Tensor:
        cos, sin = self.cos.transpose(1, 2), self.sin.transpose(1, 2)  # [B, T, H, head_dim / 2]
        halves = x.unflatten(-1, (cos.shape[2], 2, -1))
        turned = halves * cos.unsqueeze(-2)
        turned[..., 0, :].addcmul_(halves[..., 1, :], sin, value=-1)  # in place: half the passes over memory
        turned[..., 1, :].addcmul_(halves[..., 0, :], sin)
        return turned.flatten(2)

    def _rotate_interleaved(self, x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        return x * self.cos + turned * self.sin


@dataclass(frozen=True)
class RotaryEmbedding:
    """Rotation of a width of channels by points with ``len(max_pos)`` coordinates."""

    dim: int
    heads: int
    max_pos: tuple[int, ...]  # the coordinate that is scaled to 1, per axis
    theta: float = 10000.0
    rope_type: str = "split"
    double_precision: bool = True

    def frequencies(self, device: torch.device | str | None = None) -> Tensor:
        """``theta ** (k / (K - 1)) * pi / 2`` for k = 0..K-1, float32 ``[dim // 2n]``."""
        dtype = torch.float64 if self.double_precision else torch.float32
        count = self.dim // (2 * len(self.max_pos))
        exponents = torch.linspace(0, 1, count, dtype=dtype, device=device_of_doubles(device))
        return (self.theta**exponents * (math.pi / 2)).to(device=device, dtype=torch.float32)

    def angles(self, points: Tensor) -> Tensor:
        """Angles ``[B, T, dim // 2n * n]`` of points ``[B, n, T]``, in float32."""
        # A tensor, not a number: some devices would multiply by a number's rounded reciprocal.
        tops = [torch.full((), top, dtype=torch.float32, device=points.device) for top in self.max_pos]
        scaled = torch.stack([points[:, axis].float() / top * 2 - 1 for axis, top in enumerate(tops)], dim=-1)
        return (self.frequencies(points.device)[:, None] * scaled[:, :, None]).flatten(-2)

    def table(self, points: Tensor, dtype: torch.dtype) -> RotaryTable:
        """The table of points ``[B, n, T]``, computed in float32 and cast to ``dtype``."""
        angles = self.angles(points)
        cos, sin = angles.cos(), angles.sin()
        if self.rope_type == "interleaved":
            cos, sin = cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
            missing = self.dim - cos.shape[-1]
        else:
            missing = self.dim // 2 - cos.shape[-1]
        cos, sin = (F.pad(cos, (missing, 0), value=1.0).to(dtype), F.pad(sin, (missing, 0)).to(dtype))
        if self.rope_type == "split":
            cos, sin = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (cos, sin))
        return RotaryTable(cos, sin)


def self_rope(config: TransformerConfig, name: str) -> RotaryEmbedding:
    """Rotary embedding of a stream's self-attention."""
    stream = config.streams[name]
    return _rope(config, stream.width, stream.heads, stream.max_pos)


def cross_rope(config: TransformerConfig, name: str) -> RotaryEmbedding:
    """Rotary embedding of a stream in the cross-modal attentions: time only, as wide as the audio stream."""
    video, audio = config.streams["video"], config.streams["audio"]
    return _rope(config, audio.width, config.streams[name].heads, (max(video.max_pos[0], audio.max_pos[0]),))


def _rope(config: TransformerConfig, width: int, heads: int, max_pos: tuple[int, ...]) -> RotaryEmbedding:
    theta, double = config.positional_embedding_theta, config.double_precision_rope
    return RotaryEmbedding(width, heads, max_pos, theta, config.rope_type, double)


def token_points(positions: Tensor, use_middle: bool) -> Tensor:
    """Points ``[B, n, T]`` of positions given as bounds ``[B, n, T, 2]`` or as points already.

    Raises ``ConfigError`` when the middle of the bounds is wanted and there are no bounds.
    """
    if positions.shape[0] > 1 and positions.stride(0) == 0:
        positions = positions[:1]  # an expanded batch shares one table
    if positions.ndim == 4:
        return (positions[..., 0] + positions[..., 1]) / 2 if use_middle else positions[..., 0]
    if use_middle:
        raise ConfigError(f"positions have shape {tuple(positions.shape)}, expected bounds [B, axes, T, 2]")
    return positions
