"""A field described once: type, unit, range, default, help and spellings. All else is made from that description.

Fields stand in dataclasses, declared by `option`. From them come the signatures and docstrings of pipelines, the
options of a command and their help, batch lines and YAML, the JSON schema and the tables of the documentation.

Nothing here imports torch. Types: ``int``, ``float``, ``bool``, ``str``, ``File``, ``Literal``, a dataclass (whose
fields are the values of one option), ``tuple[X, ...]`` of these, and unions of them.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache, cached_property, wraps
from inspect import Parameter, Signature, getdoc, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ltx_core.errors import ConfigError, nearest_hint
from ltx_core.fingerprint import exists
from ltx_core.textfiles import path_of

File = Annotated[str, "file"]  # of a file or folder that is read
MANY = 1000  # any number of values
MODEL_VARIABLE = "LTX_MODEL"  # of the environment: the model where none is named
MAYBE_FILES = frozenset({"model", "pipeline_config", "camera"})  # names of files, or something else
KINDS: dict[Any, tuple[str, str, str]] = {  # in words, in JSON schema, on a line
    int: ("an integer", "integer", "N"),
    float: ("a number", "number", "X"),
    bool: ("true or false", "boolean", ""),
    str: ("a text", "string", "TEXT"),
    File: ("a file name", "string", "FILE"),
    NoneType: ("null", "null", ""),
}


class UsageError(ConfigError):
    """Input that contradicts itself or would have no effect, whatever the files are."""


class Misfit(Exception):
    """A value is not of its type; the text says what was expected."""


@dataclass(frozen=True)
class Option:
    """One field. ``flags`` are further spellings on a line; ``--on/--off`` is a switch with a name for both ways."""

    name: str
    hint: Any  # the type as annotated
    default: Any
    help: str
    flags: tuple[str, ...] = ()
    group: str = ""
    unit: str = ""
    least: float | None = None
    most: float | None = None
    positive: bool = False
    shown: str = ""  # the default in words, where it is no one value
    metavar: str = ""
    hidden: bool = False  # from lines: a value for Python alone

    # Types --------------------------------------------------------------------------------------------------------

    @cached_property
    def kinds(self) -> tuple[Any, ...]:
        """The types a value may have, None left out."""
        members = get_args(self.hint) if get_origin(self.hint) in (Union, UnionType) else (self.hint,)
        return tuple(member for member in members if member is not NoneType)

    @cached_property
    def element(self) -> Any:
        """The type of one value: that of the members where there may be several."""
        return get_args(self.kinds[-1])[0] if self.several else self.kinds[-1 if self.by_level else 0]

    @property
    def by_level(self) -> bool:
        """Whether the value may be several, one for each noise level: ``SIGMA:VALUE ...``."""
        return get_origin(self.kinds[0]) is Mapping

    @property
    def several(self) -> bool:
        return get_origin(self.kinds[-1]) in (tuple, Sequence)

    @property
    def repeatable(self) -> bool:
        """Whether the option may stand on a line several times, a value each time."""
        return self.several and is_dataclass(self.element)

    @property
    def is_switch(self) -> bool:
        return self.element is bool

    @cached_property
    def parts(self) -> tuple[tuple[str, Any, bool], ...]:
        """Name, type and whether it must be there of each value the option takes on a line."""
        if not is_dataclass(self.element):
            return (("", self.element, True),)
        return tuple((name, hint, needed) for name, hint, needed in members(self.element) if hint is not bool)

    @property
    def count(self) -> tuple[int, int]:
        """The least and the largest number of values one occurrence takes."""
        if is_dataclass(self.element):
            return sum(needed for _, _, needed in self.parts), len(self.parts)
        if self.is_switch:
            return 0, 0
        if self.several:
            return 0 if self.kinds[0] is not self.element else 1, MANY
        return 1, MANY if self.by_level else 1

    # Spellings and words ------------------------------------------------------------------------------------------

    @cached_property
    def spellings(self) -> tuple[str, ...]:
        """All ways to name it on a line, the main one first."""
        given = [spelling for flag in self.flags for spelling in flag.split("/")]
        named = any(spelling.startswith("--") for spelling in given)
        return tuple(given) if named else ("--" + self.name.replace("_", "-"), *given)

    @property
    def flag(self) -> str:
        """The main spelling, for messages."""
        return next(spelling for spelling in self.spellings if spelling.startswith("--"))

    def turns_off(self, spelling: str) -> bool:
        """Whether a spelling is the second of a switch's two ways."""
        return any(flag.endswith("/" + spelling) for flag in self.flags)

    @cached_property
    def value(self) -> str:
        """The placeholder of its value in help: ``FILE [FRAME [STRENGTH]]``."""
        if self.metavar or self.is_switch:
            return self.metavar
        if not is_dataclass(self.element):
            several = "..." if self.several else "|SIGMA:X..." if self.by_level else ""
            return words(self.element, 2) + several
        names = [("FILE" if name == "path" else name.split("_")[0].upper(), needed) for name, _, needed in self.parts]
        optional = [name for name, needed in names if not needed]
        start = " ".join(name for name, needed in names if needed)
        return (start + "".join(f" [{name}" for name in optional) + "]" * len(optional)).strip()

    @property
    def reach(self) -> str:
        """The range in words; empty where there is none."""
        if self.positive:
            return "positive"
        if self.least is None:
            return "" if self.most is None else f"at most {self.most:g}"
        return f"at least {self.least:g}" if self.most is None else f"{self.least:g} to {self.most:g}"

    @property
    def default_text(self) -> str:
        """The default in words; empty where leaving it out says nothing."""
        if self.shown or self.default in (None, "", (), False):
            return self.shown
        return ("on" if self.default else "off") if self.is_switch else str(plain(self.default))

    @property
    def limits(self) -> str:
        """Unit and range in words."""
        return ", ".join(filter(None, (self.unit, self.reach)))

    @property
    def facts(self) -> str:
        """Unit, range and default in words."""
        return "; ".join(filter(None, (self.limits, f"default {self.default_text}" if self.default_text else "")))

    # Values -------------------------------------------------------------------------------------------------------

    def read(self, value: Any, where: str = "") -> Any:
        """``value`` as its type. Raises `ConfigError` with the name, the value, and what was expected."""
        try:
            fitted = fit(self.hint, value)
        except Misfit as misfit:
            raise ConfigError(f"{where}{self.name} is {value!r}, expected {misfit}") from None
        several = fitted.values() if isinstance(fitted, dict) else fitted
        for number in several if isinstance(fitted, tuple | dict) else (fitted,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                self._check(number, where)
        return fitted

    def _check(self, number: float, where: str) -> None:
        if self.positive and not number > 0:
            raise ConfigError(f"{where}{self.name} is {number}, expected a positive number")
        near = number if self.least is None else max(number, self.least)
        near = near if self.most is None else min(near, self.most)
        if near != number:
            raise ConfigError(f"{where}{self.name} is {number}, expected {self.reach}; nearest valid: {near:g}")

    def json_schema(self) -> dict[str, Any]:
        """The field as JSON schema."""
        kind = json_type(self.hint)
        span = {"minimum": self.least, "maximum": self.most, "exclusiveMinimum": 0 if self.positive else None}
        kind.get("items", kind).update({k: v for k, v in span.items() if v is not None})
        schema = {"description": self.help, **kind, "unit": self.unit, "group": self.group}
        return {k: v for k, v in {**schema, "default": plain(self.default)}.items() if v not in (None, "", [], ())}


def option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A dataclass field that is an `Option`; ``more`` are its other fields."""
    return field(default=default, metadata={"option": {"help": help, "flags": flags, **more}})


def options_of(kind: type) -> dict[str, Option]:
    """The options of a dataclass, by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        one.name: Option(one.name, hints[one.name], one.default, **one.metadata["option"])
        for one in fields(kind)
        if "option" in one.metadata
    }


