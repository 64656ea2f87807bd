"""What a client may ask for: options under their own names, files by the names they were given here, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ltx_core.errors import ConfigError, nearest_hint
from ltx_studio.files import JOB_ID, UPLOAD, Files

SERVERS = ("output", "device", "prompt_enhancer", "pipeline_config", "embedding_cache")  # what the server chooses
SERVERS_GROUPS = ("Output", "Model")  # too, but for the model itself


def canonical(request: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """A request with every option under its name and of its type, as plain JSON values.

    No path of a client is ever opened: what names a file must be an upload or the id of a clip, ``model`` one of
    ``models``, ``pipeline`` one of ours. Raises `ConfigError`.
    """
    from ltx_pipelines.cli.fields import every_option, from_json
    from ltx_pipelines.pipeline import pipelines
    from ltx_pipelines.planning.schema import plain

    if ":" in str(request.get("pipeline", "")):  # before anything is imported for it
        raise ConfigError(f"pipeline is {request['pipeline']!r}, expected one of {', '.join(pipelines())}")
    given = {name: plain(value) for name, value in from_json(request, "request").items()}
    if (model := given.get("model", models[0])) not in models:
        hint = nearest_hint(str(model), models) or f", expected one of {', '.join(models)}"
        raise ConfigError(f"model is {model!r}, which is not served here{hint}")
    options = every_option()
    for name in given.keys() & options.keys() - {"model"}:
        if name in SERVERS or options[name].group in SERVERS_GROUPS:
            raise ConfigError(f"{name} is the server's to choose, expected it left out")
    return with_files(given, _checked)


def resolved(request: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """A canonical request with paths for names of files. Raises `MediaError` for one that is gone."""
    return with_files(request, lambda _, text: str(files.named(text)))


def with_files(request: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """A canonical request, every name of a file in it changed by a function of the option and the name."""
    from ltx_pipelines.cli.fields import every_option
    from ltx_pipelines.planning.schema import File

    def inside(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [inside(name, one) for one in value]
        return {**value, "path": change(name, value["path"])} if isinstance(value, dict) else change(name, value)

    options, made = every_option(), dict(request)
    for name, value in request.items():
        one = options.get(name)
        if one is not None and (one.element == File or one.parts[0][0] == "path"):
            made[name] = inside(name, value)
    return made


def _checked(name: str, text: str) -> str:
    if not (UPLOAD.fullmatch(text) or JOB_ID.fullmatch(text)):
        raise ConfigError(f"{name} is {text[:80]!r}, expected the name of an upload or the id of a clip")
    return text
