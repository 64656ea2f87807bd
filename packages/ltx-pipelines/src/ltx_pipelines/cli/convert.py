"""`ltx convert`: a model in another form on disk."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ltx_core.errors import ConfigError
from ltx_pipelines.cli.command import Command
from ltx_pipelines.planning.schema import File, UsageError, option, options_of

MLX = "mlx-q8, mlx-q6, mlx-q4, mlx-mxfp4 and the like, with -g32, -g64 or -g128 for the group size"
ABOUT = """Write a model as a folder of another form: one file, split files as ComfyUI has them, a folder of the
diffusers library, or one for MLX.

Weights are read and written tensor by tensor, so that memory holds one of them. An interrupted run goes on where it
stopped when the same line is given again. Every file is read again, and its checksum printed.
"""


@dataclass(frozen=True)
class Conversion:
    """The options of `ltx convert`."""

    source: str = option("", "A checkpoint, a folder with the files of a model, a hub id, or 'tiny'.", metavar="MODEL")
    target: str = option("", "The folder to write; it must not exist.", metavar="FOLDER")
    to: str = option("", f"The form: single, split, diffusers; or {MLX}.", metavar="FORM")
    quantization: str | None = option(
        None, "Of the transformer: fp8, fp8-rows, nvfp4, or as GGUF q8_0, q4_k (split only).", metavar="KIND"
    )
    gemma_root: File | None = option(None, "Gemma folder, where it is not beside the model.", metavar="FOLDER")
    text_projection: File | None = option(None, "Text projections, where the transformer's file has none.")
    video_vae: File | None = option(None, "Video VAE, instead of the model's own.")
    audio_vae: File | None = option(None, "Audio VAE and vocoder, instead of the model's own.")


def convert(given: dict[str, Any]) -> None:
    """Write the model, and say what is done."""
    asked = Conversion(**given)
    if missing := [name for name in ("source", "target", "to") if not getattr(asked, name)]:
        raise UsageError(f"{missing[0]} is not given, expected `ltx convert SOURCE TARGET --to FORM`")
    from ltx_pipelines.running import conversion
    from ltx_pipelines.running.model_files import find_model
    from ltx_pipelines.running.networks import find_networks

    target = Path(asked.target)
    if asked.to.startswith("mlx-"):
        if asked.quantization:
            raise UsageError("--quantization has no effect with an MLX form, which says it in its name")
        path = Path(asked.source)
        source = path if path.exists() else Path(find_model(asked.source).files.checkpoint).parent
        importlib.import_module("ltx_mlx.convert").convert(source, target, asked.to, print)
        return
    if asked.to not in get_args(conversion.Layout):
        raise ConfigError(f"--to is {asked.to!r}, expected single, split, diffusers, or {MLX}")
    parts = ("gemma_root", "text_projection", "video_vae", "audio_vae")
    found = find_networks({"model": asked.source} | {name: getattr(asked, name) for name in parts})
    conversion.convert(found, target, cast(conversion.Layout, asked.to), asked.quantization, print)
    print(f'next: ltx generate "a prompt" --model {target}')


CONVERT = Command("convert", ABOUT, options_of(Conversion), convert, "source target")
