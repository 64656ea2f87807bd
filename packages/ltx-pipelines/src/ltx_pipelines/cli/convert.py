"""`ltx convert`: a model in another form on disk."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import CheckpointError, ConfigError
from ltx_pipelines.cli.command import Command
from ltx_pipelines.planning.schema import File, UsageError, option, options_of

FORMS = "mlx-q8, mlx-q6, mlx-q4, mlx-mxfp4 and the like, with -g32, -g64 or -g128 for the group size"
ABOUT = "Write a model as a folder of another form; with an MLX form its transformer is stored quantised."


@dataclass(frozen=True)
class Conversion:
    """The options of `ltx convert`."""

    source: File = option("", "A checkpoint, or a folder with all files of a model.")
    target: str = option("", "The folder to write; it must not exist.", metavar="FOLDER")
    to: str = option("", f"The form: {FORMS}.", metavar="FORM")


def convert(given: dict[str, Any]) -> None:
    """Write the model, and say what is done."""
    asked = Conversion(**given)
    if missing := [name for name, value in vars(asked).items() if not value]:
        raise UsageError(f"{missing[0]} is not given, expected `ltx convert SOURCE TARGET --to FORM`")
    if not Path(asked.source).exists():
        raise CheckpointError(f"source is {asked.source}, which does not exist")
    if not asked.to.startswith("mlx-"):
        raise ConfigError(f"--to is {asked.to!r}, expected {FORMS}")
    importlib.import_module("ltx_mlx.convert").convert(Path(asked.source), Path(asked.target), asked.to, print)


CONVERT = Command("convert", ABOUT, options_of(Conversion), convert, "source target")
