"""Processes that work on one thing, and what they send each other. The last shares may be smaller by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def shares(total: int, parts: int) -> list[int]:
    """``total`` things among ``parts``, as evenly as can be."""
    return [total // parts + (part < total % parts) for part in range(parts)]


@dataclass
class Ranks:
    """A group of processes, this one's place in it, and the bytes it has sent so far."""

    group: Any  # None: all processes
    rank: int
    size: int
    sent: int = field(default=0)

    @classmethod
    def of(cls, group: Any = None) -> Ranks:
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    @classmethod
    def of_neighbours(cls, count: int) -> Ranks:
        """The own one of groups of ``count`` neighbours, all of which every process makes."""
        groups = [dist.new_group(list(range(first, first + count))) for first in range(0, dist.get_world_size(), count)]
        return cls.of(groups[dist.get_rank() // count])

    def span(self, total: int) -> slice:
        """This process's share of ``total`` things."""
        ends = list(accumulate(shares(total, self.size)))
        return slice(ends[self.rank] - shares(total, self.size)[self.rank], ends[self.rank])

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Give every process one of ``parts``; what they give this one has ``shapes``. Gradients go back that way."""
        self.sent += self.leaving(parts)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        given = torch.cat([part.reshape(-1) for part in parts])
        received: Tensor = _Exchange.apply(given, [part.numel() for part in parts], sizes, self.group)
        return [one.view(shape) for one, shape in zip(received.split(sizes), shapes, strict=True)]

    def gather(self, share: Tensor, counts: Sequence[int], dim: int) -> Tensor:
        """The shares of all processes joined along ``dim``, where they are ``counts`` long.

        The gradient of a share is the sum of what all processes have for it.
        """
        self.sent += self.leaving_all(share, counts, dim)
        joined: Tensor = _Gather.apply(share, list(counts), dim, self)
        return joined

    def leaving(self, parts: Sequence[Tensor]) -> int:
        """Bytes of an exchange that go to others."""
        return sum(part.nbytes for part in parts) - parts[self.rank].nbytes

    def leaving_all(self, share: Tensor, counts: Sequence[int], dim: int) -> int:
        """Bytes of a gathered share that go to others, filled up to the longest."""
        row = math.prod(share.shape[:dim]) * math.prod(share.shape[dim + 1 :]) * share.itemsize
        return row * max(counts) * (self.size - 1)


@dataclass
class Shares:
    """Shares of the processes of a group in things that are in a row."""

    ranks: Ranks
    counts: list[int] = field(default_factory=list)  # by process

    def share_out(self, total: int) -> slice:
        """Share ``total`` things out; those of this process."""
        self.counts = shares(total, self.ranks.size)
        return self.ranks.span(total)


class _Exchange(torch.autograd.Function):
    """All to all of flat tensors."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.sizes, ctx.group = (sent, received), group
        found = given.new_empty(sum(received))
        dist.all_to_all_single(found, given.contiguous(), received, sent, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        sent, received = ctx.sizes
        return _Exchange.apply(gradients[0], received, sent, ctx.group), None, None, None


class _Gather(torch.autograd.Function):
    """Shares of several lengths joined."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, counts: list[int], dim: int, ranks: Ranks) -> Tensor:
        ctx.counts, ctx.dim, ctx.ranks = counts, dim, ranks
        longest = max(counts)
        padded = share.new_zeros(*share.shape[:dim], longest, *share.shape[dim + 1 :])
        padded.narrow(dim, 0, share.shape[dim]).copy_(share)
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=ranks.group)
        return torch.cat([part.narrow(dim, 0, count) for part, count in zip(parts, counts, strict=True)], dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        parts = gradients[0].split(ctx.counts, ctx.dim)
        own = ctx.ranks.exchange(parts, [tuple(parts[ctx.ranks.rank].shape)] * ctx.ranks.size)
        return torch.stack(own).sum(0), None, None, None
