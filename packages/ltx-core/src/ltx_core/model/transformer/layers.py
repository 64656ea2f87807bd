"""Layers that blocks share: adaptive layer normalisation, the feed-forward network and the text projection.

Adaptive layer normalisation makes shift, scale and gate rows of a noise level. Per module ``<adaln>`` of width w with k
rows::

    emb.timestep_embedder.linear_1 [w, 256]    emb.timestep_embedder.linear_2 [w, w]    linear [k * w, w]

The modules run on the distinct noise levels only. ``Modulation`` keeps one set of rows per level and which level each
token has; a row reaches its tokens where it is used, so k rows per token never exist at once.

Feed-forward: ``net.0.proj [4w, w]``, ``net.2 [w, 4w]``. Text projection: ``linear_1 [w, c]``, ``linear_2 [w, w]``. GELU
is the tanh approximation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.utils import SINUSOID_WIDTH, timestep_embedding


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


# Networks of two layers -----------------------------------------------------------------------------------------------


class GeluProjection(nn.Module):
    """A linear layer followed by GELU."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """``net.2(gelu(net.0.proj(x)))``, four times as wide inside; both layers have a bias or neither."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        hidden = 4 * width
        self.net = nn.Sequential(
            GeluProjection(width, hidden, bias), nn.Identity(), nn.Linear(hidden, width, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TextProjection(nn.Module):
    """Text features ``[B, S, c]`` to a stream's width ``[B, S, w]``."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))
