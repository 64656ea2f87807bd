"""`ltx config`: defaults of one's own for every command that makes clips, in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError, nearest_hint
from ltx_core.textfiles import read_yaml
from ltx_pipelines.cli.command import Command, from_tokens
from ltx_pipelines.cli.fields import every_option
from ltx_pipelines.planning.schema import Option, UsageError, plain

ABOUT = """Show your defaults, or set one.

`ltx config model Lightricks/LTX-2.3` sets one, `ltx config model` shows it, `ltx config --unset model` forgets it. What
stands on a line, or in LTX_MODEL, goes first.
"""
SETTABLE = (
    *("model", "gemma_root", "policy", "offload", "backend", "device", "dtype", "quantization", "compile_blocks"),
    *("embedding_cache", "overwrite", "absolute_paths", "preview", "quiet"),
)
RIVALS = (("model", "checkpoint_path", "transformer"), ("policy", "offload"))  # ways to say one thing
NAME = Option("name", str, "", "Option, such as model.")
VALUE = Option("value", str, "", "Its value.")
UNSET = Option("unset", str | None, None, "Forget a default.", metavar="NAME")


def config_path() -> Path:
    """The file of defaults."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "ltx" / "config.yaml"


def settings() -> dict[str, Any]:
    """The defaults in the file. Raises `ConfigError` that names what is wrong with it."""
    path = config_path()
    found = read_yaml(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is {type(found).__name__}, expected options and their values")
    return {name: settable(name, str(path)).read(value, f"{path}: ") for name, value in found.items()}


def with_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a line, completed with the defaults from the settings file."""
    kept = settings()
    if os.environ.get("LTX_MODEL"):
        kept.pop("model", None)
    for rivals in RIVALS:
        if any(name in given for name in rivals):
            kept = {name: value for name, value in kept.items() if name not in rivals}
    return {**kept, **given}


def settable(name: Any, where: str) -> Option:
    """The option of a name that may have a default. Raises `ConfigError` for any other."""
    spelled = str(name).lstrip("-").replace("-", "_")
    if spelled not in SETTABLE:
        hint = nearest_hint(spelled, SETTABLE) or f", expected one of {', '.join(SETTABLE)}"
        raise ConfigError(f"{where}: {name} has no default{hint}")
    return every_option()[spelled]


def configure(given: dict[str, Any]) -> None:
    """Show or change the defaults."""
    kept = settings()
    if "value" in given or "unset" in given:
        if "unset" in given and "name" in given:
            raise UsageError("a default is set or unset, not both")
        one = settable(given.get("unset", given.get("name")), "ltx config")
        kept.pop(one.name, None)
        if "value" in given:
            text = given["value"]
            kept[one.name] = one.read(
                {"true": True, "false": False}.get(text) if one.is_switch else from_tokens(one, [text])
            )
        save(kept)
    elif "name" in given:
        print(kept.get(settable(given["name"], "ltx config").name, "not set"))
        return
    print(f"{config_path()}{'' if kept else ': nothing is set'}")
    for name, value in kept.items():
        print(f"  {name}: {value}")


def save(kept: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all."""
    import yaml

    from ltx_media.files import replacing

    with replacing(config_path()) as temporary:
        temporary.write_text(yaml.safe_dump(plain(kept), allow_unicode=True, sort_keys=False), encoding="utf-8")


CONFIG = Command("config", ABOUT, {"name": NAME, "value": VALUE, "unset": UNSET}, configure, "name value")
