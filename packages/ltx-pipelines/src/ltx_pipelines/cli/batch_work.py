"""One clip of a batch, made in this process or by a worker elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ltx_core.errors import MediaError
from ltx_pipelines.cli.progress import Relayed, Reporter, Style
from ltx_pipelines.planning.schema import MODEL_VARIABLE
from ltx_pipelines.running.output import change_path, exists, exr_folder, is_url, latents_path, local_copy, put, taken


@dataclass(frozen=True)
class Line:
    """One clip of a batch: where it was asked for, and its options as `ltx generate` takes them."""

    number: int
    given: dict[str, Any]

    @property
    def output(self) -> str:
        return str(self.given["output"])


@dataclass(frozen=True)
class There:
    """Files under the names of a clip: the first one taken, and the recipe of a clip that lacks nothing."""

    name: str | None = None
    recipe: Any = None


@dataclass(frozen=True)
class Asked:
    """A clip as its maker is asked for it; ``there`` is None where the maker is to look itself."""

    line: Line
    index: int
    clips: int
    there: There | None

    def __str__(self) -> str:
        return self.line.output


@dataclass(frozen=True)
class Made:
    """Result of a maker elsewhere: lines to show, and files by the names they are to have."""

    lines: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class Maker:
    """Makes clips of a batch, one after the other, on networks that stay; ``elsewhere`` than where it was started."""

    style: Style
    elsewhere: bool = False
    model: str | None = None  # of clips that name none
    ledgers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model is not None:
            os.environ[MODEL_VARIABLE] = self.model

    def __call__(self, asked: Asked, tell: Any) -> Made:
        """Make a clip where it is to lie, or in a folder of its own from where its files are handed over."""
        names = [asked.line.output, asked.line.given.get("contact_sheet") or ""]
        if not self.elsewhere and not is_url(names[0]):
            self._make(asked, asked.line.given, Reporter(self.style))
            return Made()
        reporter = Relayed("lines" if self.style == "bars" else self.style, tell=tell)
        with TemporaryDirectory(prefix="ltx-") as folder:
            places = [Path(folder, str(index), Path(name).name) for index, name in enumerate(names)]
            moved = {"output": str(places[0])} | ({"contact_sheet": str(places[1])} if names[1] else {})
            self._make(asked, {**asked.line.given, **moved}, reporter)
            files = dict(file for pair in zip(places, names, strict=True) for file in handed_over(*pair))
        return Made(tuple(line.replace(str(places[0]), names[0]) for line in reporter.lines), files)

    def _make(self, asked: Asked, given: dict[str, Any], reporter: Reporter) -> None:
        """Make one clip, on the networks of an earlier line where they are the same; skip one that is there."""
        from ltx_pipelines.cli.generate import job_of, make_plan
        from ltx_pipelines.cli.session import open_session

        reporter.note(f"[{asked.index} of {asked.clips}] {asked}", clip=asked.index, clips=asked.clips)
        session = open_session(given, share=self.ledgers)
        plan = make_plan(session, {**given, "overwrite": True}, reporter)  # what is there may be this very clip
        from ltx_pipelines.cli.job import execute
        from ltx_pipelines.running.recipe import is_of

        job, there = job_of(session, plan, given), asked.there or what_is_there(asked.line.given)
        if there.recipe is not None and is_of(there.recipe, job.delivered.plan):
            reporter.note(f"{asked} is already there", path=str(asked))
            return
        if there.name is not None and not job.asked.overwrite:
            raise taken(there.name)
        execute(job, reporter)


def what_is_there(given: Mapping[str, Any]) -> There:
    """Look at the names of a clip that is asked for."""
    from ltx_media.containers import read_recipe

    output, sheet = given["output"], given.get("contact_sheet")
    latents = given.get("keep_latents") or given.get("first_stage")
    whole = [output, *([sheet] if sheet else ()), *([change_path(output, latents_path)] if latents else ())]
    found = [name for name in (*whole, *([change_path(output, exr_folder)] if "hdr" in given else ())) if exists(name)]
    recipe = None
    if set(whole) <= set(found):
        with suppress(MediaError), local_copy(output) as file:
            recipe = read_recipe(file)
    return There(next(iter(found), None), recipe)


def handed_over(place: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """Files in the folder of ``place``, which is to be ``name``; those of a URL are put there instead."""
    for file in sorted(path for path in place.parent.rglob("*") if path.is_file()):
        target = change_path(name, partial(_beside, file.relative_to(place.parent)))
        if is_url(target):
            put(file, target)
        else:
            yield target, file.read_bytes()


def _beside(relative: Path, path: Path) -> Path:
    """A file in the folder of ``path``."""
    return path.parent / relative


def take_over(files: Mapping[str, bytes]) -> None:
    """Write what a maker elsewhere has handed over, each file whole or not at all."""
    from ltx_media.files import replacing

    for name, content in files.items():
        with replacing(name) as temporary:
            temporary.write_bytes(content)
