"""`ltx inspect`: the recipe inside a clip, or what a weights file or model folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ltx_core.loader.checkpoint import Checkpoint

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="Clip, PNG, WAV, weights file or model folder.", show_default=False)],
    as_json: bool = typer.Option(False, "--json", help="Everything, as JSON."),
) -> None:
    """Show the recipe inside a clip, or what a weights file holds."""
    from ltx_core.errors import MediaError

    if not file.exists():
        raise MediaError(f"{file} does not exist")
    if file.is_dir() and (frames := sorted(file.glob("frame_*.png"))):
        file = frames[0]
    if file.is_dir() or file.suffix in (".safetensors", ".gguf"):
        show_weights(file, as_json)
    else:
        show_recipe(file, as_json)


def show_recipe(file: Path, as_json: bool) -> None:
    """A recipe as facts, then what has changed since."""
    from ltx_core.errors import MediaError
    from ltx_pipelines.running.recipe import changes_since, plan_of
    from ltx_pipelines.utils.media_io import read_recipe

    recipe = read_recipe(file)
    if recipe is None:
        raise MediaError(f"{file} carries no recipe, expected a clip, sound or picture made by ltx")
    if as_json:
        typer.echo(json.dumps(recipe, ensure_ascii=False, indent=2))
        return
    plan = plan_of(recipe, str(file))
    shape = plan.shape
    typer.echo(f"pipeline         {plan.pipeline}")
    typer.echo(f"prompt           {plan.prompt}")
    if plan.negative_prompt:
        typer.echo(f"negative prompt  {plan.negative_prompt}")
    typer.echo(f"seed             {plan.seed}")
    size = f"{shape.width} x {shape.height}, " if plan.has_video else ""
    typer.echo(f"result           {size}{shape.frames} frames at {shape.fps:g} fps, {shape.duration:.2f} s")
    for index, stage in enumerate(plan.stages, 1):
        sigmas = ", ".join(f"{sigma:.4g}" for sigma in stage.sigmas)
        typer.echo(f"stage {index}          {stage.steps} steps, {stage.sampler.kind}: {sigmas}")
        for name, stream in stage.streams.items():
            if stream.guidance is not None:
                values = ", ".join(f"{key} {value}" for key, value in vars(stream.guidance).items())
                typer.echo(f"  {name:<14} {values}")
            for condition in stream.conditions:
                typer.echo(
                    f"  {condition.kind:<14} {', '.join(f'{k} {v}' for k, v in vars(condition).items() if k != 'kind')}"
                )
    for path, print_ in recipe.get("files", {}).items():
        typer.echo(f"file             {path}  {print_}")
    typer.echo("made with        " + ", ".join(f"{name} {value}" for name, value in recipe.get("versions", {}).items()))
    for line in changes_since(recipe):
        typer.echo(f"changed since    {line}")


def show_weights(path: Path, as_json: bool) -> None:
    """What can be built from a file or folder."""
    from ltx_core.loader.checkpoint import Checkpoint
    from ltx_core.loader.lora import is_lora
    from ltx_core.loader.safetensors_file import SafetensorsFile

    if path.is_file() and path.suffix == ".safetensors" and is_lora((file := SafetensorsFile(path)).tensors):
        facts: dict[str, Any] = {"file": str(path), "adapter": True, "tensors": len(file.tensors), "bytes": file.size}
        facts |= {key: value for key, value in file.metadata.items() if len(value) < 200}
    else:
        facts = weights_facts(Checkpoint.open(path))
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    for key, value in facts.items():
        if key == "components":
            for component in value:
                size = f"{component['parameters'] / 1e6:,.1f} M parameters, {component['bytes'] / 1e9:.3g} GB"
                typer.echo(f"  {component['name']:<18} {size}, {component['dtypes']}")
        elif key != "config":
            typer.echo(f"{key:<16} {value}")


def weights_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Version, licence and components of a checkpoint."""
    import torch

    components = []
    for name in checkpoint.components:
        infos = [source.info for source in checkpoint.sources(name).values()]
        kinds = sorted({info.dtype_name for info in infos})
        parameters = sum(torch.Size(info.shape).numel() for info in infos)
        size = sum(info.nbytes for info in infos)
        components.append({"name": name, "parameters": parameters, "bytes": size, "dtypes": ", ".join(kinds)})
    facts = {"files": checkpoint.where, "model_version": checkpoint.model_version or "not stated"}
    if license_text := checkpoint.metadata.get("license"):
        facts["license"] = license_text.split("\n")[0][:120]
    return facts | {"components": components, "config": checkpoint.config}
