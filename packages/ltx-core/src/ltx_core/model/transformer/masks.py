"""From masks as callers have them to additive attention biases that broadcast against ``[B, H, Tq, Tk]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_GROUPS = 16  # more calls of an attention kernel cost more than a dense bias


def context_bias(mask: Tensor | None, dtype: torch.dtype, penalty: float | None = None) -> Tensor | None:
    """The bias of a text mask.

    A floating-point mask is additive already and only gets the axes it lacks in front of its last two. An integer or
    boolean mask ``[B, S]`` (1 keep, 0 drop) becomes ``[B, 1, 1, S]`` with ``-penalty`` where dropped, the largest
    number of ``dtype`` when None; where everything is dropped the attention is uniform. With a penalty (LTX-Video) a
    ``[B, S]`` mask of any dtype is one that keeps and drops.
    """
    if mask is None:
        return None
    if mask.is_floating_point() and (penalty is None or mask.ndim > 2):
        return with_head_axis(mask).to(dtype)
    dropped = 1 - mask.to(dtype)
    bias = dropped * -(torch.finfo(dtype).max if penalty is None else penalty)
    return bias.reshape(mask.shape[0], 1, -1, mask.shape[-1])


def self_attention_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias ``[B, 1, Tq, Tk]`` of strengths ``[B, Tq, Tk]`` in [0, 1], which multiply the attention weights.

    B is 1 for a mask that is one tensor for the whole batch.
    """
    if mask is None:
        return None
    if mask.stride(0) == 0:
        mask = mask[:1]
    limits = torch.finfo(dtype)
    bias = mask.float().clamp(min=limits.tiny).log_().to(dtype)
    return bias.masked_fill_(mask <= 0, limits.min)[:, None]


def with_head_axis(bias: Tensor) -> Tensor:
    """An additive bias with a head axis: ``[Tq, Tk]`` and ``[B, Tq, Tk]`` get it in front of the last two axes."""
    if bias.ndim == 2:
        return bias[None, None]
    return bias[:, None] if bias.ndim == 3 else bias


@dataclass(frozen=True)
class QueryGroup:
    """Neighbouring queries that see the same keys with the same strengths."""

    queries: slice
    keys: slice  # outside it all strengths are 0
    bias: Tensor | None  # [B, 1, 1, keys]; None: full strength


#: A dense additive bias, or all queries in groups.
AttentionBias = Tensor | tuple[QueryGroup, ...]


@dataclass(eq=False)
class StrengthGroups:
    """A self-attention mask by groups of queries whose rows are equal, so that no dense bias is needed.

    Conditioning appends tokens in blocks, so a few groups describe most masks. Finding them reads the mask, which
    stalls a GPU: a sampling loop does it once. A mask of too many groups gets a dense bias, made once.
    """

    mask: Tensor  # [B, Tq, Tk]: the tensor that is described
    starts: tuple[int, ...]  # first query of each group; empty: too many groups
    spans: tuple[tuple[int, int], ...]  # keys of each group that any sample sees
    full: tuple[bool, ...]  # whether all strengths of a group are 1
    _biases: dict[torch.dtype, AttentionBias] = field(default_factory=dict)  # made when first asked for

    @classmethod
    def of(cls, mask: Tensor) -> StrengthGroups:
        """Group the rows of ``mask`` ``[B, Tq, Tk]``."""
        changes = (mask[:, 1:] != mask[:, :-1]).any(dim=2).any(dim=0)  # [Tq - 1]
        starts = [0, *(changes.nonzero().flatten() + 1).tolist()]
        if len(starts) > MAX_GROUPS:
            return cls(mask, (), (), ())
        rows = mask[:, starts]  # [B, G, Tk]
        seen = [row.nonzero().flatten() for row in (rows > 0).any(dim=0)]
        hidden = bool((rows <= 0).all(dim=2).any())  # a query without keys attends to all of them alike
        whole = (0, mask.shape[2])
        spans = [whole if hidden or not len(keys) else (int(keys[0]), int(keys[-1]) + 1) for keys in seen]
        full = [bool((rows[:, number, first:last] == 1).all()) for number, (first, last) in enumerate(spans)]
        return cls(mask, tuple(starts), tuple(spans), tuple(full))

    def select(self, samples: Sequence[int]) -> StrengthGroups:
        """Some of the samples."""
        if self.mask.shape[0] == 1 or self.mask.stride(0) == 0:
            expanded = self.mask[:1].expand(len(samples), -1, -1)
            return StrengthGroups(expanded, self.starts, self.spans, self.full, self._biases)
        return StrengthGroups(take_rows(self.mask, samples), self.starts, self.spans, self.full)

    def bias(self, dtype: torch.dtype) -> AttentionBias | None:
        """The bias by groups, or dense; computed once."""
        if all(self.full) and self.spans == ((0, self.mask.shape[2]),):
            return None
        if dtype not in self._biases:
            self._biases[dtype] = self._groups(dtype) if self.starts else self._dense(dtype)
        return self._biases[dtype]

    def _dense(self, dtype: torch.dtype) -> Tensor:
        bias = self_attention_bias(self.mask, dtype)
        assert bias is not None
        return bias

    def _groups(self, dtype: torch.dtype) -> tuple[QueryGroup, ...]:
        groups = []
        ends = (*self.starts[1:], self.mask.shape[1])
        for start, end, (first, last), full in zip(self.starts, ends, self.spans, self.full, strict=True):
            bias = None if full else self_attention_bias(self.mask[:, start : start + 1, first:last], dtype)
            groups.append(QueryGroup(slice(start, end), slice(first, last), bias))
        return tuple(groups)


def take_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """``x[rows]``: a view where the rows follow each other or are all one tensor."""
    if x.stride(0) == 0 or x.shape[0] == 1:
        return x[:1].expand(len(rows), *x.shape[1:])
    if tuple(rows) == tuple(range(rows[0], rows[0] + len(rows))):
        return x if len(rows) == x.shape[0] else x[rows[0] : rows[0] + len(rows)]
    return torch.cat([x[row : row + 1] for row in rows])
