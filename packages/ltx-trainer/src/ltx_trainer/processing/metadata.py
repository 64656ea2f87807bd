"""The file that lists a data set: one row per example, a column per kind of media, paths relative to the file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError
from ltx_core.textfiles import read_csv, read_json, read_json_lines, read_text
from ltx_media.images import IMAGE_SUFFIXES

# What a column means, with the names it may have, the usual one first.
ROLES: dict[str, tuple[str, ...]] = {
    "video": ("video", "media_path"),
    "audio": ("audio",),
    "reference_video": ("reference_video", "ref_media_path"),
    "reference_audio": ("reference_audio",),
    "video_mask": ("video_mask",),
    "audio_mask": ("audio_mask",),
    "loss_mask": ("loss_mask",),
    "caption": ("caption",),
}
ALPHA = "alpha"  # as a loss mask: how opaque the video itself is
FORMATS = (".csv", ".json", ".jsonl")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Row:
    """One example: its caption, and a file for each role it has. ``stem`` is the name of its precomputed files."""

    stem: Path
    caption: str
    media: Mapping[str, Path]
    start: float = 0.0  # seconds of its media that are passed over
    control: str | None = None  # what its reference is made into

    @property
    def target(self) -> Path:
        """The video, or the audio of a row without one."""
        return self.media.get("video") or self.media["audio"]


def read_rows(path: str | Path, video_column: str | None = None, caption_column: str | None = None) -> list[Row]:
    """The examples a metadata file lists, or a folder of clips with captions; two with one video are two examples.

    The two columns may be named; others go by convention and unknown ones are ignored. Raises `ConfigError` for files
    that hold no row or lack the caption, or both video and audio.
    """
    path = Path(path)
    if path.is_dir():
        path, records = folder_records(path)
    else:
        records = read_records(path)
    columns = list(dict.fromkeys(name for record in records for name in record))
    for given in (video_column, caption_column):
        if given is not None and given not in columns:
            raise ConfigError(f"{path} has no column {given!r}; its columns are {', '.join(columns)}")
    roles = column_roles(columns, video_column, caption_column)
    if "caption" not in roles:
        raise ConfigError(f"{path} has no column 'caption'; its columns are {', '.join(columns)}: name yours")
    if not roles.keys() & {"video", "audio"}:
        raise ConfigError(f"{path} has no column 'video' or 'audio'; its columns are {', '.join(columns)}: name yours")
    rows: dict[Path, Row] = {}
    for number, record in enumerate(records, 1):
        row = _row(path, number, record, roles)
        rival = rows.get(row.stem)
        if rival is not None and rival.target != row.target:
            raise ConfigError(
                f"{path}: {rival.target} and {row.target} differ in their suffix only, rename one of them"
            )
        again = 2
        while row.stem in rows:
            row, again = replace(row, stem=rows[row.stem].stem.with_name(f"{row.target.stem}+{again}")), again + 1
        rows[row.stem] = row
    return list(rows.values())


def folder_records(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The table in a folder, or else a row for every clip with the text of the file beside it that ends with .txt.

    Also a path that the rows are relative to. Raises `ConfigError` where there is neither, or more than one table.
    """
    tables = [path for path in sorted(folder.glob("[!.]*.*")) if path.suffix.lower() in FORMATS]
    if len(tables) == 1:
        return tables[0], read_records(tables[0])
    if tables:
        raise ConfigError(f"{folder} holds {len(tables)} tables, name one: {', '.join(path.name for path in tables)}")
    media = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)]
    media = [path for path in media if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not media:
        raise ConfigError(f"{folder} holds no clip, expected files that end with {', '.join(VIDEO_SUFFIXES)}")
    texts = {path: path.with_suffix(".txt") for path in media}
    found = {path: read_text(text).strip() for path, text in texts.items() if text.is_file()}
    if not found:
        raise ConfigError(
            f"{folder} holds {len(media)} clips and no caption, expected {texts[media[0]].name} beside "
            f"{media[0].name}; `ltx dataset caption` writes first drafts"
        )
    rows = [{"video": str(path.relative_to(folder)), "caption": found.get(path, "")} for path in media]
    return folder / "captions.txt", rows


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a csv, json or jsonl file as they stand. Raises `ConfigError`."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} is a {path.suffix or 'nameless'} file, expected one of {', '.join(FORMATS)}")
    if path.suffix.lower() == ".csv":
        records: Any = read_csv(path)
    elif path.suffix.lower() == ".json":
        records = read_json(path) if read_text(path).strip() else []
    else:
        records = [record for _, record in read_json_lines(path)]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ConfigError(f"{path} holds no list of objects, expected one object per example")
    if not records:
        raise ConfigError(f"{path} is empty, expected a row per example")
    return records


def column_roles(
    columns: Iterable[str], video_column: str | None = None, caption_column: str | None = None
) -> dict[str, str]:
    """The role of each column."""
    present = set(columns)
    names = {**ROLES}
    if video_column is not None:
        names["video"] = (video_column,)
    if caption_column is not None:
        names["caption"] = (caption_column,)
    found = {role: next((name for name in options if name in present), None) for role, options in names.items()}
    return {role: name for role, name in found.items() if name is not None}


def output_stem(media: str | Path, folder: Path) -> Path:
    """The path of a media file's records below each directory, without suffix.

    Relative to ``folder`` where the file lies below it, else its absolute path without the root.
    """
    absolute = Path(os.path.normpath(folder.absolute() / str(media).strip()))
    base = Path(os.path.normpath(folder.absolute()))
    relative = absolute.relative_to(base) if absolute.is_relative_to(base) else absolute.relative_to(absolute.anchor)
    return relative.with_suffix("")


def _row(path: Path, number: int, record: Mapping[str, Any], roles: Mapping[str, str]) -> Row:
    caption = record.get(roles["caption"])
    if caption is None:
        raise ConfigError(f"{path}: row {number} has no {roles['caption']}")
    values = {role: record.get(column) for role, column in roles.items() if role != "caption"}
    media = {role: Path(str(value).strip()) for role, value in values.items() if value and str(value).strip()}
    target = media.get("video") or media.get("audio")
    if target is None:
        raise ConfigError(f"{path}: row {number} names no video and no audio")
    files = {role: path.parent / file for role, file in media.items()}
    if str(media.get("loss_mask", "")) == ALPHA:
        files["loss_mask"] = files.get("video", files.get("audio", path))
    return Row(output_stem(target, path.parent), str(caption).strip(), files)