def members(kind: Any) -> Iterator[tuple[str, Any, bool]]:
    """Name, type and whether it must be given of each field of a dataclass; tags of unions are left out."""
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        if one.init and not (get_origin(hints[one.name]) is Literal and len(get_args(hints[one.name])) == 1):
            yield one.name, hints[one.name], one.default is MISSING and one.default_factory is MISSING


@cache
def hints_of(kind: type) -> Mapping[str, Any]:
    """The type of each of those fields."""
    return {name: hint for name, hint, _ in members(kind)}


# Values ------------------------------------------------------------------------------------------------------------


def fit(hint: Any, value: Any) -> Any:
    """``value`` as ``hint`` wants it: numbers of another type, lists, dictionaries and paths included."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _fit_one_of(get_args(hint), value)
    if origin is Literal:
        return _fit_word(get_args(hint), value)
    if origin in (tuple, Sequence):
        return _fit_several(get_args(hint)[0], value)
    if origin is Mapping:
        return _fit_levels(get_args(hint)[1], value)
    if is_dataclass(hint):
        return _fit_value(hint, value)
    fitting = {int: _integer, float: _number, bool: _truth, str: _text, File: _text, NoneType: _nothing}
    if (fitted := fitting[hint](value)) is None and hint is not NoneType:
        raise Misfit(words(hint))
    return fitted


def _fit_one_of(hints: Sequence[Any], value: Any) -> Any:
    said = []
    for hint in hints:
        try:
            return fit(hint, value)
        except Misfit as misfit:
            alone = is_dataclass(hint) and not isinstance(value, Mapping | Sequence)
            said += [] if hint is NoneType else [words(hint) if alone else str(misfit)]
    raise Misfit(" or ".join(said))


def _fit_word(choices: Sequence[Any], value: Any) -> Any:
    for spelled in (value.replace("-", "_"), value, value.upper()) if isinstance(value, str) else (value,):
        if spelled in choices:
            return spelled
    raise Misfit(f"one of {', '.join(map(str, choices))}{nearest_hint(str(value), map(str, choices))}")


def _fit_several(element: Any, value: Any) -> tuple[Any, ...]:
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if is_dataclass(element):
        alone = not listed or any(isinstance(one, int | float) for one in value[1:])  # (file, frame, strength)
        return tuple(fit(element, one) for one in ((value,) if alone else value))
    with suppress(Misfit):
        if listed:
            return tuple(fit(element, one) for one in value)
    raise Misfit(words(tuple[element, ...]))


def _fit_levels(element: Any, value: Any) -> dict[float, Any]:
    """Values by noise level, whose JSON keys are texts."""
    with suppress(ValueError, TypeError):
        if isinstance(value, Mapping) and value:
            return {float(level): fit(element, one) for level, one in sorted(value.items())}
    raise Misfit(f"{words(element)} for each noise level")


def _fit_value(kind: Any, value: Any) -> Any:
    """A value type from itself, from its fields by name or in order, or from the first of them alone."""
    if isinstance(value, kind):
        return value
    known = hints_of(kind)
    if isinstance(value, Mapping):
        given = dict(value)
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) <= len(known):
        given = dict(zip(known, value, strict=False))
    else:
        given = {next(iter(known)): value}
    if unknown := [name for name in given if name not in known]:
        hint = nearest_hint(unknown[0], known) or f", expected some of {', '.join(known)}"
        raise ConfigError(f"{kind.__name__} has no field {unknown[0]}{hint}")
    try:
        return kind(**{name: fit(known[name], one) for name, one in given.items()})
    except TypeError:
        raise Misfit(f"{kind.__name__} with {', '.join(known)}") from None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool | str):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return int(value) if isinstance(value, float) and value.is_integer() else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool | str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    return value if isinstance(value, str) else None


def _nothing(value: Any) -> None:
    if value is not None:
        raise Misfit("null")


def read_all(
    options: Mapping[str, Option],
    given: Mapping[str, Any],
    who: str,
    others: Mapping[str, Option] | None = None,
    where: str = "",
) -> dict[str, Any]:
    """Every value as its type.

    Raises `ConfigError` for a name nobody knows, with the nearest known one, and `UsageError` for one of ``others``,
    which ``who`` has no use for.
    """
    values = {}
    for name, value in given.items():
        if name in options:
            values[name] = options[name].read(value, where)
        elif others is None or name not in others:
            near = nearest_hint(name, options) or f"; expected one of {', '.join(sorted(options))}"
            raise ConfigError(f"{where}{who} has no argument {name}{near}")
        elif value != others[name].default:
            raise UsageError(f"{where}{name} has no effect in {who}, expected it left out")
    return values


def plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if is_dataclass(value):
        return {name: plain(getattr(value, name)) for name, _, _ in members(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value


# Files -------------------------------------------------------------------------------------------------------------


def with_files(value: Any, change: Callable[[str], str], hint: Any = None) -> Any:
    """``value``, of type ``hint``, with every name of a file in it changed: each `File`, also inside dataclasses."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = hints_of(type(value))
        return replace(value, **{name: with_files(getattr(value, name), change, hints[name]) for name in hints})
    if isinstance(value, Mapping):
        return {key: with_files(one, change, hint) for key, one in value.items()}
    if type(value) is tuple:
        return tuple(with_files(one, change, hint) for one in value)
    kinds = (hint, *get_args(hint))
    word = any(get_origin(kind) is Literal and value in get_args(kind) for kind in kinds)
    return change(value) if isinstance(value, str) and File in kinds and not word else value


