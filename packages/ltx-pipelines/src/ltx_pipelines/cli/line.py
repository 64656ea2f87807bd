"""From a table of options to a typer command, and from a line to values.

Options may take several values (``--image FILE FRAME STRENGTH``), some of them optionally, which typer does not know.
`join_values` packs them into one before typer sees the line; `split_values` unpacks them again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ltx_pipelines.cli.options import ALONE, BY_FLAG, OPTIONS, SEPARATOR, Opt


class PackingCommand(TyperCommand):
    """A command whose options may take several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = [dashed(token) for token in args]
        refuse_foreign(args, {flag for param in self.params for flag in (*param.opts, *param.secondary_opts)}, ctx)
        return super().parse_args(ctx, join_values(args))


def dashed(token: str) -> str:
    """``--num_frames`` as ``--num-frames``; values are left alone."""
    flag, equals, value = token.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else token


def refuse_foreign(args: Sequence[str], known: set[str], ctx: Any) -> None:
    """Say of an option that other commands know that it would do nothing here."""
    for token in args:
        flag = token.partition("=")[0]
        if token == "--":
            return
        if flag in BY_FLAG and flag not in known:
            raise typer.BadParameter(f"{flag} has no effect in `{ctx.command_path}`, expected it left out", ctx=ctx)


def join_values(args: Sequence[str]) -> list[str]:
    """The line with the values of each packed option joined into one token.

    Values end at the next option; a negative number is a value. Of optional values as many are taken as there are.
    """
    line, rest = [], list(args)
    while rest:
        token = rest.pop(0)
        line.append(token)
        option = BY_FLAG.get(token)
        if token == "--":
            return line + rest
        if option is not None and option.packed:
            values: list[str] = []
            while rest and len(values) < option.values[1] and is_value(rest[0]):
                values.append(rest.pop(0))
            line.append(SEPARATOR.join(values))
    return line


def is_value(token: str) -> bool:
    """Whether a token cannot be an option: it starts with no dash or is a negative number."""
    if not token.startswith("-"):
        return True
    try:
        float(token)
    except ValueError:
        return False
    return True


def split_values(option: Opt, packed: str, kinds: Sequence[Callable[[str], Any]]) -> list[Any]:
    """The values of a packed option, converted; the last of ``kinds`` serves all that follow it."""
    values = packed.split(SEPARATOR) if packed else []
    least, most = option.values
    if not least <= len(values) <= most:
        raise typer.BadParameter(f"it has {len(values)} values, expected {option.metavar}", param_hint=option.name)
    converted = []
    for index, value in enumerate(values):
        kind = kinds[min(index, len(kinds) - 1)]
        try:
            converted.append(kind(value))
        except ValueError:
            message = f"{value!r} is not {'an integer' if kind is int else 'a number'}, expected {option.metavar}"
            raise typer.BadParameter(message, param_hint=option.name) from None
    return converted


def with_absolute_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values with every input path absolute, so that a recipe can be followed from any folder."""

    def absolute(packed: str) -> str:
        path, *rest = packed.split(SEPARATOR)
        return SEPARATOR.join([str(Path(path).expanduser().absolute()), *rest])

    made = dict(given)
    for name, value in given.items():
        if name not in OPTIONS or not OPTIONS[name].is_path or name == "output":
            continue
        made[name] = [absolute(one) for one in value] if isinstance(value, list) else absolute(value)
    if "model" in made and Path(made["model"]).expanduser().exists():
        made["model"] = absolute(made["model"])
    return made


def with_options(
    function: Callable[[dict[str, Any]], None],
    names: Iterable[str],
    argument: tuple[str, Opt] | None = None,
    extra: Mapping[str, Opt] | None = None,
) -> Callable[..., None]:
    """A typer command body with these options: ``function`` gets the values that were given, by name.

    ``argument`` stands alone on the line. One that is also among the options may be given either way.
    """
    options = {name: OPTIONS[name] for name in names} | dict(extra or {})
    parameters = [_parameter(name, option) for name, option in options.items()]
    if argument is not None:
        parameters.insert(0, _positional(*argument, optional=argument[0] in options))

    def body(**values: Any) -> None:
        given = {name: value for name, value in values.items() if value not in (None, [])}
        if (alone := given.pop(ALONE, None)) is not None and argument is not None:
            if argument[0] in given:
                raise typer.BadParameter(f"the {argument[0]} is given twice, as {alone!r} and as an option")
            given[argument[0]] = alone
        function(with_absolute_paths(given))

    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return body


def _positional(name: str, option: Opt, optional: bool) -> inspect.Parameter:
    metavar = option.metavar or name.upper()
    info = typer.Argument(help=option.help, metavar=f"[{metavar}]" if optional else metavar, show_default=False)
    default = None if optional else inspect.Parameter.empty
    annotation = Annotated[str | None, info] if optional else Annotated[str, info]
    return inspect.Parameter(ALONE, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(name: str, option: Opt) -> inspect.Parameter:
    info = typer.Option(
        *option.flags,
        help=option.help,
        metavar=option.metavar,
        rich_help_panel=option.panel,
        show_default=option.shown_default or False,
    )
    kind = list[str] if option.repeatable else str if option.packed else option.type
    annotation = Annotated[kind | None, info]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation)
