"""Choosing samples of a batch without copying index tensors to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """``x[rows]``: a view where the rows follow each other or are all one tensor."""
    if x.stride(0) == 0:
        return x[:1].expand(len(rows), *x.shape[1:])
    if tuple(rows) == tuple(range(rows[0], rows[0] + len(rows))):
        return x if len(rows) == x.shape[0] else x[rows[0] : rows[0] + len(rows)]
    return torch.cat([x[row : row + 1] for row in rows])
