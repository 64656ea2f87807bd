"""`ltx batch`: a JSON object per line in, a clip per line out; what is already there is not made again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError, LtxError
from ltx_core.parallel.executor import Cluster, workers
from ltx_core.textfiles import read_json_lines, read_yaml
from ltx_pipelines.cli.batch_work import Asked, Line, Maker, take_over, what_is_there
from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.config import with_settings
from ltx_pipelines.cli.fields import OF_THE_RUN, every_option, from_json
from ltx_pipelines.cli.progress import Overview, style_of
from ltx_pipelines.planning.schema import MODEL_VARIABLE, File, UsageError, option, options_of, with_absolute_files
from ltx_pipelines.running.output import change_path, file_system, is_url

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
    ray: Cluster | None = option(None, "Make them on a Ray cluster, by default this machine's or a new one.")
    keep_going: bool = option(False, "Go on after a line that fails.", "--keep-going", "-k")
    quiet: bool = option(False, "Print errors only.", "--quiet", "-q")
    json: bool = option(False, "One JSON object per event on standard output.")


def batch(given: dict[str, Any]) -> None:
    """Check every line first, then make what is missing."""
    asked = Batch(**given)
    if not asked.file:
        raise UsageError("no file is given, expected one of requests")
    file, style, cluster = Path(asked.file), style_of(given), asked.ray
    lines = list(read_lines(file, asked.output_dir, asked.seeds, {"model": asked.model} if asked.model else {}))
    check_storage(lines)
    # What lies elsewhere its maker looks at itself.
    there = (None if is_url(line.output) else what_is_there(line.given) for line in lines)
    clips = (Asked(line, index, len(lines), at) for index, (line, at) in enumerate(zip(lines, there, strict=True), 1))
    view, failed = Overview(style if cluster else "lines" if style == "bars" else style, clips=len(lines)), 0
    model = os.environ.get(MODEL_VARIABLE)
    make = partial(Maker, style, cluster is not None, model and with_absolute_files({}, {"model": model})["model"])
    with view.running(), workers(make, cluster, view.seen) as run:
        for clip, made in run(clips):
            if not isinstance(made, LtxError):
                take_over(made.files)
                view.ended(made.lines)
                continue
            problem = f"{file}, line {clip.line.number}: {made}"
            if not asked.keep_going:
                raise ConfigError(problem) from made
            failed += 1
            view.ended(())
            print(f"ltx: {problem}", file=sys.stderr)
    if failed:
        raise ConfigError(f"{failed} of {len(lines)} clips could not be made")


def check_storage(lines: Sequence[Line]) -> None:
    """Raises `ConfigError` for URLs that nothing installed here writes to, and for clips whose files lie apart."""
    for line in lines:
        sheet = line.given.get("contact_sheet") or line.output
        if is_url(line.output) != is_url(sheet):
            raise ConfigError(f"line {line.number}: contact_sheet is {sheet}, expected it beside {line.output}")
    for name in {line.output.partition("://")[0]: line.output for line in lines if is_url(line.output)}.values():
        file_system(name)


def read_lines(file: Path, folder: str, seeds: str, defaults: dict[str, Any]) -> Iterator[Line]:
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
            given |= {"seed": seed} if seed is not None else {}
            given["output"] = output_name(given, folder, number, seed)
            if given["output"] in taken:
                raise ConfigError(f"{file}, line {number}: output {given['output']} is made twice")
            taken.add(given["output"])
            yield Line(number, with_absolute_files(every_option(), given))


def entries(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each request: a JSON object in a line, or an item of a list in YAML."""
    if file.suffix.lower() in (".yaml", ".yml"):
        listed = read_yaml(file)
        yield from enumerate(listed if isinstance(listed, list) else [listed], 1)
    else:
        yield from read_json_lines(file)


def output_name(given: dict[str, Any], folder: str, number: int, seed: int | None) -> str:
    """The file of a clip; a sweep adds its seed to a name that was given."""
    named = str(given.get("output") or f"{number:04d}.mp4")
    if not is_url(named) and not Path(named).is_absolute() and Path(named).parent == Path():
        named = change_path(folder, lambda path: path / named)
    if seed is None:
        return named
    return change_path(named, lambda path: path.with_name(f"{path.stem}-{seed}{path.suffix}"))


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
