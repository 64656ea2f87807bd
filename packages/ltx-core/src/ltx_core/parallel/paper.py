"""A run on several devices on paper: what the first of them would compute, hold and send, with no other there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ltx_core.parallel.mesh import Devices, MeshShape
from ltx_core.parallel.ranks import Ranks


@dataclass
class PaperRanks(Ranks):
    """A group that counts what is sent; what is received has shapes and no values."""

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        self.sent += self.leaving(parts)
        return [parts[0].new_empty(shape) for shape in shapes]

    def gather(self, share: Tensor, counts: Sequence[int], dim: int) -> Tensor:
        self.sent += self.leaving_all(share, counts, dim)
        return share.new_empty(*share.shape[:dim], sum(counts), *share.shape[dim + 1 :])


@dataclass
class PaperDevices(Devices):
    """The first of some devices. It has the largest shares there are."""

    @classmethod
    def of(cls, devices: Devices) -> PaperDevices:
        """The first of devices which may not be there yet."""
        return cls(0, devices.size, devices.asked, spread_over=devices.spread_over)

    def _groups(self, shape: MeshShape) -> tuple[Ranks, Ranks]:
        return self.groups.setdefault(shape, (PaperRanks(None, 0, shape.cfg), PaperRanks(None, 0, shape.sp)))
