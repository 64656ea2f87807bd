"""The two-layer networks: a block's feed-forward and the text projection. GELU is the tanh approximation.

Feed-forward: ``net.0.proj [4w, w]``, ``net.2 [w, 4w]``. Text projection: ``linear_1 [w, c]``, ``linear_2 [w, w]``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
            GeluProjection(width, hidden, bias),
            nn.Identity(),
            nn.Linear(hidden, width, bias=bias),
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
