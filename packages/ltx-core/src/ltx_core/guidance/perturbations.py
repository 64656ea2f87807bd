"""Perturbations: which attention of which block is bypassed for which sample of a batch.

Guidance compares a prediction with one made by a weakened model. The weakening is data: a list of
``Perturbation(type, blocks)`` per sample. A transformer reads it as keep masks (1 keep, 0 perturbed).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import ConfigError, check_known


class PerturbationType(IntEnum):
    """The layer that is bypassed.

    A skipped self-attention passes the value projection of each token on in place of the attention result. A skipped
    cross-modal attention adds nothing. The last two exist for LTX-Video's skip strategies.
    """

    SKIP_VIDEO_SELF_ATTN = 0
    SKIP_AUDIO_SELF_ATTN = 1
    SKIP_A2V_CROSS_ATTN = 2
    SKIP_V2A_CROSS_ATTN = 3
    PASS_VIDEO_SELF_ATTN_INPUT = 4  # the attention's input takes the place of its result
    SKIP_VIDEO_BLOCK = 5  # the block's output is its input


#: The type that skips each stream's self-attention.
SKIP_SELF_ATTENTION: Mapping[str, PerturbationType] = {
    "video": PerturbationType.SKIP_VIDEO_SELF_ATTN,
    "audio": PerturbationType.SKIP_AUDIO_SELF_ATTN,
}
#: LTX-Video's skip strategies by their long and short names. ``residual`` perturbs nothing.
SKIP_STRATEGIES: Mapping[str, PerturbationType | None] = {
    "attention_values": PerturbationType.SKIP_VIDEO_SELF_ATTN,
    "stg_av": PerturbationType.SKIP_VIDEO_SELF_ATTN,
    "attention_skip": PerturbationType.PASS_VIDEO_SELF_ATTN_INPUT,
    "stg_as": PerturbationType.PASS_VIDEO_SELF_ATTN_INPUT,
    "residual": None,
    "stg_r": None,
    "transformer_block": PerturbationType.SKIP_VIDEO_BLOCK,
    "stg_t": PerturbationType.SKIP_VIDEO_BLOCK,
}

#: True: every sample keeps the operation. False: none does. A float tensor [B, 1, 1]: 1 keep, 0 perturbed.
Keep = Tensor | bool
#: The keep of one block; an absent type is kept.
BlockKeep = Mapping[PerturbationType, Keep]


@dataclass(frozen=True)
class Perturbation:
    """One bypass: a type, and the block indices it holds in (None: all blocks)."""

    type: PerturbationType
    blocks: Sequence[int] | None = None

    def holds(self, kind: PerturbationType, block: int) -> bool:
        return self.type == kind and (self.blocks is None or block in self.blocks)


@dataclass(frozen=True)
class PerturbationConfig:
    """The perturbations of one sample; the sample is perturbed where any of them holds."""

    perturbations: Sequence[Perturbation] | None = None

    def holds(self, kind: PerturbationType, block: int) -> bool:
        return any(perturbation.holds(kind, block) for perturbation in self.perturbations or ())


@dataclass(frozen=True)
class Segment:
    """Consecutive blocks that compute the same rows, one for all samples that have not differed so far."""

    first: int
    last: int  # exclusive
    samples: tuple[int, ...]  # a sample that each row stands for
    row_of: tuple[int, ...]  # per sample, its row


class BatchedPerturbationConfig:
    """One ``PerturbationConfig`` per sample of a batch.

    ``same_as`` says per sample which sample has equal inputs, as guidance passes with one text have, and
    ``same_but_text_as`` which has inputs that differ in their text at most, as all guidance passes have; a transformer
    computes samples of equal inputs once for as long as their perturbations agree.

    ``num_blocks``, ``device`` and ``dtype`` only set the defaults of ``mask`` and ``masks``; a transformer asks for
    ``block_keeps`` with its own. Indices beyond the last block hold nowhere.
    """

    def __init__(
        self,
        configs: Sequence[PerturbationConfig],
        num_blocks: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        same_as: Sequence[int] | None = None,
        same_but_text_as: Sequence[int] | None = None,
    ) -> None:
        self.configs = tuple(configs)
        self.same_as = tuple(range(len(self.configs)) if same_as is None else same_as)
        self.same_but_text_as = self.same_as if same_but_text_as is None else tuple(same_but_text_as)
        self.num_blocks = num_blocks
        self.device = device
        self.dtype = dtype
        self._block_keeps: dict[tuple[int, torch.device, torch.dtype], tuple[BlockKeep, ...]] = {}
        self._segments: dict[int, tuple[Segment, ...]] = {}
        self._selected: dict[tuple[int, ...], BatchedPerturbationConfig] = {}

    @classmethod
    def empty(
        cls,
        batch_size: int,
        num_blocks: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> BatchedPerturbationConfig:
        """Nothing perturbed in any of ``batch_size`` samples."""
        return cls([PerturbationConfig()] * batch_size, num_blocks, device, dtype)

    @classmethod
    def from_masks(cls, masks: Tensor) -> BatchedPerturbationConfig:
        """From keep masks ``[type, block, sample]``, 1 keep and 0 perturbed; later types may be left out."""
        kept = masks.to(device="cpu") > 0
        num_types, num_blocks, batch_size = kept.shape

        def perturbations(sample: int) -> Iterator[Perturbation]:
            for kind in list(PerturbationType)[:num_types]:
                if blocks := (~kept[kind, :, sample]).nonzero().flatten().tolist():
                    yield Perturbation(kind, tuple(blocks))

        configs = [PerturbationConfig(tuple(perturbations(sample))) for sample in range(batch_size)]
        return cls(configs, num_blocks, masks.device, masks.dtype)

    @classmethod
    def from_skip_mask(cls, mask: Tensor, strategy: str) -> BatchedPerturbationConfig:
        """From LTX-Video's skip mask ``[block, sample]`` (0 perturbed) and one of ``SKIP_STRATEGIES``.

        Raises ``ConfigError`` for an unknown strategy.
        """
        check_known("skip strategy", strategy, SKIP_STRATEGIES)
        masks = mask.new_ones((len(PerturbationType), *mask.shape))
        if (kind := SKIP_STRATEGIES[strategy]) is not None:
            masks[kind] = mask
        return cls.from_masks(masks)

    def __len__(self) -> int:
        return len(self.configs)

    def batch_slice(self, start: int, stop: int) -> BatchedPerturbationConfig:
        """The samples ``start`` to ``stop`` (exclusive)."""
        return self.select(tuple(range(len(self))[start:stop]))

    def select(self, samples: tuple[int, ...]) -> BatchedPerturbationConfig:
        """Some of the samples; made once per choice, so that its masks stay on the device."""
        if samples not in self._selected:
            configs = [self.configs[sample] for sample in samples]
            labels = ([same[sample] for sample in samples] for same in (self.same_as, self.same_but_text_as))
            self._selected[samples] = BatchedPerturbationConfig(
                configs, self.num_blocks, self.device, self.dtype, *(_firsts(each) for each in labels)
            )
        return self._selected[samples]

    def alike(self, samples: Sequence[int]) -> tuple[int, ...]:
        """For each of ``samples``, the one that stands for all with equal inputs."""
        return tuple(self.same_as[sample] for sample in samples)

    def alike_but_text(self, samples: Sequence[int]) -> tuple[int, ...]:
        """The same for inputs without texts; a single one where it stands for all of ``samples``."""
        found = tuple(self.same_but_text_as[sample] for sample in samples)
        return found[:1] if len(set(found)) == 1 else found

    def segments(self, num_blocks: int) -> tuple[Segment, ...]:
        """A model's blocks, cut where more samples have to be computed apart."""
        if num_blocks not in self._segments:
            self._segments[num_blocks] = tuple(self._cut(num_blocks))
        return self._segments[num_blocks]

    def _cut(self, num_blocks: int) -> Iterator[Segment]:
        rows, first = _number(self.same_as), 0
        for block in range(num_blocks):
            differing = [tuple(config.holds(kind, block) for kind in PerturbationType) for config in self.configs]
            apart = _number(list(zip(rows, differing, strict=True)))
            if apart != rows:
                if block > first:
                    yield _segment(first, block, rows)
                rows, first = apart, block
        yield _segment(first, num_blocks, rows)

    def keep_mask(self, kind: PerturbationType, block: int) -> tuple[bool, ...]:
        """Per sample, whether the operation is kept."""
        return tuple(not config.holds(kind, block) for config in self.configs)

    def any_in_batch(self, kind: PerturbationType, block: int) -> bool:
        """Whether some sample is perturbed."""
        return not all(self.keep_mask(kind, block))

    def all_in_batch(self, kind: PerturbationType, block: int) -> bool:
        """Whether every sample is perturbed."""
        return not any(self.keep_mask(kind, block))

    def mask(self, kind: PerturbationType, block: int) -> Tensor:
        """The keep mask ``[B, 1, 1]`` of one operation."""
        keep = self.keep_mask(kind, block)
        return torch.tensor(keep, device=self.device, dtype=self.dtype or torch.bool)[:, None, None]

    def masks(self, num_blocks: int | None = None) -> Tensor:
        """All keep masks ``[type, block, sample]`` of the four LTX-2 types.

        Raises ``ConfigError`` when the number of blocks is neither given here nor known.
        """
        count = num_blocks if num_blocks is not None else self.num_blocks
        if count is None:
            raise ConfigError("num_blocks is None, expected the number of blocks of the model the masks are for")
        kinds = list(PerturbationType)[: PerturbationType.SKIP_V2A_CROSS_ATTN + 1]
        rows = [[self.keep_mask(kind, block) for block in range(count)] for kind in kinds]
        return torch.tensor(rows, device=self.device, dtype=self.dtype or torch.bool)

    def block_keeps(self, num_blocks: int, device: torch.device, dtype: torch.dtype) -> tuple[BlockKeep, ...]:
        """Masks of each block. Built once per (num_blocks, device, dtype), so a sampling loop copies no masks."""
        key = (num_blocks, device, dtype)
        if key not in self._block_keeps:
            self._block_keeps[key] = tuple(self._block_keep(block, device, dtype) for block in range(num_blocks))
        return self._block_keeps[key]

    def _block_keep(self, block: int, device: torch.device, dtype: torch.dtype) -> BlockKeep:
        keeps: dict[PerturbationType, Keep] = {}
        for kind in PerturbationType:
            kept = self.keep_mask(kind, block)
            if not any(kept):
                keeps[kind] = False
            elif not all(kept):
                keeps[kind] = torch.tensor(kept, device=device, dtype=dtype)[:, None, None]
        return keeps


def _number(labels: Sequence[Any]) -> tuple[int, ...]:
    """Labels as numbers in the order they first occur."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return tuple(numbers[label] for label in labels)


def _firsts(labels: Sequence[Any]) -> list[int]:
    """Per label, where it first occurs."""
    return [labels.index(label) for label in labels]


def _segment(first: int, last: int, rows: tuple[int, ...]) -> Segment:
    return Segment(first, last, tuple(rows.index(row) for row in range(max(rows) + 1)), rows)
