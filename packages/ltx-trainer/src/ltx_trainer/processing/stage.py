"""One kind of record for many rows: what is missing is prepared in threads, encoded in batches and written at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import CheckpointError, ConfigError, LtxError
from ltx_trainer.background import in_background
from ltx_trainer.precomputed import SUFFIXES, Record, read_inputs, write_record
from ltx_trainer.processing.inputs import changed_inputs, inputs_of
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.progress import progress
from ltx_trainer.processing.workspace import Workspace

Prepared = tuple[Any, dict[str, int | float]]  # what is encoded, and numbers of the record


@dataclass(frozen=True)
class Stage:
    """Filling of one directory. ``prepare`` runs in threads and raises `LtxError` for a row it must leave out."""

    directory: str
    prepare: Callable[[Row], Prepared]
    encode: Callable[[Sequence[Any]], Iterable[Record]]
    batch_size: int = 1


@dataclass
class Todo:
    """Work of a stage: rows without a record, or with a stale one, and the inputs of every record."""

    rows: list[Row] = field(default_factory=list)
    inputs: dict[Path, dict[str, str]] = field(default_factory=dict)  # by stem
    stale: dict[Path, Path] = field(default_factory=dict)  # records that are no longer what the table says, by stem


def work_left(stage: Stage, rows: Sequence[Row], work: Workspace) -> Todo:
    """The rows of a stage whose records are missing or stale; the report counts the others."""
    todo, report, name = Todo(), work.report, stage.directory
    described = in_background(lambda row: inputs_of(name, row, work), rows, work.options.workers)
    for row, inputs in zip(rows, described, strict=True):
        todo.inputs[row.stem] = inputs
        record = None if work.options.overwrite else work.record(name, row)
        then = None if record is None else read_inputs(record)
        other = changed_inputs(then, inputs)
        if record is not None and not other:
            report.present[name] += 1
            report.unknown[name] += then is None
            continue
        if record is not None:
            todo.stale[row.stem] = record
            report.stale[name, other[0]] += 1
        todo.rows.append(row)
    return todo


def run_stage(stage: Stage, rows: Sequence[Row], work: Workspace) -> None:
    """Write the records that are missing or stale. A row that cannot be read is reported and left out.

    Raises `CheckpointError` when the disk refuses a record, `ConfigError` when memory does not suffice, and either for
    networks that cannot be built; records that are there stay.
    """
    todo = work_left(stage, rows, work)

    def attempt(row: Row) -> tuple[Row, Prepared | LtxError]:
        try:
            return row, stage.prepare(row)
        except LtxError as error:
            return row, error

    def skip(rows: Sequence[Row], error: LtxError) -> None:
        work.report.skipped += [(stage.directory, str(row.stem), str(error)) for row in rows]
        for row in rows:
            if row.stem in todo.stale:
                todo.stale[row.stem].unlink(missing_ok=True)

    results = in_background(attempt, todo.rows, work.options.workers)
    if work.shows_progress:
        results = progress(results, stage.directory, len(todo.rows))
    try:
        for group in _batches(results, stage, skip):
            try:
                with torch.no_grad():
                    records = list(stage.encode([inputs for _, (inputs, _) in group]))
            except (ConfigError, CheckpointError):  # of the networks, no fault of these rows
                raise
            except LtxError as error:
                skip([row for row, _ in group], error)
                continue
            for (row, (_, values)), record in zip(group, records, strict=True):
                base = work.output / stage.directory / row.stem
                path = base.with_name(f"{base.name}{SUFFIXES[0]}")
                write_record(path, {**record, **values}, todo.inputs[row.stem])
                work.report.written[stage.directory] += 1
    except torch.OutOfMemoryError as error:  # also of what prepares: a control may be a network
        raise ConfigError(f"{stage.directory}: out of memory; try tiling, smaller buckets or batches") from error


def _batches(
    results: Iterable[tuple[Row, Prepared | LtxError]], stage: Stage, skip: Callable[[Sequence[Row], LtxError], None]
) -> Iterator[list[tuple[Row, Prepared]]]:
    """Groups of rows whose inputs have one shape, as they fill up; what cannot be prepared is skipped."""
    waiting: dict[Any, list[tuple[Row, Prepared]]] = {}
    for row, prepared in results:
        if isinstance(prepared, LtxError):
            skip([row], prepared)
            continue
        key = tuple(prepared[0].shape) if isinstance(prepared[0], Tensor) else None
        group = waiting.setdefault(key, [])
        group.append((row, prepared))
        if len(group) == stage.batch_size:
            yield waiting.pop(key)
    yield from waiting.values()
