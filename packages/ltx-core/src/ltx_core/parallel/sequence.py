"""One step on several processes: each computes some guidance passes, or some of the video's tokens.

A process that shares tokens holds all of the sound and all weights::

    video tokens [B, T, w]  ->  [B, t, w] of this process
    self-attention:   q, k, v [B, t, H, d]  -- all to all -->  [B, T, h, d]  attention  -- all to all -->  [B, t, H, d]
    sound reads video:   k, v [B, t, H, d]  -- all to all -->  [B, T, h, d]  attention  -- gathered -->  [B, Ta, H, d]
    x0 [B, t, C]  -- gathered -->  [B, T, C]

All else works on tokens one by one, on text or on sound. Heads are shared out as unevenly as tokens may be, so that any
number of processes up to the number of heads will do (Jacobs et al. 2023, "DeepSpeed Ulysses", shares them evenly).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer.attention import Attention
from ltx_core.model.transformer.block import TransformerBlock
from ltx_core.model.transformer.masks import AttentionBias
from ltx_core.model.transformer.modality import Modality
from ltx_core.parallel.ranks import Ranks, Shares, shares
from ltx_core.sampling.denoisers import Transformer
from ltx_core.sampling.modality_tiling import take_tokens


@dataclass
class SharedTokens(Shares):
    """Shares of the processes of a group in the tokens of the video now being denoised."""

    def by_heads(self, given: Tensor) -> Tensor:
        """All tokens of this process's heads ``[P, B, T, h, d]``, from all heads of its tokens ``[P, B, t, H, d]``."""
        own, (kinds, batch, _, heads, width) = self.ranks.rank, given.shape
        sizes = shares(heads, self.ranks.size)
        parts = list(given.split(sizes, dim=3))
        shapes = [(kinds, batch, count, sizes[own], width) for count in self.counts]
        return torch.cat(self.ranks.exchange(parts, shapes), dim=2)

    def by_tokens(self, made: Tensor, heads: int) -> Tensor:
        """All heads of this process's tokens ``[B, t, H, d]``, from all tokens of its heads ``[B, T, h, d]``."""
        own, (batch, _, _, width) = self.ranks.rank, made.shape
        parts = list(made.split(self.counts, dim=1))
        shapes = [(batch, self.counts[own], share, width) for share in shares(heads, self.ranks.size)]
        return torch.cat(self.ranks.exchange(parts, shapes), dim=2)


class HeadsSharedAttention(Attention):
    """Self-attention of shared tokens: each process attends with some of the heads."""

    shared: SharedTokens

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None) -> Tensor:
        q, k, v = self.shared.by_heads(torch.stack((q, k, v)))
        return self.shared.by_tokens(super().mix(q, k, v, bias), self.heads)


class SharedContextAttention(Attention):
    """Attention of whole queries to shared tokens: each process attends with some of the heads."""

    shared: SharedTokens

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias | None) -> Tensor:
        ranks = self.shared.ranks
        k, v = self.shared.by_heads(torch.stack((k, v)))
        made = super().mix(q[:, :, ranks.span(self.heads)], k, v, bias)
        return ranks.gather(made, shares(self.heads, ranks.size), dim=2)


def share_tokens(network: nn.Module, shared: SharedTokens) -> None:
    """Let the attentions of a transformer that need more than their own tokens get them from the other processes."""
    for block in network.modules():
        if isinstance(block, TransformerBlock) and block.config.video:
            _set_kind(block.attn1, HeadsSharedAttention, shared)
            if block.config.audio:
                _set_kind(block.video_to_audio_attn, SharedContextAttention, shared)


def _set_kind(
    attention: Attention, kind: type[HeadsSharedAttention | SharedContextAttention], shared: SharedTokens
) -> None:
    if shared.ranks.size == 1:
        attention.__class__ = Attention
        return
    if shared.ranks.size > attention.heads:
        raise ConfigError(f"{shared.ranks.size} devices share a clip, expected at most {attention.heads}, its heads")
    attention.__class__ = kind
    attention.shared = shared  # type: ignore[assignment]


@dataclass(frozen=True)
class SequenceParallel:
    """A transformer whose attentions exchange tokens, as one that is given all of them and returns all."""

    transformer: Callable[..., tuple[Tensor | None, Tensor | None]]
    shared: SharedTokens

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
        *options: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        if video is None:
            return self.transformer(video, audio, perturbations, *options)
        ranks, tokens = self.shared.ranks, video.latent.shape[1]
        if tokens < ranks.size:
            raise ConfigError(f"{ranks.size} devices share {tokens} tokens, expected at least one for each")
        own = share_of(video, self.shared.share_out(tokens))
        made, sound = self.transformer(own, audio, perturbations, *options)
        return None if made is None else ranks.gather(made, self.shared.counts, dim=1), sound


def share_of(video: Modality, span: slice) -> Modality:
    """Some of the tokens of a stream; its attention mask stays whole, since whole heads are masked."""
    grouped = replace(video, timestep_groups=video.grouped_timesteps(), attention_mask=None)
    return replace(take_tokens(grouped, span), sigma=video.noise_level, attention_mask=video.attention_mask)


# Guidance passes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PassParallel:
    """A transformer as one that computes every sample; a process without a sample waits.

    With ``all_compute``, because they gather weights together, it computes the first one and leaves it.
    """

    transformer: Transformer
    ranks: Ranks
    all_compute: bool = False

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        given = {"video": video, "audio": audio}
        size = next(one.batch_size for one in given.values() if one is not None)
        counts, rows = shares(size, self.ranks.size), range(size)[self.ranks.span(size)]
        made: dict[str, Tensor | None] = {}
        if rows or self.all_compute:
            computed = tuple(rows) or (0,)
            own = {name: None if one is None else one.select(computed) for name, one in given.items()}
            chosen = None if perturbations is None else perturbations.select(computed)
            made = dict(zip(given, self.transformer(**own, perturbations=chosen), strict=True))
        parts = {name: made.get(name) if rows else one.latent[:0] for name, one in given.items() if one is not None}
        whole = {name: None if part is None else self.ranks.gather(part, counts, 0) for name, part in parts.items()}
        return whole.get("video"), whole.get("audio")
