"""The data sets of a run: what is not encoded yet is encoded before it begins or when it is drawn; the rest is kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError
from ltx_core.fingerprint import fingerprint
from ltx_trainer.data_config import DataConfig, DataSetConfig
from ltx_trainer.datasets import DataMix, PrecomputedDataset
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import ROLES_OF, read_inputs, record_path
from ltx_trainer.processing.dataset import (
    AUDIO,
    CAPTIONS,
    VIDEO,
    any_sound,
    describe,
    open_rows,
    process_dataset,
    process_rows,
    write_report,
)
from ltx_trainer.processing.inputs import FILE, table_inputs
from ltx_trainer.processing.lazily import Expected, LazyDataset, waiting_clips
from ltx_trainer.processing.metadata import read_rows
from ltx_trainer.processing.options import ProcessingOptions
from ltx_trainer.processing.workspace import Report, Workspace, share

logger = logging.getLogger(__name__)

#: The column of a table that fills a directory; captions and the sound of videos need none.
COLUMNS = {
    "latents": "video",
    "reference_latents": "reference_video",
    "reference_audio_latents": "reference_audio",
    "video_masks": "video_mask",
    "audio_masks": "audio_mask",
    "loss_masks": "loss_mask",
    "keyframe_latents": "video",
}


def open_sets(
    data: DataConfig, models: ModelFiles, sources: Mapping[str, str], device: str, wait: Callable[[], None]
) -> DataMix:
    """The data sets of a run, encoded where they are to be ahead. Every process does its share and calls ``wait``.

    Raises `ConfigError` for a column that is missing, and where a directory stays empty, with the reason.
    """
    waiting: dict[Path, dict[Path, Expected]] = {root: {} for root in data.roots}
    networks: dict[str, Any] = {}
    for one in data.unprepared:
        if data.encode == "ahead":
            report = prepare_set(one, models, sources, device, data.num_dataloader_workers)
        else:
            options = options_of(one, sources, device, data.num_dataloader_workers)
            expected, report = wait_for_draws(one, models, sources, options, networks)
            waiting[one.root] |= expected
        wait()  # a process may have had no clip
        check_records(one, sources, report)
    return DataMix(
        [
            LazyDataset(root, sources, waiting[root]) if waiting[root] else PrecomputedDataset(root, sources)
            for root in data.roots
        ]
    )


def options_of(one: DataSetConfig, directories: Iterable[str], device: str, workers: int) -> ProcessingOptions:
    """How the clips of a set are processed for a run that reads ``directories``."""
    return ProcessingOptions(
        fps=one.fps,
        skip_audio=one.skip_audio or "audio_latents" not in directories,
        audio_durations=one.audio_durations,
        trigger=one.trigger,
        reference_downscale_factor=one.reference_downscale_factor,
        long_clips=one.long_clips,
        stride=one.stride,
        keyframes=list(one.keyframes),
        control=one.control,
        workers=workers,
        device=device,
    )


def prepare_set(
    one: DataSetConfig, models: ModelFiles, directories: Iterable[str], device: str, workers: int
) -> Report:
    """Make the records of a set that a run reads from ``directories``. Raises `ConfigError` for a missing column."""
    directories = list(directories)
    check_columns(one, directories)
    options = options_of(one, directories, device, workers)
    return process_dataset(Path(one.path), models, one.resolution, options, one.root)


def wait_for_draws(
    one: DataSetConfig,
    models: ModelFiles,
    directories: Iterable[str],
    options: ProcessingOptions,
    networks: dict[str, Any],
) -> tuple[dict[Path, Expected], Report]:
    """The clips of a set that are encoded when they are drawn; captions, and clips that cannot wait, are encoded.

    Clips of all sets that wait share ``networks``. Raises as `prepare_set` does.
    """
    directories = list(directories)
    check_columns(one, directories)
    work = Workspace(one.root, models, options, models.scale_factors(), networks=networks)
    rows, work = open_rows(Path(one.path), work, buckets=one.resolution)
    sounding = any_sound(rows, work)
    foreseen = [name for name in directories if sounding or name != "audio_latents"]
    waiting = waiting_clips(rows, work, foreseen)
    process_rows(share(rows), work, (CAPTIONS,))
    ahead = share([row for row in rows if row.stem not in waiting])
    process_rows(ahead, work, (VIDEO, AUDIO) if sounding else (VIDEO,), sounding)
    describe(ahead, work, [(expected.bucket, expected.fps) for expected in waiting.values()])
    if waiting:
        work.report.notes.append(f"{len(waiting)} of {len(rows)} clips are encoded when they are first drawn")
    write_report(work)
    for name in foreseen:
        if any(name in expected.signatures for expected in waiting.values()):
            (one.root / name).mkdir(parents=True, exist_ok=True)
    quiet = replace(work, options=replace(work.options, workers=0), shows_progress=False)
    return {stem: replace(expected, work=quiet) for stem, expected in waiting.items()}, work.report


def check_records(one: DataSetConfig, directories: Iterable[str], report: Report) -> None:
    """Log a report; refuse a set of whose records some kind is missing altogether."""
    for line in report.lines():
        logger.info("%s: %s", one.path, line)
    for name in directories:
        if not (one.root / name).is_dir():
            reason = next((why for place, _, why in report.skipped if place == name), None) or report.notes[-1:]
            raise ConfigError(f"{one.path}: nothing came of {name}/, which training_strategy reads: {reason}")


def clips_fingerprint(one: DataSetConfig, models: ModelFiles, directories: Iterable[str], count: int) -> str:
    """Number of examples of a set, and a digest of what their records are made of, whether they are made yet or not."""
    others = [path for name, path in vars(models).items() if path is not None and name != "model_path"]
    made_of: list[Any] = [one.model_dump(mode="json", exclude={"path", "repeats", "weight"}), *map(fingerprint, others)]
    for row in read_rows(one.path):
        for name in directories:
            if not {"caption", *row.media} & set(ROLES_OF.get(name, ())):
                continue
            inputs = table_inputs(name, row)
            record = record_path(one.root, name, row.stem)
            if FILE not in inputs and record is not None:  # the file is gone, what was made of it is kept
                inputs |= {key: value for key, value in (read_inputs(record) or {}).items() if key == FILE}
            made_of.append([name, row.stem.as_posix(), inputs])
    digest = hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=8)
    return f"{count} examples {digest.hexdigest()}"


def check_columns(one: DataSetConfig, directories: Iterable[str]) -> None:
    """Refuse a set that lacks what a run is to learn from."""
    rows = read_rows(one.path)
    present = {role for row in rows for role in row.media} | ({"reference_video"} if one.control else set())
    for name in directories:
        column = COLUMNS.get(name)
        if column is not None and column not in present:
            there = ", ".join(sorted(present))
            raise ConfigError(f"{one.path} has no {column}, which training_strategy reads as {name}/; it has {there}")
