"""Requests that a client may make: options under their own names, files by the names given here, nothing else."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltx_core.errors import ConfigError, nearest_hint
from ltx_studio.files import JOB_ID, UPLOAD, Files

if TYPE_CHECKING:
    from ltx_pipelines.planning.schema import Option

SERVERS = ("output", "device", "prompt_enhancer", "pipeline_config", "embedding_cache")  # what the server chooses
SERVERS_GROUPS = ("Output", "Model")  # too, but for the model itself


def canonical(request: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """A request with every option under its name and of its type, as plain JSON values.

    No path of a client is ever opened: what names a file must be an upload or the id of a clip, ``model`` one of
    ``models``, ``pipeline`` one of ours. Raises `ConfigError`.
    """
    from ltx_media.camera import parse_moves
    from ltx_pipelines.cli.fields import every_option, from_json
    from ltx_pipelines.pipeline import DRAWN, pipelines
    from ltx_pipelines.planning.schema import plain

    if ":" in str(request.get("pipeline", "")):  # before anything is imported for it
        raise ConfigError(f"pipeline is {request['pipeline']!r}, expected one of {', '.join(pipelines())}")
    storyboard = request.get("storyboard")
    rest = {name: value for name, value in request.items() if name != "storyboard"}
    given = {name: plain(value) for name, value in from_json(rest, "request").items()}
    if (model := given.get("model", models[0])) not in models:
        hint = nearest_hint(str(model), models) or f", expected one of {', '.join(models)}"
        raise ConfigError(f"model is {model!r}, which is not served here{hint}")
    options = every_option()
    for name in given.keys() & options.keys() - {"model"}:
        if is_servers(options[name]):
            raise ConfigError(f"{name} is the server's to choose, expected it left out")
    if (camera := given.get("camera")) is not None and not camera.strip().startswith("{"):
        parse_moves(camera)  # no name of a file
    if given.get("seed") == DRAWN:  # now, so that a clip that is taken up again is the same
        given["seed"] = secrets.randbelow(2**31)
    given = with_files(given, _checked)
    return given | ({"storyboard": checked_storyboard(storyboard)} if storyboard is not None else {})


def is_servers(one: Option) -> bool:
    """Whether the server chooses a field, and not its clients."""
    return one.name != "model" and (one.name in SERVERS or one.group in SERVERS_GROUPS)


def names_files(one: Option) -> bool:
    """Whether the values of a field are, or hold, names of files."""
    from ltx_pipelines.planning.schema import File

    return one.name != "storyboard" and (one.element == File or one.parts[0][0] == "path")


def checked_storyboard(scenes: Any) -> list[dict[str, Any]]:
    """The scenes of a storyboard as plain values, whose pictures must be uploads. Raises `ConfigError`."""
    from ltx_pipelines.long import BoardScene
    from ltx_pipelines.planning.schema import Misfit, fit, plain

    try:
        made: list[dict[str, Any]] = plain(fit(tuple[BoardScene, ...], scenes))
    except (Misfit, ConfigError) as error:
        raise ConfigError(f"storyboard: {error}, expected scenes with prompt and seconds") from None
    for name in (keyframe["image"] for scene in made for keyframe in scene["keyframes"]):
        if not UPLOAD.fullmatch(name):
            raise ConfigError(f"storyboard: image is {name[:80]!r}, expected the name of an upload")
    return made


def resolve(request: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """A canonical request with paths for names of files. Raises `MediaError` for one that is gone."""
    made = with_files(request, lambda _, text: str(files.find(text)))
    return made | ({"storyboard": str(files.keep_text(json.dumps(board)))} if (board := made.get("storyboard")) else {})


def with_files(request: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """A canonical request, every name of a file in it changed by a function of the option and the name."""
    from ltx_pipelines.cli.fields import every_option

    def inside(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [inside(name, one) for one in value]
        return {**value, "path": change(name, value["path"])} if isinstance(value, dict) else change(name, value)

    options, made = every_option(), dict(request)
    for name, value in request.items():
        one = options.get(name)
        if one is not None and names_files(one):
            made[name] = inside(name, value)
    return made


def _checked(name: str, text: str) -> str:
    if not (UPLOAD.fullmatch(text) or JOB_ID.fullmatch(text)):
        raise ConfigError(f"{name} is {text[:80]!r}, expected the name of an upload or the id of a clip")
    return text
