"""Processes that work on one thing, and what they send each other. The last shares may be smaller by one."""

from __future__ import annotations

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

    def span(self, total: int) -> slice:
        """This process's share of ``total`` things."""
        ends = list(accumulate(shares(total, self.size)))
        return slice(ends[self.rank] - shares(total, self.size)[self.rank], ends[self.rank])

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Give every process one of ``parts``; what they give this one has ``shapes``."""
        kept = parts[self.rank]
        self.sent += sum(part.nbytes for part in parts) - kept.nbytes
        sizes = [torch.Size(shape).numel() for shape in shapes]
        received = kept.new_empty(sum(sizes))
        given = torch.cat([part.reshape(-1) for part in parts])
        dist.all_to_all_single(received, given, sizes, [part.numel() for part in parts], group=self.group)
        return [one.view(shape) for one, shape in zip(received.split(sizes), shapes, strict=True)]

    def gather(self, share: Tensor, counts: Sequence[int], dim: int) -> Tensor:
        """The shares of all processes joined along ``dim``, where they are ``counts`` long."""
        self.sent += share.nbytes * (self.size - 1)
        longest = max(counts)
        padded = share.new_zeros(*share.shape[:dim], longest, *share.shape[dim + 1 :])
        padded.narrow(dim, 0, share.shape[dim]).copy_(share)
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part.narrow(dim, 0, count) for part, count in zip(parts, counts, strict=True)], dim)
