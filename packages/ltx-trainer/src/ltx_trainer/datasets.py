"""Precomputed data sets: which files make an example, which examples make a batch, and reading them ahead.

The order of batches is a pure function of (seed, position): a resumed run needs no more than the number of its step,
and N processes take slices of the batch that one process would see.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, cycle, islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import ConfigError, MediaError
from ltx_core.textfiles import path_of
from ltx_trainer.background import in_background
from ltx_trainer.data_config import PRECOMPUTED
from ltx_trainer.draws import derived_seed
from ltx_trainer.precomputed import SUFFIX, SUFFIXES, is_listed, listed_rows, read_record, signature

logger = logging.getLogger(__name__)

EMPTY_CAPTION = f"empty_caption{SUFFIX}"
DEFAULT_SOURCES = {"latents": "latent_conditions", "conditions": "text_conditions"}
SIGNATURE_WORKERS = 8
EDGE = 4096  # bytes of a record that tell it from another
PART = re.compile(r"[+@]\d+$")  # the end of the name of one example of several made of a clip

Example = dict[str, Any]  # {key of a source: its record} and ``idx``
Batch = dict[str, Any]  # the same, collated


class MissingDirectoryError(ConfigError, FileNotFoundError):
    """A data set lacks a directory that is read."""


class UnreadableClipError(MediaError):
    """An example's clip, which looked whole, cannot be read."""


class PrecomputedDataset:
    """Examples whose files are there in every source, and which a table of the data set still names.

    ``sources`` maps directories under ``root`` to keys of an example; a list names keys after directories. The
    directory ``latents``, else the first source, decides which examples there are; ``skipped`` counts those with a file
    missing elsewhere, ``orphans`` those that no table names. Raises `ConfigError` when a directory is missing or no
    example is whole.
    """

    def __init__(self, root: str | Path, sources: Mapping[str, str] | Sequence[str] | None = None) -> None:
        given = path_of(root)
        self.root = given / PRECOMPUTED if (given / PRECOMPUTED).is_dir() else given
        sources = DEFAULT_SOURCES if sources is None else sources
        self.sources = dict(sources) if isinstance(sources, Mapping) else {name: name for name in sources}
        for name in self.sources:
            if not (self.root / name).is_dir():
                raise MissingDirectoryError(f"{self.root} holds no {name}/, expected {', '.join(self.sources)}")
        primary = "latents" if "latents" in self.sources else next(iter(self.sources))
        self.listed = listed_rows(self.root)
        found = self.names(primary)
        named = [path for path in found if self._is_listed(primary, path)]
        self.orphans = len(found) - len(named)
        if self.orphans:
            logger.warning(
                "%d of %s are named by no table and not read; `ltx dataset check` shows them", self.orphans, primary
            )
        candidates = [self._counterparts(primary, path) for path in named]
        self.examples = [example for example in candidates if example is not None]
        self.skipped = len(candidates) - len(self.examples)
        if not self.examples:
            what = f"{len(candidates)} files in {primary}/, none with a counterpart in every other directory"
            none = f"no table names any of {len(found)} files in {primary}/" if found else f"{primary}/ is empty"
            raise ConfigError(f"{self.root} holds no whole example: {what if candidates else none}")

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def num_waiting(self) -> int:
        """Number of examples whose records are still to be made."""
        return 0

    def names(self, directory: str) -> list[Path]:
        """Records in a directory, relative to it."""
        return _files(self.root / directory)

    def holds(self, directory: str, name: Path) -> bool:
        """Whether there is a record of this name."""
        return (self.root / directory / name).is_file()

    def __getitem__(self, index: int) -> Example:
        example: Example = {"idx": index}
        for directory, key in self.sources.items():
            record = read_record(self.root / directory / self.examples[index][directory])
            example[key] = _unpatchify(record) if "latent" in directory else record
        return example

    def relative_paths(self) -> dict[str, list[Path]]:
        """For each key the files of all examples, relative to its directory."""
        return {key: [example[name] for example in self.examples] for name, key in self.sources.items()}

    def signature(self, index: int) -> tuple[Any, ...]:
        """Examples with equal signatures can share a batch."""
        return tuple(signature(self.root / name / path) for name, path in self.examples[index].items())

    def fingerprint(self) -> str:
        """Number of examples, and a digest of their names, sizes and the beginning and end of every file."""
        digest = hashlib.blake2b(digest_size=8)
        for example in self.examples:
            for name, path in example.items():
                with (self.root / name / path).open("rb") as file:
                    digest.update(f"{name}/{path}".encode() + file.read(EDGE))
                    digest.update(str(size := file.seek(0, 2)).encode())
                    file.seek(max(size - EDGE, 0))
                    digest.update(file.read(EDGE))
        return f"{len(self)} examples {digest.hexdigest()}"

    def empty_caption(self) -> Mapping[str, Any]:
        """The record of the empty caption, for caption dropout. Raises `ConfigError` where it was not stored."""
        path = self.root / EMPTY_CAPTION
        if not path.is_file():
            raise ConfigError(f"caption dropout needs {path}; process the captions again to make it")
        return read_record(path)

    def stem(self, index: int) -> Path:
        """The name of an example's records."""
        return next(iter(self.examples[index].values())).with_suffix("")

    def clip(self, index: int) -> str:
        """The name of the clip an example is, or is a part of."""
        return PART.sub("", str(self.stem(index)))

    def _counterparts(self, primary: str, path: Path) -> dict[str, Path] | None:
        """The file of one example in every source, or None where one is missing."""
        found = {name: path if name == primary else self._counterpart(name, path) for name in self.sources}
        whole = {name: file for name, file in found.items() if file is not None}
        return whole if len(whole) == len(found) else None

    def _counterpart(self, directory: str, path: Path) -> Path | None:
        stem = path.name.removesuffix(path.suffix)
        stems = [path.parent / stem]
        if directory == "conditions" and stem.startswith("latent_"):
            stems.append(Path(f"condition_{stem.removeprefix('latent_')}"))
        names = [one.with_name(one.name + suffix) for one in stems for suffix in SUFFIXES]
        there = (name for name in names if self.holds(directory, name))
        return next((name for name in there if self._is_listed(directory, name)), None)

    def _is_listed(self, directory: str, path: Path) -> bool:
        return self.listed is None or is_listed(directory, path, self.listed)


