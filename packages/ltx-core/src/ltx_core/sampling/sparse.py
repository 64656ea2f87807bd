"""A denoiser whose transformer leaves pairs of distant tokens out of the video's self-attention.

::

    tokens --order of the pattern--> transformer, in whose inner blocks ``attn1`` follows the pattern --back--> x0

The first steps attend to all, and so do the outer blocks of the transformer. Nothing in the transformer knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.attention import Attention, attention
from ltx_core.model.transformer.masks import AttentionBias
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.transformer.sparse import BlockPattern
from ltx_core.sampling.denoisers import DenoiseCall, Denoiser, Results, Transformer
from ltx_core.sampling.modality import States
from ltx_core.sampling.modality_tiling import take_tokens

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
