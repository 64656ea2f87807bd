"""Samples on their way through the blocks, and the rows that stand for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ltx_core.guidance.perturbations import BatchedPerturbationConfig, BlockKeep, Segment
from ltx_core.model.transformer.modality import Modality

if TYPE_CHECKING:
    from ltx_core.model.transformer.block import StreamInputs, TextInputs, Tokens


@dataclass
class Group:
    """Rows that go through the blocks together."""

    samples: tuple[int, ...]  # one that each row stands for
    tokens: Tokens
    inputs: Mapping[str, StreamInputs]
    texts: Mapping[str, TextInputs]
    keeps: Sequence[BlockKeep]


@dataclass
class Passage:
    """Samples on their way through the blocks, one row for all that have not differed so far."""

    modalities: Mapping[str, Modality]
    perturbations: BatchedPerturbationConfig
    segments: Sequence[Segment]
    batch: int  # rows that go through a block together, at most
    inputs: Callable[[tuple[int, ...]], Mapping[str, StreamInputs]]
    texts: Callable[[tuple[int, ...]], Mapping[str, TextInputs]]
    done: int = 0  # blocks
    segment: Segment | None = None  # in which ``groups`` are
    groups: Sequence[Group] = ()

    @property
    def rows(self) -> list[Tokens]:
        """Views of the rows one by one."""
        return [row for group in self.groups for row in split(group.tokens)]


def select(modalities: Mapping[str, Modality], samples: tuple[int, ...]) -> dict[str, Modality]:
    """Some samples of every stream."""
    return {name: modality.select(samples) for name, modality in modalities.items()}


def sub_batches(samples: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    """Up to ``size`` samples at a time."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def split(tokens: Tokens) -> Iterator[Tokens]:
    """The rows of a batch one by one, as views."""
    size = next(iter(tokens.values())).shape[0]
    for row in range(size):
        yield {name: x if size == 1 else x[row : row + 1] for name, x in tokens.items()}


def join(rows: Sequence[Tokens]) -> Tokens:
    """Rows as one batch."""
    return rows[0] if len(rows) == 1 else {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
