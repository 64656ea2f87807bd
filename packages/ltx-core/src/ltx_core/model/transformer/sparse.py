"""Blocks of tokens that attend to some of each other, which leaves distant pairs out of a video's self-attention.

::

    grid of cells (frames, rows, columns)  --tiles, there and back-->  sequence  --every n tokens-->  blocks
    each block sees: itself, all blocks that touch it in the grid, every ``stride``-th block and the last

Tokens outside the grid (pictures, references) see all and are seen by all. With L blocks there are about L / stride
that all see, so pairs fall to a share of 1 / stride and no further: this is no attention of another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BlockPattern:
    """Blocks of ``block`` tokens each, the last maybe shorter, in an order of its own."""

    order: Tensor  # [T]: which token stands at each place
    block: int
    seen: Tensor  # [L, L]: whether the block of queries sees the block of keys

    @classmethod
    def of(
        cls, grid: Sequence[int], tokens: int, block: int, stride: int, *, first: bool = False, device: Any = None
    ) -> BlockPattern:
        """Of ``grid`` (frames, rows, columns) cells among ``tokens``; the others stand behind them, or ``first``.

        ``block`` is a power of two.
        """
        cells, places = tile_order(grid, block)
        outside = tokens - len(cells)
        before = outside if first else 0
        others = torch.arange(outside) + (0 if first else len(cells))
        bounds = [(part.amin(0), part.amax(0)) for part in places.split(block)]
        low, high = (torch.stack(ends) for ends in zip(*bounds, strict=True))  # [L, 3] cells of each block's box
        gaps = torch.maximum(low[:, None], low) - torch.minimum(high[:, None], high)
        count = -(-tokens // block)
        seen = torch.zeros(count, count, dtype=torch.bool)
        seen[: len(low), : len(low)] = (gaps <= 1).all(dim=2)
        seen[:, ::stride] = True
        seen[:, len(low) - 1] = True
        if outside:
            mixed = len(cells) // block  # the first block that holds a token from outside the grid
            seen[:, mixed:] = seen[mixed:] = True
        return cls(torch.cat((cells + before, others)).to(device), block, seen.to(device))

    @property
    def tokens(self) -> int:
        return len(self.order)

    @cached_property
    def inverse(self) -> Tensor:
        """``[T]``: the place of each token."""
        return self.order.argsort()

    @cached_property
    def kept(self) -> float:
        """The share of pairs that is computed."""
        sizes = (torch.arange(self.tokens) // self.block).bincount().double()
        return float(sizes @ self.seen.cpu().double() @ sizes) / self.tokens**2

    @cached_property
    def rows(self) -> list[tuple[slice, Tensor]]:
        """Queries that see the same keys, and the places of these keys ``[n]``."""
        found, start, block_of = [], 0, torch.arange(self.tokens) // self.block
        for seen, count in zip(*torch.unique_consecutive(self.seen.cpu(), dim=0, return_counts=True), strict=True):
            end = start + int(count) * self.block
            found.append((slice(start, end), seen[block_of].nonzero().flatten().to(self.order.device)))
            start = end
        return found

    @cached_property
    def block_mask(self) -> Any:
        """The same as `torch.nn.attention.flex_attention.BlockMask`: whole blocks, none cut."""
        from torch.nn.attention.flex_attention import BlockMask

        seen, block = self.seen, self.block

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return seen[i // block, j // block]

        counts = seen.sum(1, dtype=torch.int32)[None, None]
        keys = seen.int().argsort(dim=1, descending=True, stable=True).int()[None, None]
        cut = torch.zeros_like(counts), torch.zeros_like(keys)
        lengths = (self.tokens, self.tokens)
        return BlockMask.from_kv_blocks(*cut, counts, keys, BLOCK_SIZE=block, mask_mod=visible, seq_lengths=lengths)


def tile_order(grid: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
    """The cells of a grid tile by tile ``[N]``, and where each lies ``[N, 3]``.

    Tiles hold about ``size`` cells, a power of two, and follow each other there and back, so that neighbours in the
    sequence touch in the grid.
    """
    power = size.bit_length() - 1
    sides = [2 ** ((power + axis) // 3) for axis in range(3)]  # along frames, rows, columns
    counts = [-(-cells // side) for cells, side in zip(grid, sides, strict=True)]
    places = torch.cartesian_prod(*map(torch.arange, grid)).view(-1, 3)
    frame, row, column = (places[:, axis] * counts[axis] // grid[axis] for axis in range(3))
    row = torch.where(frame % 2 == 0, row, counts[1] - 1 - row)
    line = frame * counts[1] + row
    column = torch.where(line % 2 == 0, column, counts[2] - 1 - column)
    order = (line * counts[2] + column).argsort(stable=True)
    return order, places[order]