def files_in(value: Any, hint: Any = None) -> list[str]:
    """Every name of a file in a value, once."""
    found: dict[str, str] = {}
    with_files(value, lambda path: found.setdefault(path, path), hint)
    return list(found)


def absolute(path: str) -> str:
    """A path that can be followed from any folder."""
    return str(path_of(path).absolute())


def with_absolute_files(options: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options with every path that is read absolute."""
    made = {
        name: with_files(value, absolute, options[name].hint) if name in options else value
        for name, value in given.items()
    }
    there = {name for name in MAYBE_FILES & made.keys() if exists(path_of(made[name]))}
    return made | {name: absolute(made[name]) for name in there}


# Words -------------------------------------------------------------------------------------------------------------


def words(hint: Any, form: int = 0) -> str:
    """A type in words; ``form`` 2 is what stands for a value on a line."""
    origin = get_origin(hint)
    if hint in KINDS:
        return KINDS[hint][form]
    if origin in (Union, UnionType):
        return words(next(one for one in get_args(hint) if one is not NoneType), form)
    if origin is Literal:
        return "|".join(map(str, get_args(hint))) if form else f"one of {', '.join(map(str, get_args(hint)))}"
    if origin in (tuple, Sequence):
        return f"a list of {words(get_args(hint)[0]).partition(' ')[2]}s"
    if origin is Mapping:
        return f"{words(get_args(hint)[1])} for each noise level"
    return hint.__name__


def type_name(hint: Any) -> str:
    """A type as Python writes it, briefly."""
    if hint is File:
        return "str"
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(type_name(one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {type_name(get_args(hint)[0])}"
    if get_origin(hint) is Mapping:
        return f"{{sigma: {type_name(get_args(hint)[1])}}}"
    if get_origin(hint) is Literal:
        return " | ".join(repr(one) for one in get_args(hint))
    return "None" if hint is NoneType else getattr(hint, "__name__", str(hint))


def json_type(hint: Any) -> dict[str, Any]:
    """A type as JSON schema."""
    origin = get_origin(hint)
    if hint in KINDS:
        return {"type": KINDS[hint][1]} | ({"format": "path"} if hint is File else {})
    if origin in (Union, UnionType):
        kinds = [json_type(one) for one in get_args(hint) if one is not NoneType]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin in (tuple, Sequence):
        return {"type": "array", "items": json_type(get_args(hint)[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": json_type(get_args(hint)[1])}
    parts = {name: json_type(one) for name, one, _ in members(hint)}
    needed = [name for name, _, must in members(hint) if must]
    return {"type": "object", "properties": parts, "required": needed, "additionalProperties": False}


def document(method: Callable[..., Any], options: Mapping[str, Option], owner: str) -> Callable[..., Any]:
    """A method of a class that takes ``options`` by name, each in its signature and docstring."""

    own = [one for one in signature(method).parameters.values() if one.kind is not one.VAR_KEYWORD]
    unnamed = [one.name for one in own if one.kind is one.POSITIONAL_OR_KEYWORD][1:]

    @wraps(method)
    def call(self: Any, *args: Any, **given: Any) -> Any:
        if len(args) > len(unnamed):
            raise UsageError(f"{len(args)} values have no name, expected only {', '.join(unnamed)} without one")
        for name in unnamed[: len(args)]:
            if name in given:
                raise UsageError(f"the {name} is given twice, in front and by name")
        return method(self, *args, **given)

    more = [Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default) for one in options.values()]
    names = {one.name for one in own}
    call.__signature__ = Signature([*own, *(one for one in more if one.name not in names)])  # type: ignore[attr-defined]
    call.__doc__ = f"{getdoc(method)}\n\nArguments:\n{describe(options)}\n"
    call.__qualname__ = f"{owner}.{method.__name__}"
    return call


def describe(options: Mapping[str, Option]) -> str:
    """The arguments as a docstring has them: name, type, unit, range, default, help."""
    lines = []
    for one in options.values():
        facts = f" ({one.facts})" if one.facts else ""
        lines.append(f"    {one.name}: {type_name(one.hint)}{facts}\n        {one.help}")
    return "\n".join(lines)
