"""`ltx batch`: a JSON object per line in, a clip per line out; what is already there is not made again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_core.errors import ConfigError, LtxError, MediaError
from ltx_core.textfiles import read_json_lines, read_yaml
from ltx_pipelines.cli.command import Command, with_absolute_paths
from ltx_pipelines.cli.config import with_settings
from ltx_pipelines.cli.fields import OF_THE_RUN, every_option, from_json
from ltx_pipelines.pipeline import pipeline_named
from ltx_pipelines.planning.schema import File, UsageError, option, options_of

if TYPE_CHECKING:
    from ltx_pipelines.cli.job import Job
    from ltx_pipelines.cli.progress import Reporter
    from ltx_pipelines.utils.model_ledger import ModelLedger

ABOUT = """Make many clips from a file of requests.

Each line is a JSON object (in a YAML file each item of a list) whose keys are options of `ltx generate` without dashes
in front, such as {"prompt": "a cat", "image": ["cat.png", 0, 1], "seeds": "1-4", "output": "cat.mp4"}. "pipeline" names
one instead of choosing it. Networks are loaded once. A clip whose file is already there with the same request is
skipped, so an interrupted batch goes on where it stopped.
"""


MOST_CLIPS = 100_000  # of a sweep


@dataclass(frozen=True)
class Batch:
    """The options of `ltx batch`."""

    file: File = option("", "JSON lines, or YAML.")
    output_dir: str = option(
        "clips", "Folder of clips without a name of their own.", "--output-dir", "-o", metavar="FOLDER"
    )
    seeds: str = option("", "Each line once per seed: 1-8 or 1,5,9.")
    model: str | None = option(None, "Model of lines that name none.", "--model", "-m", metavar="MODEL")
    keep_going: bool = option(False, "Go on after a line that fails.", "--keep-going", "-k")
    quiet: bool = option(False, "Print errors only.", "--quiet", "-q")
    json: bool = option(False, "One JSON object per event on standard output.")


@dataclass(frozen=True)
class Line:
    """One clip of a batch: where it was asked for, and its options as `ltx generate` takes them."""

    number: int
    pipeline: str | None
    given: dict[str, Any]


def batch(given: dict[str, Any]) -> None:
    """Check every line first, then make what is missing."""
    from ltx_pipelines.cli.progress import Reporter, style_of

    asked = Batch(**given)
    if not asked.file:
        raise UsageError("no file is given, expected one of requests")
    file, style = Path(asked.file), style_of(given)
    lines = list(read_lines(file, Path(asked.output_dir), asked.seeds, {"model": asked.model} if asked.model else {}))
    ledgers: dict[str, ModelLedger] = {}
    failed = 0
    for index, line in enumerate(lines, 1):
        reporter = Reporter(style)
        reporter.note(f"[{index} of {len(lines)}] {line.given['output']}", clip=index, clips=len(lines))
        try:
            make_line(line, ledgers, reporter)
        except LtxError as error:
            problem = f"{file}, line {line.number}: {error}"
            if not asked.keep_going:
                raise ConfigError(problem) from error
            failed += 1
            print(f"ltx: {problem}", file=sys.stderr)
    if failed:
        raise ConfigError(f"{failed} of {len(lines)} clips could not be made")


def make_line(line: Line, ledgers: dict[str, ModelLedger], reporter: Reporter) -> None:
    """Make one clip, on the networks of an earlier line where they are the same; skip one that is there."""
    from ltx_pipelines.cli.generate import job_of, planned
    from ltx_pipelines.cli.session import open_session

    session = open_session(line.given, pipeline_named(line.pipeline) if line.pipeline else None, share=ledgers)
    plan = planned(session, {**line.given, "overwrite": True}, reporter)  # what is there may be this very clip
    from ltx_pipelines.cli.job import execute

    job = job_of(session, plan, line.given)
    if is_made(job):
        reporter.note(f"{job.output} is already there", path=str(job.output))
        return
    execute(job, reporter)


def is_made(job: Job) -> bool:
    """Whether the files of a job are there, with the result of exactly its plan."""
    from ltx_media.recipe import read_recipe
    from ltx_pipelines.running.output import latents_path

    beside = (job.contact_sheet, latents_path(job.output) if job.keep_latents else None)
    if not job.output.is_file() or any(path is not None and not path.is_file() for path in beside):
        return False
    try:
        recipe = read_recipe(job.output)
    except MediaError:
        return False
    return recipe is not None and recipe.get("plan") == json.loads(job.delivered.plan.to_json())


def read_lines(file: Path, folder: Path, seeds: str, defaults: dict[str, Any]) -> Iterator[Line]:
    """Every clip of a file, each seed of a sweep on its own. Raises `ConfigError` that names the line."""
    taken: set[str] = set()
    for number, entry in entries(file):
        if not isinstance(entry, dict):
            raise ConfigError(f"{file}, line {number}: it is {type(entry).__name__}, expected an object of options")
        sweep = parse_seeds(str(entry.pop("seeds", seeds)), f"{file}, line {number}")
        seeds_or_none: list[int | None] = [*sweep] or [None]
        for seed in seeds_or_none:
            given = from_json({**defaults, **entry}, f"{file}, line {number}")
            given = {name: value for name, value in with_settings(given).items() if name not in OF_THE_RUN}
            pipeline = given.pop("pipeline", None)
            given |= {"seed": seed} if seed is not None else {}
            given["output"] = output_name(given, folder, number, seed)
            if given["output"] in taken:
                raise ConfigError(f"{file}, line {number}: output {given['output']} is made twice")
            taken.add(given["output"])
            yield Line(number, pipeline, with_absolute_paths(every_option(), given))


def entries(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each request: a JSON object in a line, or an item of a list in YAML."""
    if file.suffix.lower() in (".yaml", ".yml"):
        listed = read_yaml(file)
        yield from enumerate(listed if isinstance(listed, list) else [listed], 1)
    else:
        yield from read_json_lines(file)


def output_name(given: dict[str, Any], folder: Path, number: int, seed: int | None) -> str:
    """The file of a clip; a sweep adds its seed to a name that was given."""
    named = given.get("output")
    if named is None:
        return str(folder / (f"{number:04d}.mp4" if seed is None else f"{number:04d}-{seed}.mp4"))
    path = Path(named)
    path = path if path.is_absolute() or path.parent != Path() else folder / path
    return str(path if seed is None else path.with_name(f"{path.stem}-{seed}{path.suffix}"))


def parse_seeds(text: str, where: str) -> Iterator[int]:
    """``1-8`` or ``1,5,9``, one after the other. Raises `ConfigError` for more than `MOST_CLIPS`."""
    ranges: list[range] = []
    try:
        for part in filter(None, (one.strip() for one in text.split(","))):
            first, dash, last = part.partition("-")
            ranges.append(range(int(first), int(last) + 1) if dash else range(int(part), int(part) + 1))
    except ValueError:
        raise ConfigError(f"{where}: seeds is {text!r:.60}, expected numbers such as 1-8 or 1,5,9") from None
    if (total := sum(max(one.stop - one.start, 0) for one in ranges)) > MOST_CLIPS:
        raise ConfigError(f"{where}: seeds is {text!r:.60}, {total:.3g} clips, expected at most {MOST_CLIPS:,}")
    return chain.from_iterable(ranges)


BATCH = Command("batch", ABOUT, options_of(Batch), batch, "file")
