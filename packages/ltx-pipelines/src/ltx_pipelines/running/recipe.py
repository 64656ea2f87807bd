"""The recipe that travels with a clip: all it takes to make it again, and to see what has changed since.

A recipe is a JSON object:

``plan``      the plan, as `Plan.to_json` writes it
``request``   what was asked, by option name, where a command made the clip; lets `ltx rerun` change something
``pipeline``  the command that was chosen
``versions``  our packages, torch, Python, the device the clip was made on, and the threads of a processor
``files``     a fingerprint (`ltx_core.fingerprint`) of every file that was read: weights, adapters, pictures, clips
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltx_core import __version__
from ltx_core.errors import ConfigError
from ltx_core.fingerprint import fingerprint, is_regular
from ltx_pipelines.planning.plan import (
    AudioReferenceCondition,
    CameraCondition,
    ImageCondition,
    Plan,
    ReferenceCondition,
    plan_from_json,
)

RECIPE_VERSION = 1
MOST_ENTRIES = 1000
PACKAGES = ("torch", "av")


def make_recipe(plan: Plan, request: Mapping[str, Any] | None = None, device: str = "cpu") -> dict[str, Any]:
    """The recipe of a plan. ``request`` holds plain JSON values."""
    recipe = {
        "recipe": RECIPE_VERSION,
        "pipeline": plan.pipeline,
        "plan": json.loads(plan.to_json()),
        "versions": versions() | {"device": device} | (threads() if device == "cpu" else {}),
        "files": {path: fingerprint(path) for path in dict.fromkeys(files_of(plan))},
    }
    return recipe | ({"request": dict(request)} if request is not None else {})


def plan_of(recipe: Mapping[str, Any], where: str) -> Plan:
    """The plan inside a recipe. Raises `ConfigError` for something else, or for one from a newer program."""
    check_recipe(recipe, where)
    return plan_from_json(json.dumps(recipe["plan"]))


def check_recipe(recipe: Mapping[str, Any], where: str) -> None:
    """Refuse a recipe that is not what `make_recipe` writes, whoever wrote it. Raises `ConfigError`."""
    version = recipe.get("recipe", RECIPE_VERSION)
    if isinstance(version, int) and version > RECIPE_VERSION:
        raise ConfigError(f"{where}: its recipe is version {version}, this program reads {RECIPE_VERSION}")
    if not isinstance(recipe.get("plan"), dict):
        raise ConfigError(f"{where}: its metadata holds no plan, expected a file made by ltx")
    for name in ("versions", "files"):
        texts = recipe.get(name, {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ConfigError(f"{where}: {name} of its recipe is {texts!r:.60}, expected texts by name")
        if len(texts) > MOST_ENTRIES:
            raise ConfigError(
                f"{where}: {name} of its recipe has {len(texts)} entries, expected at most {MOST_ENTRIES}"
            )
    request = recipe.get("request")
    if request is not None and not (
        isinstance(request, dict)
        and isinstance(request.get("command"), str)
        and isinstance(request.get("options"), dict)
    ):
        raise ConfigError(f"{where}: request of its recipe is {request!r:.60}, expected a command and its options")


def changes_since(recipe: Mapping[str, Any], trusted: Callable[[Path], bool] = lambda path: True) -> Iterator[str]:
    """One line for everything that could make the clip come out differently now.

    Files that are not ``trusted``, and what is no regular file, are not looked at.
    """
    now = versions() | (threads() if "threads" in recipe.get("versions", {}) else {})
    for name, then in recipe.get("versions", {}).items():
        if name in now and now[name] != then:
            yield f"{name} was {then}, is {now[name]}"
    for path, then in recipe.get("files", {}).items():
        if not trusted(Path(path)):
            yield f"{path} was not looked at"
        elif not (is_regular(path) or Path(path).is_dir()):
            yield f"{path} is {'no regular file' if Path(path).exists() else 'gone'}"
        elif fingerprint(path) != then:
            yield f"{path} is another file than it was"


def files_of(plan: Plan) -> Iterator[str]:
    """Every file a plan reads."""
    for _, path in plan.models.paths():
        yield path
    for stage in plan.stages:
        for lora in stage.loras:
            yield lora.path
    for _, condition in plan.conditions():
        if isinstance(condition, ImageCondition | ReferenceCondition | AudioReferenceCondition) and condition.path:
            yield condition.path
        if isinstance(condition, CameraCondition):
            yield from filter(None, (condition.image, condition.depth))
        if isinstance(condition, ReferenceCondition) and condition.attention_mask is not None:
            yield condition.attention_mask
    for source in plan.sources.values():
        yield source.path
    if plan.long is not None and plan.long.anchor not in (None, "first"):
        yield plan.long.anchor


def threads() -> dict[str, str]:
    """Number of threads a processor computes with: sums are divided among them."""
    import torch

    return {"threads": str(torch.get_num_threads())}


def versions() -> dict[str, str]:
    """Our packages and what else decides the last bit."""
    found = {"ltx": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
