"""Sections of a checkpoint's config as frozen dataclasses: a field is filled by the key of its name.

What a section leaves out is the field's default. Fields that know a few values only are ``Literal``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ltx_core.errors import ConfigError, check_known


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A JSON object inside another. Raises ``ConfigError`` where there is none."""
    value = config.get(name)
    if not isinstance(value, Mapping):
        raise ConfigError(f"config has no {name!r} section, expected an object with its settings")
    return value


def read_fields(kind: type, given: Mapping[str, Any], prefix: str = "", **keys: str) -> dict[str, Any]:
    """The fields of a dataclass that a section states, lists as tuples.

    A field's key is its name, or what ``keys`` says instead, behind ``prefix``.
    """
    names = {field.name: prefix + keys.get(field.name, field.name) for field in fields(kind)}
    return {name: _as_tuples(given[key]) for name, key in names.items() if key in given}


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def check_choices(config: object, what: str) -> None:
    """Refuse a value that the ``Literal`` of its field does not list. Raises ``ConfigError``."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            check_known(f"{what} {name}", getattr(config, name), get_args(hint))
