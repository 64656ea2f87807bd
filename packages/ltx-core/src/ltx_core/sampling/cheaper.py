"""What leaves work out of a transformer that knows nothing of it.

``SparseDenoiser`` leaves pairs of distant tokens out of the video's self-attention. The first steps attend to all, and
so do the outer blocks::

    tokens --order of the pattern--> transformer, in whose inner blocks ``attn1`` follows the pattern --back--> x0

``FirstBlockCache`` runs the first block alone on steps where it changes the tokens as at an earlier step. What is kept
is that of the last step that ran all blocks, so that errors do not add up::

    tokens --block 0--> first --blocks 1 ..--> last        kept: first - tokens, and last - first
    tokens --block 0--> first + kept (last - first)        where first - tokens is nearly what is kept
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer.attention import Attention, attention
from ltx_core.model.transformer.block import Tokens
from ltx_core.model.transformer.masks import AttentionBias
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.transformer.passage import Passage, join, select
from ltx_core.model.transformer.sparse import BlockPattern
from ltx_core.sampling.denoisers import DenoiseCall, Denoiser, Results, Transformer
from ltx_core.sampling.modality import States
from ltx_core.sampling.modality_tiling import take_tokens

# Pairs of distant tokens left out -------------------------------------------------------------------------------------


#: How queries ``[B, T, H, d]`` mix values, given keys.
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SparseDenoiser:
    """``denoiser`` on a transformer that follows ``pattern`` from step ``dense_steps`` on.

    ``network`` is the transformer's own, whose first and last ``dense_blocks`` blocks attend to all.
    """

    denoiser: Denoiser
    network: LTXModel
    pattern: BlockPattern
    dense_steps: int = 0
    dense_blocks: int = 0

    def __call__(self, transformer: Transformer, states: States, call: DenoiseCall) -> Results:
        """Tokens stand in the pattern's order at every step, so that what is kept from step to step fits."""
        dense = call.step_index < self.dense_steps
        layers = () if dense else inner_attentions(self.network, self.dense_blocks)

        def ordered(video: Modality, **given: Any) -> tuple[Tensor | None, Tensor | None]:
            with mixing(layers, partial(attention, bias=self.pattern)):
                made, sound = transformer(video=take_tokens(video, self.pattern.order), **given)
            return None if made is None else made[:, self.pattern.inverse], sound

        return self.denoiser(ordered, states, call)


def inner_attentions(network: LTXModel, dense_blocks: int) -> list[Attention]:
    """The video's self-attentions of all blocks but so many at either end."""
    blocks: Any = network.transformer_blocks
    return [block.attn1 for block in blocks[dense_blocks : len(blocks) - dense_blocks]]


class MixingAttention(Attention):
    """Self-attention that mixes values in its own way."""

    own: Mix

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None) -> Tensor:
        if bias is not None:
            raise ConfigError("attention strengths are given to a sparse attention, expected none")
        return self.own(q, k, v)


@contextmanager
def mixing(attentions: Sequence[Attention], mix: Mix) -> Iterator[None]:
    """Inside, these attentions mix values by ``mix``."""
    for one in attentions:
        one.__class__ = MixingAttention
        one.own = mix  # type: ignore[assignment]
    try:
        yield
    finally:
        for one in attentions:
            one.__class__ = Attention
            del one.own


# Blocks after the first left out --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """Changes of the last step that ran all blocks."""

    of: Any  # the passes, streams and tokens they belong to
    first: list[Tokens]  # by the first block, of each row there
    rest: list[Tokens]  # by the others, of each group of rows at the end


@dataclass
class FirstBlockCache:
    """A transformer that leaves out all blocks but the first where that one's change differs little from what is kept.

    ``threshold`` bounds the mean absolute difference of the changes over the mean absolute change, of every guidance
    pass and every stream that runs. The first ``full_calls`` run all blocks: what they decide all others follow.
    Deciding waits for the device, once a call. It serves one run along a schedule.
    """

    network: LTXModel
    threshold: float
    full_calls: int = 1
    calls: int = 0
    reused: int = 0  # calls of which only the first block was run
    kept: Kept | None = None

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
        max_batch_size: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """As the transformer."""
        network, kept = self.network, self.kept
        passage = network.enter(video, audio, perturbations, max_batch_size)
        network.advance(passage, 1)
        first = list(self._changes(passage))
        self.calls += 1
        if kept is not None and self._fits(kept, passage, first):
            self.reused += 1
            network.gather(passage, passage.segments[-1])
            for group, rest in zip(passage.groups, kept.rest, strict=True):
                group.tokens = {name: x + rest[name] for name, x in group.tokens.items()}
            return network.leave(passage)
        self.kept = kept = None  # freed before there is more
        rows, row_of = passage.rows, passage.segments[0].row_of
        network.advance(passage, network.num_blocks)
        begun = [join([rows[row_of[sample]] for sample in group.samples]) for group in passage.groups]
        changes = [minus(group.tokens, start) for group, start in zip(passage.groups, begun, strict=True)]
        self.kept = Kept(kind_of(passage), first, changes)
        return network.leave(passage)

    def _fits(self, kept: Kept, passage: Passage, first: list[Tokens]) -> bool:
        """Whether what is kept may be used again."""
        may = self.calls > self.full_calls and kept.of == kind_of(passage)
        return may and difference(first, kept.first) < self.threshold

    def _changes(self, passage: Passage) -> Iterator[Tokens]:
        """The first block's change of each row, of the streams that run."""
        running = [name for name, modality in passage.modalities.items() if modality.enabled]
        for row, sample in zip(passage.rows, passage.segments[0].samples, strict=True):
            given = self.network.embed(select(passage.modalities, (sample,)))
            yield minus({name: row[name] for name in running}, given)


def kind_of(passage: Passage) -> Any:
    """Passes, rows in a group, streams and their tokens: equal where changes can be compared."""
    streams = {name: (one.enabled, one.latent.shape[1]) for name, one in passage.modalities.items()}
    return passage.perturbations.configs, passage.perturbations.same_as, passage.batch, streams


def minus(left: Tokens, right: Mapping[str, Tensor]) -> Tokens:
    return {name: x - right[name] for name, x in left.items()}


def difference(now: list[Tokens], kept: list[Tokens]) -> float:
    """The largest relative difference of any row and stream."""
    shares = [
        (x - old[name]).abs().mean(dtype=torch.float32) / old[name].abs().mean(dtype=torch.float32)
        for new, old in zip(now, kept, strict=True)
        for name, x in new.items()
    ]
    # A stream that the first block leaves as it is says nothing.
    return float(torch.stack(shares).nan_to_num(0.0).max())
