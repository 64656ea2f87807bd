"""Running the blocks over a batch of guidance passes, what several passes have in common only once.

::

                                     block 0: self  text  cross
    sample 0  text, unperturbed               *-----*-----*------ 1 --- ... --- 27 --- 28 --- ... --- 47
    sample 1  negative text                         \\-----*------ 1 --- ... --- 27 --- 28 --- ... --- 47
    sample 2  as 0, modalities apart                      \\------ 1 --- ... --- 27 --- 28 --- ... --- 47
    sample 3  as 0, perturbed at 28                                                \\--- 28 --- ... --- 47

Blocks are the outer loop and groups of at most ``max_batch_size`` rows the inner one: streamed weights are copied once
for all passes, and text is projected once for all that read it. Rows computed one by one are bit-equal to passes made
one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltx_core.guidance.perturbations import BatchedPerturbationConfig, BlockKeep, Stretch
from ltx_core.model.transformer.block import StreamInputs, Tokens
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.text_memory import TextMemory
from ltx_core.savings import savings

if TYPE_CHECKING:
    from ltx_core.model.transformer.model import LTXModel


@dataclass
class Group:
    """Rows that go through the blocks together."""

    tokens: Tokens
    inputs: dict[str, StreamInputs]
    keeps: Sequence[BlockKeep]


class Passes:
    """One forward of a model over a batch of passes."""

    def __init__(
        self,
        model: LTXModel,
        modalities: dict[str, Modality],
        perturbations: BatchedPerturbationConfig,
        max_batch_size: int | None,
    ) -> None:
        self.model, self.perturbations = model, perturbations
        size = len(perturbations)
        self.max_batch_size = size if max_batch_size is None else max_batch_size
        self.modalities = {name: self._remembering(modality) for name, modality in modalities.items()}
        self._inputs: dict[tuple[int, ...], dict[str, StreamInputs]] = {}
        self._without_texts: dict[tuple[int, ...], dict[str, StreamInputs]] = {}

    def velocities(self) -> dict[str, Tensor]:
        """The velocity of every stream, ``[B, T, C]``."""
        stretches = self.perturbations.stretches(self.model.num_blocks)
        rows: list[Tokens] = []
        row_of: tuple[int, ...] = ()
        groups: list[Group] = []
        for stretch in stretches:
            groups = []
            for samples in _batched(stretch.samples, self.max_batch_size):
                tokens = self._joined([rows[row_of[s]] for s in samples]) if rows else self._embedded(samples)
                groups.append(Group(tokens, self._prepared(samples), self._keeps(samples)))
            self._run(groups, stretch)
            rows, row_of = [row for group in groups for row in _split(group.tokens)], stretch.row_of
        heads = [row for group in groups for row in _split(self._headed(group))]
        return self._joined([heads[row] for row in row_of])

    def _run(self, groups: list[Group], stretch: Stretch) -> None:
        for index, parts in stretch.pieces():
            for group in groups:
                group.tokens = self.model.run_block(index, group.tokens, group.inputs, group.keeps[index], parts)
            self._forget()

    def _headed(self, group: Group) -> Tokens:
        return {
            name: self.model.head(name, x, group.inputs[name].embedded_timestep) for name, x in group.tokens.items()
        }

    def _embedded(self, samples: tuple[int, ...]) -> Tokens:
        return {name: self.model.embed(name, modality) for name, modality in self._chosen(samples).items()}

    def _prepared(self, samples: tuple[int, ...]) -> dict[str, StreamInputs]:
        """The inputs of these samples; once for samples whose inputs are equal."""
        key = tuple(self.perturbations.same_as[sample] for sample in samples)
        if key not in self._inputs:
            self._inputs[key] = self.model.with_text(self._prepared_without_text(samples), self._chosen(samples))
        return self._inputs[key]

    def _prepared_without_text(self, samples: tuple[int, ...]) -> dict[str, StreamInputs]:
        """Inputs that serve these samples but for their texts; of one sample where all differ in nothing else."""
        key = tuple(self.perturbations.same_but_text_as[sample] for sample in samples)
        if len(set(key)) == 1:
            key, samples = key[:1], samples[:1]
        if key not in self._without_texts:
            self._without_texts[key] = self.model.prepare_without_text(self._chosen(samples))
        return self._without_texts[key]

    def _chosen(self, samples: tuple[int, ...]) -> dict[str, Modality]:
        return {name: modality.select(samples) for name, modality in self.modalities.items()}

    def _keeps(self, samples: tuple[int, ...]) -> Sequence[BlockKeep]:
        latent = next(iter(self.modalities.values())).latent
        return self.perturbations.select(samples).block_keeps(self.model.num_blocks, latent.device, latent.dtype)

    def _remembering(self, modality: Modality) -> Modality:
        """With a memory of its text: the caller's where text is the same at every step, else one for this forward."""
        if not savings().kept_text or torch.is_grad_enabled():
            return replace(modality, text_memory=None)
        if self.model.config.has_static_text and modality.text_memory is not None:
            return modality
        labels = self.perturbations.same_as
        shared = len(set(labels)) < len(labels)
        return replace(modality, text_memory=TextMemory(labels) if shared else None)

    def _forget(self) -> None:
        """Text of this forward alone is not needed after its block."""
        if not self.model.config.has_static_text:
            for modality in self.modalities.values():
                if modality.text_memory is not None:
                    modality.text_memory.kept.clear()

    @staticmethod
    def _joined(rows: Sequence[Tokens]) -> Tokens:
        if len(rows) == 1:
            return rows[0]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _split(tokens: Tokens) -> Iterator[Tokens]:
    """One by one."""
    size = next(iter(tokens.values())).shape[0]
    for row in range(size):
        yield {name: x if size == 1 else x[row : row + 1] for name, x in tokens.items()}


def _batched(samples: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
