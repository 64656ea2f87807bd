"""Inputs that records were made of, and the records a table calls for: how a data set is known to match its table.

Beside its numbers every record keeps its inputs as short texts: digests of the caption and of the files, the rate, the
buckets, the model. A record whose inputs are others now is stale. The output folder keeps a list per table,
``table.<name>.json``: ``{"table": path, "rows": {stem: [roles]}}``. A record that no list names is an orphan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ltx_core.fingerprint import fingerprint
from ltx_core.textfiles import read_json
from ltx_trainer.precomputed import LISTS, ROLES_OF, SUFFIXES, is_listed
from ltx_trainer.processing.captions import prompt_of
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.options import ProcessingOptions
from ltx_trainer.processing.workspace import Workspace

TEXT, FILE = "caption", "file"  # inputs that a table alone decides
PART = "@"  # between the name of a clip and the number of a part of it


def inputs_of(directory: str, row: Row, work: Workspace) -> dict[str, str]:
    """The inputs of a row's record. A file that is gone is left out: what was made of it is kept."""
    options, found = work.options, table_inputs(directory, row)
    crop = "anywhere" if options.random_crop else "centre"
    if directory == "conditions":
        found |= caption_inputs(options) | {"model": work.print_of("text_encoder")}
    elif directory == "latents":
        buckets = ";".join(map(str, options.buckets))
        found |= {"rate": str(options.fps), "buckets": buckets, "crop": crop, "model": work.print_of("video_encoder")}
    elif directory == "audio_latents":
        with_video = "video" in row.media
        length = _target("latents", row, work) if with_video else str(options.audio_durations)
        found |= {"length": length, "model": work.print_of("audio_encoder")}
    elif directory in ("reference_latents", "video_masks", "loss_masks", "keyframe_latents"):
        found |= {"target": _target("latents", row, work), "crop": crop}
    else:
        found |= {"target": _target("audio_latents", row, work)}
    if directory == "reference_latents":
        factors = f"{options.reference_downscale_factor}, {options.reference_temporal_scale_factor}"
        found |= {"factors": factors, "model": work.print_of("video_encoder")}
    elif directory == "reference_audio_latents":
        found |= {"model": work.print_of("audio_encoder")}
    elif directory == "keyframe_latents":
        found |= {"keyframes": str(options.keyframes), "model": work.print_of("video_encoder")}
    return found


def table_inputs(directory: str, row: Row) -> dict[str, str]:
    """The inputs that a row names."""
    if directory == "conditions":
        return {TEXT: _digest(row.caption)}
    path = next((row.media[role] for role in ROLES_OF[directory] if role in row.media), row.media.get("video"))
    if path is None:
        return {}
    part = {"start": f"{row.start:.6f}"} if row.start else {}
    made = {"control": row.control} if row.control and directory == "reference_latents" else {}
    return {**({FILE: fingerprint(path)} if path.is_file() else {}), **part, **made}


def caption_inputs(options: ProcessingOptions) -> dict[str, str]:
    """Options that change captions before they are encoded, or their features, as texts."""
    opened = prompt_of("This video shows x", None, options.remove_openings)
    return {"trigger": options.trigger or "", "openings": opened, "8 bit": str(options.text_encoder_in_8bit)}


def changed_inputs(then: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Names of inputs that are others now; a record that does not tell an input is not known to be stale."""
    return [name for name, value in now.items() if then is not None and then.get(name, value) != value]


def _target(directory: str, row: Row, work: Workspace) -> str:
    """The form of the record that another one has to fit."""
    return json.dumps(work.values(directory, row), sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def roles_of(row: Row) -> list[str]:
    return ["caption", *sorted(row.media)]


def list_path(output: Path, table: Path) -> Path:
    return output / LISTS.replace("*", table.stem + table.suffix.replace(".", "-"))


def write_list(output: Path, table: Path, rows: Sequence[Row]) -> None:
    """Keep which records a table calls for."""
    output.mkdir(parents=True, exist_ok=True)
    path = list_path(output, table)
    temporary = path.with_name(f".{path.name}.tmp")
    named = {row.stem.as_posix(): roles_of(row) for row in rows}
    temporary.write_text(json.dumps({"table": str(table), "rows": named}, indent=1), encoding="utf-8")
    temporary.replace(path)


def listed_parts(output: Path, table: Path, rows: Sequence[Row]) -> list[tuple[Row, Sequence[str]]]:
    """The rows of a table as they were prepared, each with its roles: long clips as the parts that its list names.

    A row that is not listed stands for itself.
    """
    path = list_path(output, table)
    named = read_json(path)["rows"] if path.is_file() else {}
    parts: dict[str, list[str]] = {}
    for stem in named:
        clip, _, number = stem.rpartition(PART)
        parts.setdefault(clip if number.isdigit() else stem, []).append(stem)
    found: list[tuple[Row, Sequence[str]]] = []
    for row in rows:
        for stem in parts.get(row.stem.as_posix(), (row.stem.as_posix(),)):
            made = {"reference_video"} & set(named.get(stem, ())) if "video" in row.media else ()  # by a control
            found.append((replace(row, stem=Path(stem)), [*roles_of(row), *made]))
    return found


def orphans(root: Path, listed: Mapping[str, set[str]]) -> Iterator[Path]:
    """Records below the known directories of a data set that no row calls for, relative to ``root``."""
    for directory in ROLES_OF:
        for path in sorted(path for suffix in SUFFIXES for path in (root / directory).rglob(f"*{suffix}")):
            relative = path.relative_to(root / directory)
            if relative.name[0] != "." and not is_listed(directory, relative, listed):
                yield path.relative_to(root)
