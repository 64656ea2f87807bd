"""The `ltx` command and its sub-commands, each imported when it is invoked, and completion in shells."""

from __future__ import annotations

import errno
import importlib
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from ltx_core import __version__
from ltx_core.errors import nearest
from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.errors import exit_code
from ltx_pipelines.planning.schema import Option, UsageError

GROUP = "ltx.commands"  # entry points of other packages: name = "module:callable", called with the rest of the line
FOREIGN = {  # what packages of this workspace add; others are listed by name
    "train": "Fine-tune or train a model.",
    "dataset": "Prepare, check and look at training data.",
    "serve": "A page and an HTTP API that make clips.",
    "tiny": "The bundled model: its world, its training, its exam.",
}
ABOUT = """Video with sound from text, pictures, sound and clips.

Start with `ltx demo`, then `ltx generate "a prompt" -o clip.mp4`.
"""


@dataclass(frozen=True)
class Lazy:
    """A sub-command: ``module:attribute`` and what the overview says about it."""

    target: str
    summary: str
    panel: str


OWN: dict[str, Lazy] = {
    "generate": Lazy("generate:GENERATE", "Make a clip; the pipeline follows from what is given.", "Make"),
    "demo": Lazy("generate:DEMO", "Make demo.mp4 with the bundled model.", "Make"),
    "batch": Lazy("batch:BATCH", "Make many clips from a file of requests.", "Make"),
    "rerun": Lazy("again:RERUN", "Make a clip again from the recipe inside it.", "Make"),
    "finish": Lazy("again:FINISH", "Refine a first stage that was kept.", "Make"),
    "concat": Lazy("concat:CONCAT", "Join clips, with their sound.", "Make"),
    "plan": Lazy("plan:PLAN", "Show what would be done, and what it would cost.", "Look"),
    "compare": Lazy("compare:COMPARE", "How far two clips are apart, and what differs in their recipes.", "Look"),
    "inspect": Lazy("inspect:INSPECT", "Show the recipe inside a clip, or what a weights file holds.", "Look"),
    "config": Lazy("config:CONFIG", "Your defaults: the model, where it runs.", "Look"),
    "completion": Lazy("app:completion", "What makes a shell complete lines of ltx.", "Look"),
    "models": Lazy("models:models", "Known models, what is on disk, downloads.", "Look"),
    "convert": Lazy("convert:CONVERT", "Write a model in another layout, or quantised.", "Look"),
    "lora": Lazy("lora:lora", "Look at an adapter, merge adapters into a model, extract one.", "Look"),
    "reference": Lazy("reference:REFERENCE", "Every option of every command, as a table or JSON schema.", "Look"),
    "doctor": Lazy("doctor:DOCTOR", "What this machine can do.", "Look"),
}


def overview() -> str:
    """Every command in a line."""
    from ltx_pipelines.pipeline import pipelines

    panels: dict[str, dict[str, str]] = {"Make": {}, "Look": {}, "Pipelines": {}, "Other packages": {}}
    panels["Pipelines"] = {name: kind.summary() for name, kind in pipelines().items()}
    for name, lazy in OWN.items():
        panels[lazy.panel][name] = lazy.summary
    panels["Other packages"] = {name: FOREIGN.get(name, "") for name in sorted(foreign()) if name not in OWN}
    lines = ["Usage: ltx [--debug] COMMAND ...", "", ABOUT]
    for panel, commands in panels.items():
        lines += [panel, *(row for name, summary in commands.items() for row in entry(name, summary)), ""]
    lines += [
        "`ltx COMMAND --help` shows its options, --help-all every one of them. --debug,",
        "anywhere, adds the traceback of an error.",
        "",
    ]
    return "\n".join(lines)


def entry(name: str, summary: str, width: int = 80) -> list[str]:
    """A command of the overview, its summary wrapped."""
    start = f"  {name}".ljust(26)
    return textwrap.wrap(summary, width, initial_indent=start, subsequent_indent=" " * 26) or [start.rstrip()]


def load(name: str) -> Callable[[Sequence[str]], Any]:
    """The command of a name: one of ours, a pipeline (also ``module:Class``), or one of another package."""
    from ltx_pipelines.cli.generate import pipeline_command
    from ltx_pipelines.pipeline import find_pipeline, pipelines

    if name in OWN:
        module, _, attribute = OWN[name].target.partition(":")
        made = getattr(importlib.import_module(f"ltx_pipelines.cli.{module}"), attribute)
    elif (added := foreign().get(name)) is not None:
        made = added.load()
    else:
        try:
            return pipeline_command(find_pipeline(name))
        except UsageError:
            near = nearest(name, [*OWN, *pipelines(), *foreign()])
            hint = f"; did you mean {near}?" if near else ", see `ltx --help`"
            raise UsageError(f"no command {name!r}{hint}") from None
    if hasattr(made, "registered_commands"):  # of typer
        return lambda line: made(args=list(line), prog_name=f"ltx {name}")
    return made


def foreign() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {one.name: one for one in entry_points(group=GROUP)}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in line, "--json" in line
    return exit_code(lambda: dispatch([token for token in line if token != "--debug"]), debug, as_json)


def dispatch(line: Sequence[str]) -> None:
    """Run a line, its errors raised."""
    if not line or line[0] in ("--help", "-h"):
        print(overview(), end="")
    elif line[0] == "--version":
        print(f"ltx {__version__}")
    else:
        try:
            load(line[0].replace("_", "-") if ":" not in line[0] else line[0])(line[1:])
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise UsageError(f"{str(error.filename)[:40]}... is a name that no file system keeps") from error


# Completion in shells ----------------------------------------------------------------------------------------------

BASH = """_ltx() {
    local words
    words="$(ltx completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)"
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _ltx ltx
"""
SHELLS = {
    "bash": BASH,
    "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{BASH}",
    "fish": "complete -c ltx -a '(ltx completion words (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'\n",
}
COMPLETION_HELP = f"""Usage: ltx completion SHELL

Print what makes a shell complete lines of `ltx`: {", ".join(SHELLS)}. For bash, in ~/.bashrc:

  eval "$(ltx completion bash)"
"""


def completion(line: Sequence[str]) -> None:
    """Print the script of a shell, or the words that may come next on a line."""
    if not line or line[0] in ("--help", "-h"):
        print(COMPLETION_HELP, end="")
    elif line[0] == "words":
        print("\n".join(words(line[1:])))
    elif line[0] in SHELLS:
        print(SHELLS[line[0]], end="")
    else:
        raise UsageError(f"{line[0]!r} is no shell we know, expected one of {', '.join(SHELLS)}")


def words(line: Sequence[str]) -> list[str]:
    """Possible last words of a line that is being written."""
    from ltx_pipelines.pipeline import pipelines

    if len(line) < 2:
        return [*OWN, *pipelines(), *foreign()]
    command = load(line[0])
    if not isinstance(command, Command):
        return []
    known = {flag: one for one in command.options.values() if not one.hidden for flag in one.spellings}
    if (before := known.get(line[-2])) is not None and (choices := choices_of(before)):
        return choices
    return [flag for flag in known if flag.startswith("--")]


def choices_of(one: Option) -> list[str]:
    """The values of an option that has few."""
    return [str(choice) for kind in one.kinds if get_origin(kind) is Literal for choice in get_args(kind)]
