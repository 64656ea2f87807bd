"""`ltx convert`: a model in another form on disk."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from ltx_core.errors import ConfigError

FORMS = "mlx-q8, mlx-q6, mlx-q4, mlx-mxfp4 and the like, with -g32, -g64 or -g128 for the group size"
app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(exists=True, help="A checkpoint, or a folder with all files of a model.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    to: Annotated[str, typer.Option("--to", help=f"The form: {FORMS}.")],
) -> None:
    """Write a model as a folder of another form; with an MLX form its transformer is stored quantised."""
    if not to.startswith("mlx-"):
        raise ConfigError(f"--to is {to!r}, expected {FORMS}")
    importlib.import_module("ltx_mlx.convert").convert(source, target, to, typer.echo)
