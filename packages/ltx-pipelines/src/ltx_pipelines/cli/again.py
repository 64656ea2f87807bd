"""`ltx rerun` makes a clip again from the recipe inside it; `ltx finish` refines a first stage that was kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.fields import every_option
from ltx_pipelines.cli.trust import TRUST, ask_to_open, trusted_by
from ltx_pipelines.planning.schema import File, Option, UsageError, read_all

if TYPE_CHECKING:
    from ltx_pipelines.planning.plan import Plan
    from ltx_pipelines.utils.model_ledger import ModelLedger

CHANGEABLE = (
    *("prompt", "negative_prompt", "seed", "num_inference_steps", "height", "width", "num_frames", "frame_rate"),
    *("model", "checkpoint_path", "gemma_root"),
)
PLACES = ("backend", "policy", "offload", "device")
SHARED = ("output", *PLACES, "contact_sheet", "crf", "overwrite", "force", "json", "quiet")
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
    from ltx_pipelines.cli.generate import kept_request, planned
    from ltx_pipelines.cli.progress import Reporter, style_of
    from ltx_pipelines.cli.session import open_session
    from ltx_pipelines.pipeline import pipeline_named
    from ltx_pipelines.planning.validation import validate_plan
    from ltx_pipelines.running.recipe import changes_since, files_of, plan_of

    reporter = Reporter(style_of(given))
    file = given_file(given)
    recipe = recipe_in(first_of(file))
    changes = {name: given[name] for name in CHANGEABLE if name in given}
    plan = plan_of(recipe, str(file))
    request = recipe.get("request")
    named, others = list(files_of(plan)), list[str]()
    if changes and request is not None:
        files, others = named_in(request, changes)
        named += files
    ask_to_open(named, given, file, others)
    trusted = trusted_by(given, file)
    for line in changes_since(recipe, lambda path: str(path) in named or trusted(path)):
        reporter.note(f"since then: {line}")
    if changes and not isinstance(request, dict):
        raise ConfigError(f"{file} was not made by a command, so nothing can be changed; rerun it as it is")
    if changes and isinstance(request, dict):
        asked = read_all(every_option(), request["options"], "ltx rerun", where=f"{file}: ")
        options = {name: value for name, value in asked.items() if not _replaced(name, changes)}
        merged = options | changes | {name: given[name] for name in PLACES if name in given}
        session = open_session(merged, pipeline_named(request["command"]))
        plan, ledger = planned(session, merged, reporter), session.ledger
        request = kept_request(merged, session, plan)
    else:
        ledger = ledger_for(plan, given)
        validate_plan(plan, ledger)
    from ltx_pipelines.cli.job import Job, execute

    output = Path(given.get("output") or free_name(file, "again"))
    execute(Job(plan, ledger, output, request, **written(given)), reporter)


def finish(given: dict[str, Any]) -> None:
    """From kept latents to the whole clip."""
    from ltx_pipelines.cli.job import Job, execute, load_stage
    from ltx_pipelines.cli.progress import Reporter, style_of
    from ltx_pipelines.planning.validation import validate_plan
    from ltx_pipelines.running.output import latents_path
    from ltx_pipelines.running.recipe import files_of

    reporter = Reporter(style_of(given))
    file = given_file(given)
    plan, resume = load_stage(file if file.suffix == ".safetensors" else latents_path(file))
    ask_to_open(files_of(plan), given, file)
    ledger = ledger_for(plan, given)
    validate_plan(plan, ledger)
    stem = Path(file.name.removesuffix(".stage1.safetensors")).stem
    output = Path(given.get("output") or free_name(file.with_name(f"{stem}.mp4"), "finished"))
    execute(Job(plan, ledger, output, resume=resume, **written(given)), reporter)


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
    from ltx_media.recipe import read_recipe

    recipe = read_recipe(file)
    if recipe is None:
        raise MediaError(f"{file} carries no recipe, expected a clip, sound or picture made by ltx")
    return recipe


def ledger_for(plan: Plan, given: dict[str, Any]) -> ModelLedger:
    """The networks a plan names, placed as the line says."""
    from ltx_pipelines.running.networks import make_ledger

    made_with = {"backend": plan.backend, "dtype": plan.dtype, "quantization": plan.quantization}
    return make_ledger(plan.models, made_with | {name: given[name] for name in PLACES if name in given})


def free_name(file: Path, label: str) -> Path:
    """A name beside a file that is not taken."""
    names = (file.with_name(f"{file.stem}-{label}{again}{file.suffix}") for again in ("", *map(str, range(2, 10000))))
    return next(name for name in names if not name.exists())


def written(given: dict[str, Any]) -> dict[str, Any]:
    """Encoding of a clip, as fields of a job."""
    sheet = Path(given["contact_sheet"]) if "contact_sheet" in given else None
    switches = {name: bool(given.get(name)) for name in ("overwrite", "force")}
    return {"contact_sheet": sheet, "crf": given.get("crf"), **switches}


def named_in(request: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names in the request of a recipe that no change replaces: files, and programs or models of the hub."""
    from ltx_pipelines.running.hub import bundled_model

    known, files = every_option(), []
    others = [request["command"]] if ":" in request["command"] else []
    for name, value in request["options"].items():
        one = known.get(name)
        if one is None or name in changes or _replaced(name, dict(changes)):
            continue
        several = value if isinstance(value, list) else [value]
        texts = [single.get("path") if isinstance(single, dict) else single for single in several]
        if one.element == File or one.parts[0][0] == "path" or name == "pipeline_config":
            files += [text for text in texts if isinstance(text, str)]
        elif name == "model" and isinstance(value, str):
            (files if Path(value).expanduser().exists() else others).append(value)
    return files, [name for name in others if bundled_model(name) is None]


def _replaced(name: str, changes: dict[str, Any]) -> bool:
    """Whether an option of the first request gives way to a change under another name."""
    rivals: dict[str, tuple[str, ...]] = {"duration": ("num_frames",), "sigmas": ("num_inference_steps",)}
    rivals |= dict.fromkeys(("model", "checkpoint_path"), ("model", "checkpoint_path"))
    return any(rival in changes for rival in rivals.get(name, ()))


def options(*names: str) -> dict[str, Option]:
    return {"file": FILE, "trust": TRUST, **{name: every_option()[name] for name in names}}


RERUN = Command("rerun", ABOUT_RERUN, options(*CHANGEABLE, *SHARED), rerun, "file", every_option)
FINISH = Command("finish", ABOUT_FINISH, options(*SHARED), finish, "file", every_option)
