"""One kind of record for many rows: what is missing is prepared in threads, encoded in batches and written at once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError, LtxError
from ltx_core.precision import resolve
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_media.source import Change
from ltx_trainer.background import in_background
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import SUFFIXES, Record, read_values, write_record
from ltx_trainer.processing.buckets import Bucket
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.progress import progress

Prepared = tuple[Any, dict[str, int | float]]  # what is encoded, and numbers of the record


@dataclass(frozen=True)
class ProcessingOptions:
    """How a data set is processed. ``fps`` None keeps each clip's own frame rate."""

    buckets: tuple[Bucket, ...] = ()
    fps: float | None = None
    skip_audio: bool = False
    audio_durations: tuple[float, ...] = ()  # seconds; of sound without video
    trigger: str | None = None
    remove_openings: bool = False
    reference_downscale_factor: int = 1
    reference_temporal_scale_factor: int = 1
    tiling: bool = False
    random_crop: bool = False
    overwrite: bool = False
    batch_size: int = 1
    workers: int = 2
    device: str = "cpu"
    text_encoder_in_8bit: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the video and the text encoder."""
        return resolve("auto", self.device).dtype


@dataclass
class Report:
    """What became of a data set: records per directory, and every row left out with the reason."""

    written: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)  # there already
    skipped: list[tuple[str, str, str]] = field(default_factory=list)  # directory, row, reason
    changes: dict[str, list[str]] = field(default_factory=dict)  # by kind: what of which source
    notes: list[str] = field(default_factory=list)

    def changed(self, path: Path, changes: Sequence[Change]) -> None:
        """Keep what was changed of a source."""
        for change in changes:
            self.changes.setdefault(change.what, []).append(f"{path.name}: {change.how}")

    def lines(self) -> list[str]:
        """The report as text, one fact a line."""
        names = list(dict.fromkeys([*self.written, *self.present, *(name for name, _, _ in self.skipped)]))
        lost = Counter(name for name, _, _ in self.skipped)
        counts = [
            f"{name}: {self.written[name]} written, {self.present[name]} already there, {lost[name]} skipped"
            for name in names
        ]
        skipped = [f"skipped {name}/{row}: {reason}" for name, row, reason in self.skipped]
        changed = [
            f"{what} of {len(found)} sources changed, such as {found[0]}" for what, found in self.changes.items()
        ]
        return [*counts, *skipped, *changed, *self.notes]


@dataclass(frozen=True)
class Workspace:
    """Where records go, and the networks that make them, each built when it is first needed."""

    output: Path
    models: ModelFiles
    options: ProcessingOptions
    factors: SpatioTemporalScaleFactors = field(default_factory=SpatioTemporalScaleFactors.default)
    report: Report = field(default_factory=Report)
    _networks: dict[str, nn.Module] = field(default_factory=dict)

    def network(self, name: str) -> Any:
        """A network on the device; audio networks in float32."""
        if name not in self._networks:
            dtype = torch.float32 if name.startswith("audio") else self.options.dtype
            self._networks[name] = self.models.build(name, dtype, self.options.device)
        return self._networks[name]

    def release(self) -> None:
        """Let go of all networks."""
        self._networks.clear()

    def record(self, directory: str, row: Row) -> Path | None:
        """The record of a row that is there already."""
        base = self.output / directory / row.stem
        paths = (base.with_name(base.name + suffix) for suffix in SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def values(self, directory: str, row: Row) -> dict[str, Any] | None:
        """The numbers of a row's record, None where there is none."""
        path = self.record(directory, row)
        return None if path is None else read_values(path)

    def crop(self, row: Row) -> tuple[float, float]:
        """Where frames of a row are cut: the centre, or a place that is the row's own."""
        if not self.options.random_crop:
            return 0.5, 0.5
        digest = hashlib.sha256(str(row.stem).encode()).digest()
        return digest[0] / 255, digest[1] / 255


@dataclass(frozen=True)
class Stage:
    """How one directory is filled. ``prepare`` runs in threads and raises `LtxError` for a row it must leave out."""

    directory: str
    prepare: Callable[[Row], Prepared]
    encode: Callable[[Sequence[Any]], Iterable[Record]]
    batch_size: int = 1


def run_stage(stage: Stage, rows: Sequence[Row], work: Workspace) -> None:
    """Write the records that are missing. A row that cannot be read is reported and left out.

    Raises `CheckpointError` when the disk refuses a record; the ones before it stay.
    """
    missing = [row for row in rows if work.options.overwrite or not work.record(stage.directory, row)]
    work.report.present[stage.directory] += len(rows) - len(missing)

    def attempt(row: Row) -> tuple[Row, Prepared | LtxError]:
        try:
            return row, stage.prepare(row)
        except LtxError as error:
            return row, error

    results = in_background(attempt, missing, work.options.workers)
    for group in _batches(progress(results, stage.directory, len(missing)), stage, work.report):
        try:
            with torch.no_grad():
                records = list(stage.encode([inputs for _, (inputs, _) in group]))
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"{stage.directory}: out of memory; try tiling, smaller buckets or batches") from error
        except LtxError as error:
            _skip(stage, [row for row, _ in group], error, work.report)
            continue
        for (row, (_, values)), record in zip(group, records, strict=True):
            base = work.output / stage.directory / row.stem
            write_record(base.with_name(f"{base.name}{SUFFIXES[0]}"), {**record, **values})
            work.report.written[stage.directory] += 1


def _batches(
    results: Iterable[tuple[Row, Prepared | LtxError]], stage: Stage, report: Report
) -> Iterator[list[tuple[Row, Prepared]]]:
    """Groups of rows whose inputs have one shape, as they fill up; what cannot be prepared is reported."""
    waiting: dict[Any, list[tuple[Row, Prepared]]] = {}
    for row, prepared in results:
        if isinstance(prepared, LtxError):
            _skip(stage, [row], prepared, report)
            continue
        key = tuple(prepared[0].shape) if isinstance(prepared[0], Tensor) else None
        group = waiting.setdefault(key, [])
        group.append((row, prepared))
        if len(group) == stage.batch_size:
            yield waiting.pop(key)
    yield from waiting.values()


def _skip(stage: Stage, rows: Sequence[Row], error: LtxError, report: Report) -> None:
    report.skipped += [(stage.directory, str(row.stem), str(error)) for row in rows]


def rank() -> int:
    """The number of this process where a launcher started several."""
    return int(os.environ.get("RANK", "0"))


def share(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of this process when a launcher started several: every n-th from its rank on."""
    return rows[rank() :: int(os.environ.get("WORLD_SIZE", "1"))]


def default_device() -> str:
    """The accelerator of this process, else the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
