"""Text that was projected once, for as long as it stays the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TextMemory:
    """Projections of the texts of a batch, per module; samples with equal labels have equal texts.

    It serves one set of weights: whoever changes them starts a new one.
    """

    labels: tuple[int, ...]  # of each sample
    kept: dict[tuple[nn.Module, str, int], tuple[Tensor, ...]] = field(default_factory=dict)

    def select(self, samples: tuple[int, ...]) -> TextMemory:
        """The same memory for some of the samples."""
        return TextMemory(tuple(self.labels[sample] for sample in samples), self.kept)

    def recall(self, owner: nn.Module, name: str, make: Callable[[int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``make(sample)`` gives for each sample ``[1, ...]``, joined; made once per owner, name and label."""
        for sample, label in enumerate(self.labels):
            if (owner, name, label) not in self.kept:
                self.kept[owner, name, label] = make(sample)
        found = [self.kept[owner, name, label] for label in self.labels]
        return found[0] if len(found) == 1 else tuple(torch.cat(parts) for parts in zip(*found, strict=True))
