"""`ltx convert`: a model in another form on disk."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError
from ltx_pipelines.cli.command import Command
from ltx_pipelines.planning.schema import UsageError, option, options_of

FORMS = "mlx-q8, mlx-q6, mlx-q4, mlx-mxfp4 and the like, with -g32, -g64 or -g128 for the group size"
ABOUT = "Write a model as a folder of another form; with an MLX form its transformer is stored quantised."


@dataclass(frozen=True)
class Conversion:
    """The options of `ltx convert`."""

    source: str = option("", "A checkpoint, a folder with all files of a model, or 'tiny'.", metavar="MODEL")
    target: str = option("", "The folder to write; it must not exist.", metavar="FOLDER")
    to: str = option("", f"The form: {FORMS}.", metavar="FORM")


def convert(given: dict[str, Any]) -> None:
    """Write the model, and say what is done."""
    asked = Conversion(**given)
    if missing := [name for name, value in vars(asked).items() if not value]:
        raise UsageError(f"{missing[0]} is not given, expected `ltx convert SOURCE TARGET --to FORM`")
    if not asked.to.startswith("mlx-"):
        raise ConfigError(f"--to is {asked.to!r}, expected {FORMS}")
    from ltx_pipelines.running.model_files import find_model

    given_path = Path(asked.source)
    source = given_path if given_path.exists() else Path(find_model(asked.source).files.checkpoint).parent
    importlib.import_module("ltx_mlx.convert").convert(source, Path(asked.target), asked.to, print)


CONVERT = Command("convert", ABOUT, options_of(Conversion), convert, "source target")
