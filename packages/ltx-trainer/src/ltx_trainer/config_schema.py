"""Schema of configurations, read off their models: the nearest key to a wrong one, and the schema as Markdown."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ltx_core.errors import nearest, nearest_hint

Model = type[BaseModel]


def describe_problem(root: Model, details: Mapping[str, Any]) -> tuple[str, str]:
    """The dotted location and a readable sentence for one entry of ``ValidationError.errors()``."""
    location: tuple[int | str, ...] = tuple(details["loc"])
    name = ".".join(map(str, location))
    if details["type"] == "extra_forbidden":
        return name, f"unknown key; {advice(root, location)}"
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] in ("union_tag_invalid", "literal_error"):
        return name, _unknown_choice(details)
    if details["type"] in ("missing", "value_error"):
        return name, message
    return name, f"is {_short(details['input'])}: {message}"


def _unknown_choice(details: Mapping[str, Any]) -> str:
    """A line on a name that is none of those expected, and the nearest of them."""
    context = details["ctx"]
    given = str(context.get("tag", details["input"]))
    known = [name.strip("' ") for name in re.split(r",| or ", context.get("expected_tags") or context["expected"])]
    return f"is {_short(given)}, expected {', '.join(known)}{nearest_hint(given, known)}"


def advice(root: Model, location: Sequence[int | str]) -> str:
    """Advice on the unknown key that ``location`` ends with."""
    *parents, key = location
    model = model_at(root, parents)
    known = list(model.model_fields) if model else []
    close = nearest(str(key), known) or next((field for field in known if _initials(field) == str(key)), None)
    if close:
        return f"did you mean {close}?"
    elsewhere = next((path for path, _ in walk(root) if path.rpartition(".")[2] == key), None)
    if elsewhere:
        return f"did you mean {elsewhere}?"
    return f"expected one of {', '.join(known)}"


def model_at(annotation: Any, location: Sequence[int | str]) -> Model | None:
    """The model that lies at ``location`` below ``annotation``; union members are named by their tag."""
    if not location:
        found = [member for member in members(annotation) if _is_model(member)]
        return found[0] if len(found) == 1 else None
    step, rest = location[0], location[1:]
    for member in members(annotation):
        if isinstance(step, int) and get_origin(member) in (tuple, list):
            return model_at(get_args(member)[0], rest)
        if not _is_model(member):
            continue
        if tag_of(member) == step:
            return model_at(member, rest)
        if step in member.model_fields:
            return model_at(member.model_fields[step].annotation, rest)
    return None


def members(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation, unions and ``Annotated`` taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def tag_of(model: Model) -> str | None:
    """The value of ``type`` or ``name`` that selects this model in a union."""
    for key in ("type", "name"):
        field = model.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return str(get_args(field.annotation)[0])
    return None


def walk(model: Model, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of ``model`` and of the sections below it, by dotted path, depth first."""
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        yield here, field
        for inner in nested_models(field.annotation):
            yield from walk(inner, here)


def nested_models(annotation: Any) -> Iterator[Model]:
    """Models an annotation holds, directly or as items of a list."""
    for member in members(annotation):
        if _is_model(member):
            yield member
        elif get_origin(member) in (tuple, list):
            for argument in get_args(member):
                if argument is not Ellipsis:
                    yield from nested_models(argument)


def schema_markdown(root: Model) -> str:
    """The whole schema as Markdown: a table of keys per section, in the order of the file."""
    lines = [f"# {root.__name__}", "", *_table(root)]
    for path, model in sections(root):
        tag = tag_of(model)
        title = f"## {path}" + (f" ({tag})" if tag else "")
        lines += ["", title, "", (model.__doc__ or "").strip(), "", *_table(model)]
    return "\n".join(lines) + "\n"


def sections(model: Model, path: str = "") -> Iterator[tuple[str, Model]]:
    """Sections below ``model`` with their paths, each model once."""
    seen: set[Model] = set()

    def below(model: Model, path: str) -> Iterator[tuple[str, Model]]:
        for name, field in model.model_fields.items():
            here = f"{path}.{name}" if path else name
            for inner in nested_models(field.annotation):
                if inner not in seen:
                    seen.add(inner)
                    yield here, inner
                    yield from below(inner, here)

    yield from below(model, path)


def _table(model: Model) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or _summary(field)).split())
        cells = (name, _type_name(field), _default(field), meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _summary(field: FieldInfo) -> str:
    models = list(nested_models(field.annotation))
    return (models[0].__doc__ or "").strip().partition("\n")[0] if len(models) == 1 else ""


def _type_name(field: FieldInfo) -> str:
    names = " or ".join(dict.fromkeys(_name(member) for member in members(field.annotation)))
    bounds = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(item, key)}" for item in field.metadata for key, sign in bounds.items() if hasattr(item, key)
    ]
    return names + (f" {', '.join(limits)}" if limits else "")


def _name(member: Any) -> str:
    if member is type(None):
        return "null"
    if get_origin(member) is Literal:
        return " or ".join(str(value) for value in get_args(member))
    if get_origin(member) in (tuple, list):
        arguments = [argument for argument in get_args(member) if argument is not Ellipsis]
        inner = list(dict.fromkeys(_name(part) for argument in arguments for part in members(argument)))
        fixed = Ellipsis not in get_args(member) and len(arguments) > 1
        return (
            f"[{', '.join(_name(next(members(a))) for a in arguments)}]" if fixed else f"list of {' or '.join(inner)}"
        )
    if _is_model(member):
        return tag_of(member) or "section"
    return {"str": "text", "bool": "true or false", "float": "number", "int": "whole number", "dict": "mapping"}.get(
        getattr(member, "__name__", None) or str(get_origin(member)), str(member)
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True) if field.default_factory is None else PydanticUndefined
    if default is PydanticUndefined:
        return ""
    return _short(default)


def _short(value: Any) -> str:
    """A value as YAML would write it, cut to a line."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, tuple | list):
        text = f"[{', '.join(_short(item) for item in value)}]"
    else:
        text = str(value) or '""'
    return text if len(text) <= 60 else text[:57] + "..."


def _initials(name: str) -> str:
    return "".join(part[0] for part in name.split("_"))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
