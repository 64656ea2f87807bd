"""Configuration files: read with changes from the command line, checked, completed for this machine, and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ltx_core.errors import ConfigError
from ltx_core.textfiles import read_yaml
from ltx_trainer.auto import choose, without_auto
from ltx_trainer.config import TrainerConfig
from ltx_trainer.config_schema import describe_problem

MOST_LINES, LONGEST = 20, 300  # problems that are shown; characters of each


class InvalidConfig(ConfigError):
    """A configuration with problems: ``problems`` pairs a dotted location with what is wrong there, a line each."""

    def __init__(self, where: str, problems: tuple[tuple[str, str], ...]) -> None:
        self.problems = problems
        lines = [f"{location}: {message}"[:LONGEST] if location else message for location, message in problems]
        if len(lines) > MOST_LINES:
            lines = [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} problems more"]
        super().__init__(f"{where}: {'; '.join(lines)}")
        self.text = f"{where}: {lines[0]}" if len(lines) == 1 else "\n  ".join((f"{where}:", *lines))

    def __str__(self) -> str:
        return self.text


def parse_config(raw: Mapping[str, Any], where: str = "configuration") -> TrainerConfig:
    """Validate a parsed YAML document; settings that say ``auto`` are chosen for this machine.

    Raises `InvalidConfig`, one line per problem.
    """
    written, wanted = without_auto(raw)
    try:
        config = TrainerConfig.model_validate(written)
    except OSError as error:
        raise ConfigError(f"{where}: {str(error.filename)[:40]}... is a name that no file system keeps") from error
    except ValidationError as error:
        problems = tuple(describe_problem(TrainerConfig, details) for details in error.errors())
        raise InvalidConfig(where, problems) from error
    return choose(config, wanted) if wanted else config


def read_config(path: str | Path, changes: Sequence[str] = ()) -> TrainerConfig:
    """Read and validate the YAML file at ``path`` with ``changes`` such as ``optimization.steps=40`` made to it.

    Raises `ConfigError` where it cannot be read or is no mapping, `InvalidConfig` for its content.
    """
    raw = read_yaml(path)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, expected sections model, data, ...")
    for change in changes:
        raw = replace_at(raw, *_split_change(change))
    return parse_config(raw, str(path))


def replace_at(raw: Any, keys: Sequence[str], value: Any) -> Any:
    """``raw`` with ``value`` at a path of keys; a number picks an item of a list."""
    key, *rest = keys
    if isinstance(raw, list | tuple) and key.isdigit() and int(key) < len(raw):
        place = int(key)
        return [*raw[:place], replace_at(raw[place], rest, value) if rest else value, *raw[place + 1 :]]
    mapping = raw if isinstance(raw, Mapping) else {}
    return {**mapping, key: replace_at(mapping.get(key), rest, value) if rest else value}


def _split_change(change: str) -> tuple[list[str], Any]:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {change!r}, expected a key and a value such as optimization.steps=40")
    try:
        return key.split("."), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {change!r}: {text!r} is no YAML value") from error


def write_config(config: TrainerConfig, path: Path) -> None:
    """Write ``config`` as YAML that `read_config` reads back to an equal value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), "utf-8")
