"""`ltx reference`: every option of every command, as the table of the documentation or as JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ltx_pipelines.cli.command import AS_JSON, Command
from ltx_pipelines.cli.fields import every_option, options_for
from ltx_pipelines.pipeline import pipelines, request_schema
from ltx_pipelines.planning.schema import Option, type_name

INTRODUCTION = """# Configuration reference

Every field of a request: the keyword argument in Python and the key of a batch line (`name`), its option on a line, its
type, unit, range and default, and which pipelines take it. `all` is every pipeline. This page is written by
`ltx reference > docs/configuration-reference.md`; a test compares the two.
"""
HEAD = "| name | option | type | unit, range, default | what | pipelines |\n|---|---|---|---|---|---|"


def show(given: dict[str, Any]) -> None:
    """Print the page, or the schemas by pipeline."""
    if given.get("json"):
        print(json.dumps({name: request_schema(name) for name in pipelines()}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(page()))


def page() -> Iterator[str]:
    """The lines of the page."""
    yield INTRODUCTION
    taken = {name: options_for(kind) for name, kind in pipelines().items()}
    options = every_option()
    for group in dict.fromkeys(one.group for one in options.values()):
        yield f"## {group}\n\n{HEAD}"
        for name, one in options.items():
            if one.group == group:
                takers = [command for command, fields in taken.items() if name in fields]
                yield row(one, takers, {command: taken[command][name] for command in takers})
        yield ""


def row(one: Option, takers: list[str], own: Mapping[str, Option]) -> str:
    """A field in the table; defaults that differ between pipelines are listed with them."""
    defaults: dict[str, list[str]] = {}
    for command, option in own.items():
        defaults.setdefault(option.default_text, []).append(command)
    several = [f"{text} ({', '.join(names)})" for text, names in defaults.items() if text]
    default = "default " + (", ".join(several) if len(defaults) > 1 else next(iter(defaults))) if any(defaults) else ""
    facts = "; ".join(filter(None, (one.limits, default)))
    everywhere = "all" if len(takers) == len(pipelines()) else ", ".join(takers)
    spelled = "" if one.hidden else f"`{', '.join(one.spellings)}{' ' + one.value if one.value else ''}`"
    cells = (f"`{one.name}`", spelled, f"`{type_name(one.hint)}`", facts, one.help, everywhere)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


ABOUT = "Every option of every command as a table, or as JSON schema by pipeline."
REFERENCE = Command("reference", ABOUT, {"json": AS_JSON}, show)
