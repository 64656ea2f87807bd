"""A whole data set: every kind of record its rows call for, one network at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError, LtxError
from ltx_core.parallel.executor import workers
from ltx_trainer.data_config import records_root
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import ROLES_OF, listed_rows, read_inputs, record_path
from ltx_trainer.processing.audio_stages import audio_mask_stage, audio_reference_stage, audio_stage, has_sound
from ltx_trainer.processing.buckets import Bucket, parse_buckets
from ltx_trainer.processing.caption_stage import run_caption_stage
from ltx_trainer.processing.inputs import changed_inputs, list_path, listed_parts, orphans, table_inputs, write_list
from ltx_trainer.processing.metadata import Row, read_rows
from ltx_trainer.processing.options import ProcessingOptions, default_device
from ltx_trainer.processing.parts import asked_rows
from ltx_trainer.processing.progress import progress
from ltx_trainer.processing.stage import run_stage
from ltx_trainer.processing.video_stages import (
    check_keyframes,
    check_reference_factors,
    keyframe_stage,
    loss_mask_stage,
    mask_stage,
    reference_stage,
    target_bucket,
    target_fps,
    video_stage,
)
from ltx_trainer.processing.workspace import Report, Workspace, rank, share

CAPTIONS, VIDEO, AUDIO = "captions", "video", "audio"  # parts of the work
ROWS = 8  # that a worker on a cluster is given at a time, at most


def process_dataset(
    metadata: Path,
    models: ModelFiles,
    buckets: str | None,
    options: ProcessingOptions,
    output: Path | None = None,
    columns: tuple[str | None, str | None] = (None, None),
    *parts: str,
) -> Report:
    """Make the records of all rows of ``metadata`` below ``output`` (by default ``.precomputed`` beside it).

    ``models`` are the files of the networks that encode; ``options`` say how, its ``buckets`` excepted:
    ``buckets`` is ``"WxHxF;..."``, needed with videos; ``columns`` may name those of the video and the caption;
    ``parts`` restricts the work to captions, video or audio. Records that are there already stay as they are, unless
    what they were made of has changed. Rows that cannot be read are left out and reported, also in ``report.txt``.
    On a cluster workers read and write these files under the same names.
    Raises `ConfigError` for what makes the whole run pointless, before any network is loaded.
    """
    if options.cluster is not None:
        metadata, output, models = metadata.absolute(), output and output.absolute(), models.absolute()
    parts = parts or (CAPTIONS, VIDEO, AUDIO)
    work = Workspace(output or records_root(metadata), models, options, models.scale_factors())
    rows, work = open_rows(metadata, work, columns, buckets, VIDEO in parts)
    mine = share(rows)
    process_rows(mine, work, parts)
    if CAPTIONS in parts and (blank := sum(not row.caption.strip() for row in mine)):
        work.report.notes.append(f"{blank} captions are blank")
    describe(mine, work)
    write_report(work)
    return work.report


def open_rows(
    metadata: Path,
    work: Workspace,
    columns: tuple[str | None, str | None] = (None, None),
    buckets: str | None = None,
    with_videos: bool = True,
) -> tuple[list[Row], Workspace]:
    """The rows that a table comes to with the options of ``work``, and ``work`` with buckets; the rows are listed."""
    rows = read_rows(metadata, *columns)
    if with_videos:
        work = with_buckets(work, rows, buckets)
    rows = asked_rows(rows, work.options)
    if not rank():
        write_list(work.output, metadata, rows)
    return rows, work


def write_report(work: Workspace) -> None:
    """Keep the report beside the records."""
    work.output.mkdir(parents=True, exist_ok=True)
    path = work.output / (f"report.{rank()}.txt" if rank() else "report.txt")
    path.write_text("".join(f"{line}\n" for line in work.report.lines()), encoding="utf-8")


@dataclass(frozen=True)
class Share:
    """Work given to a processor at a time: rows, and which part of the work to do for them."""

    part: str
    rows: Sequence[Row]
    sounding: bool = False  # whether any row of the whole set has sound


@dataclass
class Processor:
    """Makes the records of shares; networks stay as long as the part of the work does."""

    work: Workspace
    part: str = ""

    def __call__(self, share: Share, tell: Any = None) -> Report:
        """Outcome for the rows."""
        if share.part != self.part:
            self.work.release()
            self.part = share.part
        work = replace(self.work, report=Report())
        if share.part == CAPTIONS:
            run_caption_stage(share.rows, work)
        elif share.part == VIDEO:
            process_videos(share.rows, work)
        else:
            process_sounds(share.rows, work, share.sounding)
        return work.report


def processor_elsewhere(work: Workspace) -> Processor:
    """A processor on the device of its own machine."""
    return Processor(replace(work, options=replace(work.options, device=default_device())))


def process_rows(rows: Sequence[Row], work: Workspace, parts: Sequence[str], sounding: bool = False) -> None:
    """The records of all rows, one part of the work after the other, since sound and masks follow their videos.

    ``sounding`` says that others of the set have sound, so that silence is written too.
    """
    cluster, size = work.options.cluster, max(len(rows), 1)
    if cluster is not None:
        size = max(work.options.batch_size, min(ROWS, math.ceil(size / ROWS)))
    make = partial(Processor if cluster is None else processor_elsewhere, work)
    with workers(make, cluster) as run:
        for part in (one for one in (CAPTIONS, VIDEO, AUDIO) if one in parts):
            heard = part == AUDIO and (sounding or any_sound(may_sound(rows, work), work))
            shares = [Share(part, rows[at : at + size], heard) for at in range(0, len(rows), size)]
            ended = run(shares) if cluster is None else progress(run(shares), part, len(shares))
            for _, report in ended:
                if isinstance(report, LtxError):
                    raise report
                work.report.add(report)
    work.release()


@dataclass(frozen=True)
class Findings:
    """Differences between a prepared data set and its table: stale, missing and unnamed records."""

    stale: tuple[str, ...]
    missing: tuple[str, ...]
    orphans: tuple[Path, ...]

    def lines(self) -> list[str]:
        """One fact a line."""
        return [*self.stale, *self.missing, *(f"orphan {path}: no table names it" for path in self.orphans)]


def check_dataset(
    metadata: Path, output: Path | None = None, columns: tuple[str | None, str | None] = (None, None)
) -> Findings:
    """Compare the records below ``output`` with the captions and files of ``metadata``; no model is needed.

    Other tables of the same folder keep their records. Raises `ConfigError` for a table that cannot be read.
    """
    root = output or records_root(metadata)
    rows = listed_parts(root, metadata, read_rows(metadata, *columns))
    stale, missing = [], []
    for directory, wanted in ROLES_OF.items():
        if not (root / directory).is_dir():
            continue
        for row, roles in rows:
            if not set(wanted) & set(roles):
                continue
            path = record_path(root, directory, row.stem)
            if path is None:
                missing.append(f"missing {directory}/{row.stem}")
            elif other := changed_inputs(read_inputs(path), table_inputs(directory, row)):
                stale.append(f"stale {directory}/{row.stem}: another {other[0]}")
    listed = listed_rows(root, but=list_path(root, metadata)) or {}
    for row, roles in rows:
        listed.setdefault(row.stem.as_posix(), set()).update(roles)
    return Findings(tuple(stale), tuple(missing), tuple(orphans(root, listed)))


def with_buckets(work: Workspace, rows: Sequence[Row], buckets: str | None) -> Workspace:
    """Check the buckets against the rows and the model, before any network is loaded."""
    options, factors = work.options, work.factors
    if any("video" in row.media for row in rows):
        if not buckets:
            raise ConfigError("the data set has videos, expected resolution buckets such as 960x544x49")
        options = replace(options, buckets=parse_buckets(buckets, factors))
        check_keyframes(options.buckets, options.keyframes)
    if any("reference_video" in row.media for row in rows):
        scale, factor = options.reference_downscale_factor, options.reference_temporal_scale_factor
        check_reference_factors(options.buckets, scale, factor, factors)
    return replace(work, options=options)


def process_videos(rows: Sequence[Row], work: Workspace) -> None:
    """Latents, reference latents, masks and keyframes of the rows that have videos."""
    run_stage(video_stage(work), [row for row in rows if "video" in row.media], work)
    stages = [("reference_video", reference_stage), ("video_mask", mask_stage), ("loss_mask", loss_mask_stage)]
    stages += [("video", keyframe_stage)] if work.options.keyframes else []
    for role, stage in stages:
        if having := [row for row in rows if role in row.media and work.record("latents", row)]:
            run_stage(stage(work), having, work)


def process_sounds(rows: Sequence[Row], work: Workspace, sounding: bool) -> None:
    """Audio latents, references and masks; where no row of the set has sound, nothing is written."""
    if sounding:
        run_stage(audio_stage(work), may_sound(rows, work), work)
    for role, stage in (("reference_audio", audio_reference_stage), ("audio_mask", audio_mask_stage)):
        if having := [row for row in rows if role in row.media and work.record("audio_latents", row)]:
            run_stage(stage(work), having, work)


def may_sound(rows: Sequence[Row], work: Workspace) -> list[Row]:
    """The rows without a video, and those whose video could be read."""
    return [row for row in rows if "video" not in row.media or work.record("latents", row)]


def any_sound(rows: Sequence[Row], work: Workspace) -> bool:
    """Whether sound is wanted and any row has it; it is noted where none has."""
    if work.options.skip_audio:
        return False
    if any(map(has_sound, rows)):
        return True
    if rows:
        work.report.notes.append("no clip has sound: there are no audio_latents")
    return False


def describe(rows: Sequence[Row], work: Workspace, expected: Sequence[tuple[Bucket, float]] = ()) -> None:
    """Note what the records say about the data set: clips per bucket, mixed frame rates, silent clips.

    ``expected`` are the buckets and rates of further clips, which have no records yet.
    """
    notes = work.report.notes
    counts: Counter[Bucket] = Counter()
    rates: set[float] = set()
    silent = 0
    recorded = [(target_bucket(work, row), target_fps(work, row)) for row in rows if work.record("latents", row)]
    for bucket, rate in (*recorded, *expected):
        counts[bucket] += 1
        rates |= {round(rate, 3)} if bucket.frames > 1 else set()
    for row in rows:
        if sound := work.values("audio_latents", row):
            silent += not sound.get("present", 1)
    for bucket in work.options.buckets:
        notes.append(f"bucket {bucket}: " + (f"{counts[bucket]} clips" if counts[bucket] else "no clip fits it"))
    if len(rates) > 1:
        notes.append(f"frame rates are {', '.join(f'{rate:g}' for rate in sorted(rates))}: --fps makes them equal")
    if silent:
        notes.append(f"{silent} clips are silent: kept, marked as such")
