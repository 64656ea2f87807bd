"""`ltx inspect`: the recipe inside a clip, or what a weights file or model folder holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.again import first_of, recipe_in, where_files_are
from ltx_pipelines.cli.command import AS_JSON, Command
from ltx_pipelines.cli.trust import LOOK_IN, TRUST, Finder
from ltx_pipelines.planning.schema import File, Option, UsageError

if TYPE_CHECKING:
    from ltx_core.loader.checkpoint import Checkpoint

ABOUT = "Show the recipe inside a clip, or what a weights file holds."
FILE = Option("file", File, "", "Clip, PNG, WAV, weights file or model folder.")


def inspect(given: dict[str, Any]) -> None:
    """Show a file; its kind decides how."""
    from ltx_core.errors import MediaError

    if "file" not in given:
        raise UsageError("no file is given, expected a clip, a weights file or a model folder")
    file, as_json = Path(given["file"]), given.get("json", False)
    finder = Finder(given, file)
    if not file.exists():
        raise MediaError(f"{file} does not exist")
    file = first_of(file)
    if file.is_dir() or file.suffix in (".safetensors", ".gguf"):
        show_weights(file, as_json)
    else:
        show_recipe(file, as_json, finder)


def show_recipe(file: Path, as_json: bool, finder: Finder) -> None:
    """A recipe as facts, then what has changed since of the files that are trusted."""
    from ltx_pipelines.running.recipe import changes_since, plan_of

    recipe = recipe_in(file)
    if as_json:
        print(json.dumps(recipe, ensure_ascii=False, indent=2))
        return
    plan = plan_of(recipe, str(file))
    shape = plan.shape
    print(f"pipeline         {plan.pipeline}")
    print(f"prompt           {plan.prompt}")
    if plan.negative_prompt:
        print(f"negative prompt  {plan.negative_prompt}")
    print(f"seed             {plan.seed}")
    size = f"{shape.width} x {shape.height}, " if plan.has_video else ""
    print(f"result           {size}{shape.frames} frames at {shape.fps:g} fps, {shape.duration:.2f} s")
    for index, stage in enumerate(plan.stages, 1):
        sigmas = ", ".join(f"{sigma:.4g}" for sigma in stage.sigmas)
        print(f"stage {index}          {stage.steps} steps, {stage.sampler.kind}: {sigmas}")
        for name, stream in stage.streams.items():
            bins = [(f"up to {bound:g}: ", params) for bound, params in stream.guidance_by_sigma]
            for upto, params in bins or ([("", stream.guidance)] if stream.guidance else []):
                print(f"  {name:<14} {upto}{', '.join(f'{key} {value}' for key, value in vars(params).items())}")
            for condition in stream.conditions:
                print(
                    f"  {condition.kind:<14} {', '.join(f'{k} {v}' for k, v in vars(condition).items() if k != 'kind')}"
                )
    for path, print_ in recipe.get("files", {}).items():
        print(f"file             {path}  {print_}")
    print("made with        " + ", ".join(f"{name} {value}" for name, value in recipe.get("versions", {}).items()))
    found = where_files_are(recipe, plan, finder)
    looked_at = {name: path for name, path in found.items() if path is None or finder.is_trusted(path)}
    for line in changes_since(recipe, looked_at):
        print(f"changed since    {line}")


def show_weights(path: Path, as_json: bool) -> None:
    """Show the components that can be built from a file or folder."""
    from ltx_core.loader.checkpoint import Checkpoint
    from ltx_core.loader.lora import is_lora
    from ltx_core.loader.safetensors_file import SafetensorsFile

    if path.is_file() and path.suffix == ".safetensors" and is_lora((file := SafetensorsFile(path)).tensors):
        facts: dict[str, Any] = {"file": str(path), "adapter": True, "tensors": len(file.tensors), "bytes": file.size}
        facts |= {key: value for key, value in file.metadata.items() if len(value) < 200}
    else:
        facts = weights_facts(Checkpoint.open(path))
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    for key, value in facts.items():
        if key == "components":
            for component in value:
                size = f"{component['parameters'] / 1e6:,.1f} M parameters, {component['bytes'] / 1e9:.3g} GB"
                print(f"  {component['name']:<18} {size}, {component['dtypes']}")
        elif key != "config":
            print(f"{key:<16} {value}")


def weights_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Version, licence and components of a checkpoint."""
    components = []
    for name in checkpoint.components:
        infos = [source.info for source in checkpoint.sources(name).values()]
        kinds = sorted({info.dtype_name for info in infos})
        parameters = sum(math.prod(info.shape) for info in infos)
        size = sum(info.nbytes for info in infos)
        components.append({"name": name, "parameters": parameters, "bytes": size, "dtypes": ", ".join(kinds)})
    facts = {"files": checkpoint.where, "model_version": checkpoint.model_version or "not stated"}
    if license_text := checkpoint.metadata.get("license"):
        facts["license"] = license_text.split("\n")[0][:120]
    return facts | {"components": components, "config": checkpoint.config}


OPTIONS = {"file": FILE, "json": AS_JSON, "trust": TRUST, "look_in": LOOK_IN}
INSPECT = Command("inspect", ABOUT, OPTIONS, inspect, "file")
