"""Batches as a pure function of the position in the run, made ahead of time by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltx_core.errors import ConfigError

Batch = Mapping[str, Tensor]
LAST_POSITION = 2**40  # "endless" for a sampler that must be a range


@dataclass(frozen=True)
class Stage:
    """A stretch of a run whose batches have one form, or those of the stages ``in_turn``, over and over.

    What the sizes mean is up to the examples.
    """

    steps: int
    batch_size: int = 1
    frames: int = 1
    side: int = 0  # pixels
    window: int = 0  # pixels of the part of a picture that is given; 0 for all of it
    tokens: int = 0  # of a caption
    in_turn: tuple[Stage, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Stage:
        """A stage as a recipe writes it."""
        return cls(**{**values, "in_turn": tuple(map(cls.from_dict, values.get("in_turn", ())))})


@dataclass(frozen=True)
class Curriculum:
    """Stages in order; the last one goes on for ever."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages or any(stage.batch_size < 1 or stage.frames < 1 for stage in self.stages):
            raise ConfigError(f"curriculum is {self.stages}, expected at least one stage with a batch and frames")

    def at(self, position: int) -> Stage:
        """The stage in force at a micro-step."""
        for stage in self.stages:
            if position < stage.steps or stage is self.stages[-1]:
                break
            position -= stage.steps
        if not stage.in_turn:
            return stage
        turn = Curriculum(stage.in_turn)
        return turn.at(position % turn.steps)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


@dataclass(frozen=True)
class Examples:
    """An endless supply of examples: ``make(position, slot, stage)`` gives one, without a batch axis.

    ``slot`` counts through the whole batch of all processes; process r of n makes slots ``r*B`` to ``(r+1)*B - 1``.
    """

    make: Callable[[int, int, Stage], Batch]
    curriculum: Curriculum
    workers: int = 0

    def batch(self, position: int, rank: int = 0) -> dict[str, Tensor]:
        """The examples of one micro-step, stacked."""
        stage = self.curriculum.at(position)
        slots = range(rank * stage.batch_size, (rank + 1) * stage.batch_size)
        return stack([self.make(position, slot, stage) for slot in slots])

    def batches(self, first_position: int, rank: int = 0) -> Iterator[dict[str, Tensor]]:
        """Batches from a position on."""
        positions = range(first_position, LAST_POSITION)
        loader = DataLoader(
            _ByPosition(self, rank),
            batch_size=None,
            sampler=positions,
            num_workers=self.workers,
            worker_init_fn=leave_stopping_to_the_parent,
        )
        return iter(loader)


class _ByPosition(Dataset[dict[str, Tensor]]):
    """``Examples`` in the form that worker processes take."""

    def __init__(self, examples: Examples, rank: int) -> None:
        self.examples, self.rank = examples, rank

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.examples.batch(position, self.rank)


def leave_stopping_to_the_parent(worker: int) -> None:
    """Ignore signals that reach the whole process group: a worker that ends early breaks the parent's last step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def stack(examples: Sequence[Batch]) -> dict[str, Tensor]:
    """Equal examples to one batch: a new first axis."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