class DataMix:
    """Several data sets as one: the examples of the first, then those of the second, and so on."""

    def __init__(self, members: Sequence[PrecomputedDataset]) -> None:
        self.members = tuple(members)
        self.places = [(member, index) for member in self.members for index in range(len(member))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        member, place = self.places[index]
        return {**member[place], "idx": index}

    @property
    def num_waiting(self) -> int:
        """Number of examples whose records are still to be made."""
        return sum(member.num_waiting for member in self.members)

    def signature(self, index: int) -> tuple[Any, ...]:
        """Examples with equal signatures can share a batch."""
        member, place = self.places[index]
        return member.signature(place)

    def empty_caption(self) -> Mapping[str, Any]:
        """The record of the empty caption, for caption dropout."""
        return self.members[0].empty_caption()

    def held_out(self, count: int = 0, share: float = 0.0) -> tuple[list[int], list[int]]:
        """(indices to train on, indices to keep apart): so many examples or a share of the clips, by their names alone.

        All parts of a clip stay together where a share is asked for. Raises `ConfigError` when none is left to train.
        """
        ranks = [_rank(member.clip(place)) for member, place in self.places]
        if share:
            held = {index for index, rank in enumerate(ranks) if rank < share}
        else:
            held = set(sorted(range(len(self)), key=ranks.__getitem__)[:count])
        if len(held) >= len(self):
            raise ConfigError(f"{len(held)} examples would be held out, expected fewer than the {len(self)} there are")
        return [index for index in range(len(self)) if index not in held], sorted(held)

    def epoch(self, indices: Sequence[int], repeats: Sequence[int], weights: Sequence[float | None]) -> list[int]:
        """``indices`` as often as an epoch meets them: each set's ``repeats`` times, then the whole set so often that
        sets with a ``weight`` fill the batches in that proportion and no example is left out.
        """
        sets: list[list[int]] = [[] for _ in self.members]
        owners = {id(member): number for number, member in enumerate(self.members)}
        for index in indices:
            sets[owners[id(self.places[index][0])]].append(index)
        sets = [examples * times for examples, times in zip(sets, repeats, strict=True)]
        if all(weight is None for weight in weights):
            return [index for examples in sets for index in examples]
        shares = [len(examples) if weight is None else weight for examples, weight in zip(sets, weights, strict=True)]
        scale = max((len(examples) / share for examples, share in zip(sets, shares, strict=True)), default=1.0)
        counts = [round(share * scale) if examples else 0 for examples, share in zip(sets, shares, strict=True)]
        return [index for examples, count in zip(sets, counts, strict=True) for index in islice(cycle(examples), count)]


def _rank(name: str) -> float:
    """A number in [0, 1) that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) / 2**56


def _files(directory: Path) -> list[Path]:
    """Records below ``directory``, relative to it, sorted; of two that differ in their suffix only, the safetensors."""
    paths = sorted(path for suffix in SUFFIXES for path in directory.rglob(f"*{suffix}") if path.name[0] != ".")
    stems: dict[Path, Path] = {}
    for path in paths:
        stem = path.with_suffix("")
        if stem not in stems or path.suffix == SUFFIX:
            stems[stem] = path
    return [path.relative_to(directory) for path in stems.values()]


def _unpatchify(record: dict[str, Any]) -> dict[str, Any]:
    """Latents stored as tokens ``[F*H*W, C]`` in their grid ``[C, F, H, W]``; others as they are."""
    latents = record["latents"]
    if latents.ndim != 2:
        return record
    grid = (record["num_frames"], record["height"], record["width"])
    return {**record, "latents": latents.unflatten(0, grid).movedim(-1, 0).contiguous()}


def collate(examples: Sequence[Any]) -> Any:
    """Stack examples: tensors ``[B, ...]``, whole numbers int64 [B], others float64 [B].

    ``present`` counts as 1 where a record does not say. Raises `ConfigError` for examples that do not fit together.
    """
    first = examples[0]
    if not isinstance(first, Mapping):
        return _stack(examples)
    names = dict.fromkeys(name for example in examples for name in example)
    batch: Batch = {}
    for name in names:
        values = [example.get(name, 1) if name == "present" else example.get(name) for example in examples]
        if any(value is None for value in values):
            raise ConfigError(f"some examples of a batch have {name} and some have not")
        try:
            batch[name] = collate(values)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"examples of a batch differ in {name}: {error}") from error
    return batch


def _stack(values: Sequence[Any]) -> Tensor:
    if isinstance(values[0], Tensor):
        return torch.stack(list(values))
    return torch.tensor(values, dtype=torch.float64 if isinstance(values[0], float) else torch.int64)


@dataclass(frozen=True)
class BatchOrder:
    """Examples in the batch at a position: every example once an epoch, buckets and their batches shuffled.

    A bucket whose size is no multiple of ``batch_size`` (of all processes together) is filled up with examples of its
    own, so that small buckets are trained on too.
    """

    buckets: tuple[tuple[int, ...], ...]
    batch_size: int
    seed: int

    @classmethod
    def of(
        cls, dataset: PrecomputedDataset | DataMix, batch_size: int, seed: int, indices: Sequence[int] | None = None
    ) -> BatchOrder:
        """Buckets of examples that can share a batch; ``indices`` restricts the examples."""
        chosen = list(range(len(dataset)) if indices is None else indices)
        if batch_size == 1:
            return cls((tuple(chosen),), batch_size, seed)
        buckets: dict[tuple[Any, ...], list[int]] = {}
        for index, key in zip(chosen, in_background(dataset.signature, chosen, SIGNATURE_WORKERS), strict=True):
            buckets.setdefault(key, []).append(index)
        return cls(tuple(tuple(bucket) for bucket in buckets.values()), batch_size, seed)

    @property
    def batches_per_epoch(self) -> int:
        return sum(ceil(len(bucket) / self.batch_size) for bucket in self.buckets)

    def in_place_of(self, index: int) -> Iterator[int]:
        """Examples of one's size, from the next in the data set on."""
        bucket = next(bucket for bucket in self.buckets if index in bucket)
        place = bucket.index(index)
        return (other for other in (*bucket[place:], *bucket[:place]) if other != index)

    def at(self, position: int) -> tuple[int, ...]:
        """The examples of the batch at ``position``, counted from the start of the run."""
        epoch, offset = divmod(position, self.batches_per_epoch)
        return self.epoch(epoch)[offset]

    def epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """All batches of an epoch."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        size = self.batch_size
        batches = []
        for bucket in self.buckets:
            shuffled = [bucket[i] for i in torch.randperm(len(bucket), generator=generator).tolist()]
            whole = ceil(len(shuffled) / size) * size
            filled = [shuffled[i % len(shuffled)] for i in range(whole)]
            batches += [tuple(filled[start : start + size]) for start in range(0, whole, size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def read_batches(
    dataset: PrecomputedDataset | DataMix,
    order: BatchOrder,
    first: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
) -> Iterator[Batch]:
    """Endless batches from position ``first`` on: this process's share of each, read ahead by ``workers`` threads."""
    share = order.batch_size // world_size
    pin = workers > 0 and torch.cuda.is_available()
    epochs = lru_cache(maxsize=2)(order.epoch)

    def read(position: int) -> Batch:
        epoch, offset = divmod(position, order.batches_per_epoch)
        indices = epochs(epoch)[offset][rank * share : (rank + 1) * share]
        batch = collate([_example(dataset, order, index) for index in indices])
        return _pin(batch) if pin else batch

    return in_background(read, count(first), workers)


def _example(dataset: PrecomputedDataset | DataMix, order: BatchOrder, index: int) -> Example:
    """An example; one of its size where its clip cannot be read, the same one in every run."""
    try:
        return dataset[index]
    except UnreadableClipError as error:
        for other in order.in_place_of(index):
            with suppress(UnreadableClipError):
                return dataset[other]
        raise error


def _pin(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.pin_memory()
    return {name: _pin(value) for name, value in batch.items()}
