"""Options of a command from dataclasses: what a field means is said once, where it is declared."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

OPTION = "option"


def shown(help: str, *flags: str, **limits: Any) -> dict[str, Any]:
    """Metadata of a dataclass field that commands offer: its help, its spellings where they are not its name."""
    return {OPTION: (help, flags, limits)}


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with an option for every `shown` field of its parameters that are dataclasses.

    ``Annotated[Options, ("fps", "device")]`` offers these fields alone. A field whose default is made when it is needed
    is left out of the value unless it is given.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[Field[Any]]]] = {}
    for one in signature.parameters.values():
        kind, only = _kind(one.annotation)
        if kind is None:
            parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        chosen = [item for item in fields(kind) if OPTION in item.metadata and (only is None or item.name in only)]
        groups[one.name] = kind, chosen
        parameters += _parameters(kind, chosen)

    @functools.wraps(command)
    def call(**values: Any) -> None:
        made = {}
        for name, (kind, chosen) in groups.items():
            given = {item.name: values.pop(item.name) for item in chosen}
            late = {item.name for item in chosen if item.default_factory is not MISSING}
            made[name] = kind(**{key: value for key, value in given.items() if value is not None or key not in late})
        command(**values, **made)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def _kind(annotation: Any) -> tuple[type | None, Sequence[str] | None]:
    """The dataclass of an annotation, and the names it is narrowed to."""
    only = None
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        only = next((note for note in notes if isinstance(note, tuple)), None)
    return (annotation, only) if isinstance(annotation, type) and is_dataclass(annotation) else (None, None)


def _parameters(kind: type, chosen: Sequence[Field[Any]]) -> list[inspect.Parameter]:
    hints, made = get_type_hints(kind), []
    for item in chosen:
        help, flags, limits = item.metadata[OPTION]
        is_late = item.default_factory is not MISSING
        default = None if is_late else inspect.Parameter.empty if item.default is MISSING else item.default
        value = hints[item.name] | None if is_late else hints[item.name]
        annotation: Any = Annotated[value, typer.Option(*flags, help=help, **limits)]
        made.append(
            inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return made
