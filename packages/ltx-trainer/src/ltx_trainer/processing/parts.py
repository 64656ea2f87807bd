"""Rows as a data set asks for them: long clips in parts, references made of the clips themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ltx_core.errors import LtxError
from ltx_media.images import is_image
from ltx_media.source import sampling_rate
from ltx_media.video import probe_video
from ltx_trainer.processing.buckets import select_bucket
from ltx_trainer.processing.controls import find_control
from ltx_trainer.processing.inputs import PART
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.options import ProcessingOptions


def asked_rows(rows: Sequence[Row], options: ProcessingOptions) -> list[Row]:
    """``rows`` with what ``options`` make of them. Raises `ConfigError` for an unknown control."""
    if options.control is not None:
        find_control(options.control, options.device)
        rows = [with_control(row, options.control) for row in rows]
    if options.long_clips == "first":
        return list(rows)
    return [part for row in rows for part in parts_of(row, options)]


def with_control(row: Row, control: str) -> Row:
    """A row whose reference is made of its own video, unless it names one."""
    if "video" not in row.media or "reference_video" in row.media:
        return row
    return replace(row, media={**row.media, "reference_video": row.media["video"]}, control=control)


def parts_of(row: Row, options: ProcessingOptions) -> Iterator[Row]:
    """A clip as one row for every part of it: one after the other, or every ``stride`` frames.

    What is too short for a whole part at the end is left out. A clip that cannot be read stays one row, and is reported
    where it is encoded.
    """
    try:
        info = None if "video" not in row.media or is_image(row.media["video"]) else probe_video(row.media["video"])
    except LtxError:
        info = None
    if info is None:
        yield row
        return
    rate = sampling_rate(info, options.fps) or float(info.fps)
    available = round(info.duration * rate)
    buckets = [bucket for bucket in options.buckets if bucket.frames > 1]
    index = select_bucket(available, info.height, info.width, buckets)
    if index is None:
        yield row
        return
    length = buckets[index].frames
    stride = length if options.long_clips == "chunks" else options.stride or max(length // 2, 1)
    starts = range(0, available - length + 1, stride)
    if len(starts) == 1:
        yield row
        return
    for number, first in enumerate(starts):
        yield replace(row, stem=row.stem.with_name(f"{row.stem.name}{PART}{number:04d}"), start=first / rate)
