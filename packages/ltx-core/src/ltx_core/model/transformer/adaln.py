"""Adaptive layer normalisation: noise level -> shift, scale and gate rows.

Per module ``<adaln>`` of width w with k rows::

    emb.timestep_embedder.linear_1 [w, 256]    emb.timestep_embedder.linear_2 [w, w]    linear [k * w, w]

The modules run on the distinct noise levels only. ``Modulation`` keeps one set of rows per level and which level each
token has; a row reaches its tokens where it is used, so k rows per token never exist at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SINUSOID_WIDTH = 256


@dataclass(frozen=True)
class Modulation:
    """k rows for each of R noise levels, and the level of every token."""

    rows: Tensor  # [R, k, width]
    index: Tensor | None = None  # [B, T]; None: R is 1 or B, and level b serves every token of sample b

    def row(self, number: int, table: Tensor | None = None) -> Tensor:
        """Row ``number`` for every token, ``[B, 1 or T, width]``, with the same row of a block's table added."""
        values = self.rows[:, number]  # [R, width]
        if table is not None:
            values = table[number].to(values.dtype) + values
        return values[:, None] if self.index is None else F.embedding(self.index, values)

    def of_sample(self, sample: int) -> Modulation:
        """The rows of one sample, ``[1, k, width]``, where there is one set or one per sample."""
        return Modulation(self.rows if self.rows.shape[0] == 1 else self.rows[sample : sample + 1])

    @classmethod
    def from_tokens(cls, modulation: Tensor, num_rows: int) -> Modulation:
        """From rows that were computed for every token or sample, ``[B, 1 or T, k * width]``."""
        batch, tokens, _ = modulation.shape
        rows = modulation.reshape(batch * tokens, num_rows, -1)
        if tokens == 1:
            return cls(rows)
        return cls(rows, torch.arange(batch * tokens, device=modulation.device).view(batch, tokens))


def timestep_embedding(timesteps: Tensor, width: int = SINUSOID_WIDTH, max_period: float = 10000.0) -> Tensor:
    """Sinusoids ``[R, width]`` of scaled timesteps ``[R]``: cosines first, then sines, in float32."""
    half = width // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * exponents.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimestepEmbedder(nn.Module):
    """``linear_2(silu(linear_1(sinusoid)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(SINUSOID_WIDTH, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class AdaLayerNormSingle(nn.Module):
    """The rows of one noise level, shared by all blocks."""

    def __init__(self, width: int, num_rows: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(width)})
        self.linear = nn.Linear(width, num_rows * width)
        self.num_rows = num_rows

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows ``[R, k, width]`` and embedded timesteps ``[R, width]`` of scaled timesteps ``[R]``."""
        embedded = self.emb["timestep_embedder"](timestep_embedding(timesteps).to(dtype))
        return self.linear(F.silu(embedded)).unflatten(-1, (self.num_rows, -1)), embedded


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * (1 + scale) + shift`` with rows ``[B, 1 or T, width]``."""
    return torch.addcmul(shift, x, 1 + scale)
