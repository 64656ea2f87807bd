"""`ltx rerun` makes a clip again from the recipe inside it; `ltx finish` refines a first stage that was kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.fields import every_option, some_options
from ltx_pipelines.cli.trust import LOOK_IN, SHOWN, TRUST, Finder
from ltx_pipelines.planning.schema import File, Option, UsageError, files_in, read_all, with_files

if TYPE_CHECKING:
    from ltx_pipelines.planning.plan import Plan
    from ltx_pipelines.utils.model_ledger import ModelLedger

CHANGEABLE = (
    *("prompt", "negative_prompt", "seed", "num_inference_steps", "height", "width", "num_frames", "frame_rate"),
    *("model", "checkpoint_path", "gemma_root"),
)
PLACES = ("backend", "policy", "offload", "device")
SHARED = ("output", *PLACES, "contact_sheet", "crf", "overwrite", "absolute_paths", "force", "json", "quiet")
FILE = Option("file", File, "", "The clip, or a WAV or PNG made by ltx.", group="Request")
ABOUT_RERUN = """Make a clip again from the recipe inside it.

Without changes the result is the same bit for bit on the same machine; what is different since is said first. With
changes the request is planned anew.
"""
ABOUT_FINISH = """Refine a first stage that was kept.

Give the clip made with --keep-latents or --first-stage, or the .stage1.safetensors file beside it. The result equals
that of an uninterrupted run.
"""


def rerun(given: dict[str, Any]) -> None:
    """From a recipe to a second clip."""
    from ltx_core.errors import ConfigError
    from ltx_pipelines.cli.generate import kept_request, make_plan, output_of
    from ltx_pipelines.cli.progress import Reporter, style_of
    from ltx_pipelines.cli.session import open_session
    from ltx_pipelines.pipeline import find_pipeline
    from ltx_pipelines.planning.validation import validate_plan
    from ltx_pipelines.running.output import free_path
    from ltx_pipelines.running.recipe import changes_since, plan_of

    reporter = Reporter(style_of(given))
    file = given_file(given)
    recipe = recipe_in(first_of(file))
    changes = {name: given[name] for name in CHANGEABLE if name in given}
    plan, finder = plan_of(recipe, str(file)), Finder(given, file)
    request: Any = recipe.get("request")
    if changes and not isinstance(request, dict):
        raise ConfigError(f"{file} was not made by a command, so nothing can be changed; rerun it as it is")
    found = where_files_are(recipe, plan, finder)
    if changes:
        options = request_again(recipe, changes, found, finder)
    else:
        plan = with_places(plan, found, finder)
    looked_at = {name: path for name, path in found.items() if path is None or finder.may_open(path)}
    for line in changes_since(recipe, looked_at):
        reporter.note(f"since then: {line}")
    if changes:
        merged = options | changes | {name: given[name] for name in PLACES if name in given}
        session = open_session(merged, find_pipeline(request["command"]))
        plan, ledger = make_plan(session, merged, reporter), session.ledger
        request = kept_request(merged, session, plan)
    else:
        ledger = ledger_for(plan, given)
        validate_plan(plan, ledger)
    from ltx_pipelines.cli.job import Job, execute

    output = Path(given.get("output") or free_path(file.with_stem(f"{file.stem}-again")))
    execute(Job(plan, ledger, output, output_of(given), request), reporter)


def finish(given: dict[str, Any]) -> None:
    """From kept latents to the whole clip."""
    from ltx_pipelines.cli.generate import output_of
    from ltx_pipelines.cli.job import Job, execute, kept_recipe, load_stage
    from ltx_pipelines.cli.progress import Reporter, style_of
    from ltx_pipelines.planning.validation import validate_plan
    from ltx_pipelines.running.output import free_path, latents_path
    from ltx_pipelines.running.recipe import plan_of

    reporter = Reporter(style_of(given))
    file = given_file(given)
    kept = file if file.suffix == ".safetensors" else latents_path(file)
    recipe, finder = kept_recipe(kept), Finder(given, file)
    plan = plan_of(recipe, str(kept))
    plan = with_places(plan, where_files_are(recipe, plan, finder), finder)
    ledger = ledger_for(plan, given)
    validate_plan(plan, ledger)
    stem = Path(file.name.removesuffix(".stage1.safetensors")).stem
    output = Path(given.get("output") or free_path(file.with_name(f"{stem}-finished.mp4")))
    execute(Job(plan, ledger, output, output_of(given), resume=load_stage(kept, plan)), reporter)


def where_files_are(recipe: Mapping[str, Any], plan: Plan, finder: Finder) -> dict[str, Path | None]:
    """Path of each file that a recipe names, or None."""
    marks = recipe.get("files", {})
    return {name: finder.find(name, marks.get(name, "")) for name in dict.fromkeys([*marks, *files_in(plan)])}


def with_places(plan: Plan, found: Mapping[str, Path | None], finder: Finder) -> Plan:
    """A plan with its files where they are, which may be opened. Raises `ConfigError`."""
    paths = paths_to_open(files_in(plan), found, finder)
    made: Plan = with_files(plan, lambda name: str(paths[name]))
    return made


def paths_to_open(
    names: Iterable[str], found: Mapping[str, Path | None], finder: Finder, others: Sequence[str] = ()
) -> dict[str, Path]:
    """Paths of files that may be opened, as may ``others``. Raises `ConfigError`, also for one that is nowhere."""
    from ltx_core.errors import ConfigError

    paths = {name: path for name in names if (path := found.get(name)) is not None}
    finder.ask_to_open(paths.values(), others)
    if missing := [name for name in names if name not in paths]:
        what = f"{finder.file}: its recipe names {', '.join(missing[:SHOWN])}"
        raise ConfigError(f"{what}, found neither beside it nor where last used; name the folder with --look-in")
    return paths


def request_again(
    recipe: Mapping[str, Any], changes: Mapping[str, Any], found: Mapping[str, Path | None], finder: Finder
) -> dict[str, Any]:
    """The first request without what a change replaces, with paths of files that may be opened."""
    from ltx_pipelines.running.hub import bundled_model
    from ltx_pipelines.running.recipe import NEAR

    known, request, models = every_option(), recipe["request"], recipe["plan"]["models"]
    asked = read_all(known, request["options"], "ltx rerun", where=f"{finder.file}: ")
    asked = {name: value for name, value in asked.items() if not _is_replaced(name, changes)}
    hints = {name: File if _is_file(name, asked[name], found) else known[name].hint for name in asked}
    found = dict(found)
    if (model := asked.get("model", "")).startswith(NEAR):
        found[model] = finder.model(model.removeprefix(NEAR), found.get(models["checkpoint"]) or finder.file)
    names = [name for option, value in asked.items() for name in files_in(value, hints[option])]
    found |= {name: finder.find(name) for name in names if name not in found}
    others = [request["command"]] if ":" in request["command"] else []
    others += [model] if model and model not in names and bundled_model(model) is None else []
    paths = paths_to_open(names, found, finder, others)
    return {name: with_files(value, lambda text: str(paths[text]), hints[name]) for name, value in asked.items()}


def _is_file(name: str, value: Any, found: Mapping[str, Path | None]) -> bool:
    """Whether the value of an option that may name a file does."""
    from ltx_pipelines.ltx_video.settings import PUBLISHED
    from ltx_pipelines.running.recipe import NEAR

    if name == "model":
        return value in found or value.startswith(NEAR) or Path(value).is_absolute()
    return value.endswith(".json") if name == "camera" else name == "pipeline_config" and value not in PUBLISHED


def given_file(given: dict[str, Any]) -> Path:
    """The file a line names."""
    if "file" not in given:
        raise UsageError("no file is given, expected a clip made by ltx")
    return Path(given["file"])


def first_of(file: Path) -> Path:
    """The file that carries the recipe: of a folder of pictures the first."""
    return next(iter(sorted(file.glob("frame_*.png"))), file) if file.is_dir() else file


def recipe_in(file: Path) -> dict[str, Any]:
    """The recipe of a file; refuses files without one."""
    from ltx_core.errors import MediaError
    from ltx_media.containers import read_recipe

    recipe = read_recipe(file)
    if recipe is None:
        raise MediaError(f"{file} carries no recipe, expected a clip, sound or picture made by ltx")
    return recipe


def ledger_for(plan: Plan, given: dict[str, Any]) -> ModelLedger:
    """The networks a plan names, placed as the line says."""
    from ltx_pipelines.running.networks import make_ledger

    made_with = {"backend": plan.backend, "dtype": plan.dtype, "quantization": plan.quantization}
    return make_ledger(plan.models, made_with | {name: given[name] for name in PLACES if name in given})


def _is_replaced(name: str, changes: Mapping[str, Any]) -> bool:
    """Whether a change replaces an option of the first request, under its own name or another."""
    rivals: dict[str, tuple[str, ...]] = {"duration": ("num_frames",), "sigmas": ("num_inference_steps",)}
    rivals |= dict.fromkeys(("model", "checkpoint_path"), ("model", "checkpoint_path"))
    return any(rival in changes for rival in (name, *rivals.get(name, ())))


def options(*names: str) -> dict[str, Option]:
    return {"file": FILE, "trust": TRUST, "look_in": LOOK_IN, **some_options(*names)}


RERUN = Command("rerun", ABOUT_RERUN, options(*CHANGEABLE, *SHARED), rerun, "file", every_option)
FINISH = Command("finish", ABOUT_FINISH, options(*SHARED), finish, "file", every_option)
