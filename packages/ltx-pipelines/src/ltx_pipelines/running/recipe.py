"""The recipe that travels with a clip: all it takes to make it again, and to see what has changed since.

A recipe is a JSON object:

``plan``      the plan, as `Plan.to_json` writes it
``request``   what was asked, by option name, where a command made the clip; lets `ltx rerun` change something
``pipeline``  the command that was chosen
``versions``  our packages, torch, Python, the device the clip was made on, and the threads of a processor
``files``     a fingerprint (`ltx_core.fingerprint`) of every file that was read: weights, adapters, pictures, clips

Inside a clip it names a file that lies beside or below the clip by its path from there, any other by its name alone.
The folder of a model, which is no file that is read, stands in the request as ``./name``. Where this user's files lie
is known by their fingerprints, outside all clips (`state_folder`).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from ltx_core import __version__
from ltx_core.errors import ConfigError, MediaError
from ltx_core.fingerprint import exists, fingerprint, is_regular
from ltx_media.files import replacing
from ltx_pipelines.planning.plan import Plan, plan_from_json
from ltx_pipelines.planning.schema import absolute, files_in, with_files

logger = logging.getLogger(__name__)

RECIPE_VERSION = 1
MOST_ENTRIES = 1000
PACKAGES = ("torch", "av")
PROMPTS = ("prompt", "negative_prompt")
NEAR = "./"  # before the folder of a model
MOST_KNOWN = 2000  # entries of known files
FINGERPRINT = re.compile(r"\d{1,20}-[0-9a-f]{32}")


def make_recipe(plan: Plan, request: Mapping[str, Any] | None = None, device: str = "cpu") -> dict[str, Any]:
    """The recipe of a plan, paths absolute. ``request`` holds plain JSON values."""
    plan = with_files(plan, absolute)
    named = [text for text in _texts(request) if Path(text).is_absolute() and is_regular(text)]
    recipe = {
        "recipe": RECIPE_VERSION,
        "pipeline": plan.pipeline,
        "plan": json.loads(plan.to_json()),
        "versions": versions() | {"device": device} | (threads() if device == "cpu" else {}),
        "files": {path: fingerprint(path) for path in dict.fromkeys([*files_in(plan), *named])},
    }
    return recipe | ({"request": dict(request)} if request is not None else {})


def recipe_for(
    clip: Path,
    plan: Plan,
    request: Mapping[str, Any] | None = None,
    device: str = "cpu",
    absolute_paths: bool = False,
) -> dict[str, Any]:
    """The recipe that is written into ``clip``; where its files lie is remembered on this machine."""
    recipe = make_recipe(plan, request, device)
    remember(recipe["files"])
    return recipe if absolute_paths else without_folders(recipe, clip)


def without_folders(recipe: Mapping[str, Any], clip: Path) -> dict[str, Any]:
    """A recipe as ``clip`` carries it. Raises `ConfigError` for what is none."""
    plan, folder = plan_of(recipe, str(clip)), _whole(clip).parent
    names = names_from(folder, [*recipe.get("files", {}), *files_in(plan)])
    made = {
        **recipe,
        "plan": json.loads(with_files(plan, names.__getitem__).to_json()),
        "files": {names[path]: print_ for path, print_ in recipe.get("files", {}).items()},
    }
    if isinstance(request := recipe.get("request"), dict):
        options = {
            name: value if name in PROMPTS else _rename(value, names, folder)
            for name, value in request["options"].items()
        }
        made["request"] = {**request, "options": options}
    return made


def names_from(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """A name for each path, no two the same: the way from ``folder`` down to it, else its last part."""
    names: dict[str, str] = {}  # paths by name
    for path in dict.fromkeys(paths):
        name = _name_from(folder, path)
        suffix = Path(name).suffix
        stem = name.removesuffix(suffix)
        again = (f"{stem}-{number}{suffix}" for number in count(2))
        while name in names:
            name = next(again)
        names[name] = path
    return {path: name for name, path in names.items()}


def is_of(recipe: Mapping[str, Any], plan: Plan) -> bool:
    """Whether a recipe is of exactly this plan and of the content of its files, wherever these lie."""
    try:
        then = plan_of(recipe, "recipe")
    except ConfigError:
        return False
    marks = recipe.get("files", {})
    return bool(with_files(then, lambda name: marks.get(name, name)) == with_fingerprints(plan))


def with_fingerprints(plan: Plan) -> Plan:
    """A plan by the content of its files."""
    made: Plan = with_files(plan, lambda path: fingerprint(absolute(path)))
    return made


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


def changes_since(recipe: Mapping[str, Any], found: Mapping[str, Path | None] | None = None) -> Iterator[str]:
    """One line for everything that could make the clip come out differently now.

    ``found`` says where files are that are not where the recipe says, and None of those that are nowhere. Files that it
    leaves out, and what is no regular file, are not looked at.
    """
    now = versions() | (threads() if "threads" in recipe.get("versions", {}) else {})
    for name, then in recipe.get("versions", {}).items():
        if name in now and now[name] != then:
            yield f"{name} was {then}, is {now[name]}"
    files = recipe.get("files", {})
    found = {name: Path(name) for name in files} if found is None else found
    for name, then in files.items():
        path = found.get(name)
        if name not in found:
            yield f"{name} was not looked at"
        elif path is None or not exists(path):
            yield f"{name} is gone"
        elif not (is_regular(path) or path.is_dir()):
            yield f"{name} is no regular file"
        elif fingerprint(path) != then:
            yield f"{name} is another file than it was"


def _name_from(folder: Path, path: str) -> str:
    if not Path(path).is_absolute():
        return path
    whole = _whole(path)
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else whole.name


def _whole(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


def _texts(value: Any) -> Iterator[str]:
    """Every text in JSON values, but for prompts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from () if name in PROMPTS else _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _rename(value: Any, names: Mapping[str, str], folder: Path) -> Any:
    """JSON values with names for paths."""
    if isinstance(value, dict):
        return {key: _rename(one, names, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [_rename(one, names, folder) for one in value]
    if isinstance(value, str) and value not in names and Path(value).is_absolute() and exists(value):
        return NEAR + _name_from(folder, value)
    return names.get(value, value) if isinstance(value, str) else value


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


# Known files -------------------------------------------------------------------------------------------------------


def state_folder() -> Path:
    """Folder of the last known paths of this user's files, since recipes inside clips name no folders.

    One small file for each fingerprint; delete the folder to forget all. It says where to look, and nothing about
    trust: a recipe from somebody else may hold any fingerprint.
    """
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ltx" / "files"


def remember(files: Mapping[str, str]) -> None:
    """Keep where files lie, fingerprints by absolute path; the oldest of too many are forgotten."""
    folder = state_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, mark in files.items():
            if _read(folder / mark) == os.fsencode(path):
                (folder / mark).touch()
                continue
            with replacing(folder / mark) as temporary:
                temporary.write_bytes(os.fsencode(path))
        kept = sorted((entry.stat().st_mtime, entry) for entry in folder.iterdir())
        for _, entry in kept[:-MOST_KNOWN]:
            entry.unlink()
    except FileNotFoundError:  # another process has forgotten the same one
        return
    except (OSError, MediaError) as error:
        logger.warning("%s cannot be written, so a rerun finds files beside the clip only: %s", folder, error)


def last_known(mark: str) -> Path | None:
    """Last path of a file of this fingerprint; None where that is not known."""
    place = state_folder() / mark
    if not FINGERPRINT.fullmatch(mark) or (text := _read(place)) is None:
        return None
    path = Path(os.fsdecode(text))
    if not path.is_absolute() or b"\0" in text:
        logger.warning("%s is damaged and left out", place)
        return None
    return path


def _read(place: Path) -> bytes | None:
    try:
        return place.read_bytes()
    except OSError:
        return None
