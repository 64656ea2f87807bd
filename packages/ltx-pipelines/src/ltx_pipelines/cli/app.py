"""The `ltx` command and its sub-commands, each imported when it is invoked."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ltx_core import __version__
from ltx_core.errors import nearest
from ltx_pipelines.cli.errors import one_line_errors
from ltx_pipelines.cli.tasks import BY_NAME, TASKS

GROUP = "ltx.commands"  # entry points of other packages: name = "module:typer_app"
FOREIGN = {  # what packages of this workspace add; others are listed by name
    "train": "Fine-tune or train a model.",
    "dataset": "Prepare, check and look at training data.",
    "tiny": "The bundled model: its world, its training, its eval.",
}


@dataclass(frozen=True)
class Lazy:
    """A sub-command: ``module:typer_app`` and what the overview says about it."""

    target: str
    summary: str
    panel: str


OWN: dict[str, Lazy] = {
    "generate": Lazy("generate:app", "Make a clip; the pipeline follows from what is given.", "Make"),
    "demo": Lazy("demo:app", "Make demo.mp4 with the bundled model.", "Make"),
    "batch": Lazy("batch:app", "Make many clips from a file of requests.", "Make"),
    "rerun": Lazy("again:rerun_app", "Make a clip again from the recipe inside it.", "Make"),
    "finish": Lazy("again:finish_app", "Refine a first stage that was kept.", "Make"),
    "plan": Lazy("plan:app", "Show what would be done, and what it would cost.", "Look"),
    "inspect": Lazy("inspect:app", "Show the recipe inside a clip, or what a weights file holds.", "Look"),
    "models": Lazy("models:app", "Known models, what is on disk, downloads.", "Look"),
    "doctor": Lazy("doctor:app", "What this machine can do.", "Look"),
    **{task.command: Lazy("generate:pipeline_app", task.summary, "Pipelines") for task in TASKS},
    "ltxv": Lazy("ltxv:app", "Clips with the models of the LTX-Video 0.9 family.", "Pipelines"),
}


class LazyGroup(TyperGroup):
    """Lists its commands without importing them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*OWN, *sorted(_foreign_names())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that carries name and summary, for listings."""
        if (own := OWN.get(cmd_name)) is not None:
            return TyperCommand(cmd_name, help=own.summary, rich_help_panel=own.panel)
        summary = FOREIGN.get(cmd_name, "")
        return TyperCommand(cmd_name, help=summary, rich_help_panel="Other packages")

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command, its module imported now."""
        name = args[0].replace("_", "-")
        name = BY_NAME[name].command if name in BY_NAME else name
        command = load(name)
        if command is None:
            self.commands = dict.fromkeys(self.list_commands(ctx))  # type: ignore[assignment]
            raise_unknown(args[0], self.list_commands(ctx), ctx)
        return name, command, args[1:]

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


def raise_unknown(name: str, known: Sequence[str], ctx: Any) -> None:
    """A usage error that names the nearest command."""
    near = nearest(name, known)
    hint = f"; did you mean {near}?" if near else ", see `ltx --help`"
    raise typer.BadParameter(f"no command {name!r}{hint}", ctx=ctx)


def load(name: str) -> Any:
    """The command object of a name; None for a name nobody knows."""
    if name in OWN:
        module, attribute = OWN[name].target.split(":")
        made = getattr(importlib.import_module(f"ltx_pipelines.cli.{module}"), attribute)
        return typer.main.get_command(made(name) if not isinstance(made, typer.Typer) else made)
    entry = _foreign().get(name)
    if entry is None:
        return None
    made = entry.load()
    return typer.main.get_command(made) if isinstance(made, typer.Typer) else made


def _foreign() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _foreign_names() -> set[str]:
    return set(_foreign()) - set(OWN)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ltx {__version__}")
        raise typer.Exit


@app.callback()
def ltx(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; goes anywhere on the line."),
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Video with sound from text, pictures, sound and clips.

    Start with `ltx demo`, then `ltx generate "a prompt" -o clip.mp4`.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in line:
        line = ["--debug", *(token for token in line if token != "--debug")]
    try:
        if line[:1] and line[0] in OWN and "--help" in line:  # without the group, whose options take long to understand
            load(line[0])(line[1:], prog_name=f"ltx {line[0]}")
        typer.main.get_command(app)(line, prog_name="ltx")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
