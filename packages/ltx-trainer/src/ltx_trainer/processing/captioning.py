"""Captions for clips that have none. A captioner is any function from a media file to a sentence or two."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ltx_core.errors import ConfigError, LtxError
from ltx_core.textfiles import lines_of, read_text
from ltx_media.images import IMAGE_SUFFIXES
from ltx_trainer.processing.metadata import VIDEO_SUFFIXES, read_records
from ltx_trainer.processing.progress import progress

Captioner = Callable[[Path], str]

SAVE_EVERY = 5  # captions between writes of the output
CAPTION, MEDIA = "caption", "media_path"


def find_media(path: Path) -> list[Path]:
    """A file, or the videos and pictures below a folder, sorted. Raises `ConfigError` where there is none."""
    if path.is_file():
        return [path]
    suffixes = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes)
    found = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not found:
        raise ConfigError(f"{path} holds no video and no picture")
    return found


def caption_media(
    media: Sequence[Path], output: Path, captioner: Captioner, override: bool = False
) -> list[tuple[Path, str]]:
    """Caption ``media`` into ``output``, a json, jsonl, csv or txt file with paths relative to it.

    Captions already there are kept unless ``override``; the file is written every few captions and at the end, however
    that comes. Returns the files that could not be captioned, with reasons.
    """
    entries = read_captions(output)
    names = {file: _relative(file, output) for file in media}
    todo = [file for file in media if override or names[file] not in entries]
    failed: list[tuple[Path, str]] = []
    try:
        for number, file in enumerate(progress(todo, "captions", len(todo)), 1):
            try:
                entries[names[file]] = captioner(file)
            except LtxError as error:
                failed.append((file, str(error)))
            if number % SAVE_EVERY == 0:
                write_captions(output, entries)
    finally:
        write_captions(output, entries)
    return failed


def read_captions(path: Path) -> dict[str, str]:
    """Captions by media path in an output file, none where there is no file yet."""
    if path.suffix not in WRITERS:
        raise ConfigError(f"output is {path}, expected a file that ends with {', '.join(WRITERS)}")
    if not path.is_file() or not (text := read_text(path)).strip():
        return {}
    if path.suffix == ".txt":
        lines = lines_of(text)
        return {name: caption for name, _, caption in (line.partition("\t") for line in lines)}
    return {str(record[MEDIA]): str(record[CAPTION]) for record in read_records(path)}


def write_captions(path: Path, captions: Mapping[str, str]) -> None:
    """Write captions under a temporary name, then rename. Raises `ConfigError` where the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(WRITERS[path.suffix](captions.items()), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _as_json(items: Iterable[tuple[str, str]]) -> str:
    return json.dumps([{CAPTION: caption, MEDIA: name} for name, caption in items], indent=2, ensure_ascii=False) + "\n"


def _as_jsonl(items: Iterable[tuple[str, str]]) -> str:
    lines = (json.dumps({CAPTION: caption, MEDIA: name}, ensure_ascii=False) for name, caption in items)
    return "".join(f"{line}\n" for line in lines)


def _as_csv(items: Iterable[tuple[str, str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([(CAPTION, MEDIA), *((caption, name) for name, caption in items)])
    return buffer.getvalue()


def _as_text(items: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{name}\t{' '.join(caption.split())}\n" for name, caption in items)


WRITERS = {".json": _as_json, ".jsonl": _as_jsonl, ".csv": _as_csv, ".txt": _as_text}


def _relative(file: Path, output: Path) -> str:
    """A media path relative to the folder of the output where it lies below it."""
    absolute, folder = file.absolute(), output.absolute().parent
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
