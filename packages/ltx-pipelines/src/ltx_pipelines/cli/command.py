"""A command from a table of options: what a line means, and the help that shows them.

Values of an option end at the next option, so that one option can take several, some of them optional:
``--image FILE [FRAME [STRENGTH]]``. Names are spelled with dashes or underscores.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from ltx_core.errors import nearest_hint
from ltx_pipelines.planning.schema import Option, UsageError, with_absolute_files

HELP, ALL = ("--help", "-h"), "--help-all"
MANY_OPTIONS = 30  # from so many on, help is short
NAME_WIDTH = 34  # columns of option names in help; longer names have a line of their own
KINDS: dict[Any, tuple[Callable[[str], Any], str]] = {int: (int, "an integer"), float: (float, "a number")}

AS_JSON = Option("json", bool, False, "As JSON.")


@dataclass(frozen=True)
class Command:
    """A command. ``run`` gets the values that were given, by name; ``alone`` names those that need no option, in order.

    ``others`` gives the options of other commands, which are refused as having no effect rather than as unknown.
    """

    name: str
    help: str
    options: Mapping[str, Option]
    run: Callable[[dict[str, Any]], None]
    alone: str = ""
    others: Callable[[], Mapping[str, Option]] = field(default=dict)
    common: Collection[str] = ()  # options that short help shows; all where none are named
    on_devices: bool = False  # run by a process for each of its devices

    def __call__(self, arguments: Sequence[str]) -> None:
        """Run a line. Raises `UsageError` for a wrong one."""
        if any(argument in (*HELP, ALL) for argument in arguments):
            print(self.help_text(whole=ALL in arguments), end="")
            return
        given = self.parse(arguments)
        if self.on_devices and given.get("devices", 1) > 1:
            on_each_device(given["devices"], [self.name, *arguments])
        self.run(with_absolute_files(self.options, given))

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The values that are given, each of its type and in its range."""
        known = {flag: one for one in self.options.values() for flag in one.spellings}
        given: dict[str, Any] = {}
        alone, tokens = [], [with_dashes(token) for token in arguments]
        while tokens:
            token = tokens.pop(0)
            if token == "--":
                alone += tokens
                break
            if is_value(token):
                alone.append(token)
                continue
            flag, value, rest = split_token(token, known)
            if flag not in known:
                raise self._unknown(flag, known)
            one = known[flag]
            values = [] if value is None else [value]
            while value is None and tokens and len(values) < one.count[1] and is_value(tokens[0]):
                values.append(tokens.pop(0))
            tokens = [*rest, *tokens]
            read: Any = not one.turns_off(flag) if one.is_switch else one.read(from_tokens(one, values))
            given[one.name] = given.get(one.name, ()) + read if one.repeatable else read
        return self._with_alone(given, alone)

    def _with_alone(self, given: dict[str, Any], alone: Sequence[Any]) -> dict[str, Any]:
        names = self.alone.split()
        if names and self.options[names[-1]].several and len(alone) >= len(names):
            alone = [*alone[: len(names) - 1], alone[len(names) - 1 :]]
        if len(alone) > len(names):
            hint = "; put it in quotes" if self.alone == "prompt" else ""
            raise UsageError(f"{alone[len(names)]!r} is no option of `ltx {self.name}`{hint}")
        for name, value in zip(names, alone, strict=False):
            if name in given:
                raise UsageError(f"the {name} is given twice, as {value!r} and as an option")
            given[name] = self.options[name].read(value)
        return given

    def _unknown(self, flag: str, known: Mapping[str, Option]) -> UsageError:
        if any(flag in one.spellings for one in self.others().values()):
            return UsageError(f"{flag} has no effect in `ltx {self.name}`, expected it left out")
        hint = nearest_hint(flag, known) or f", see `ltx {self.name} --help`"
        return UsageError(f"{flag} is no option of `ltx {self.name}`{hint}")

    def help_text(self, whole: bool = True) -> str:
        """Usage, what the command does, and its options under their groups: all, or the common ones of many."""
        width = max(min(shutil.get_terminal_size().columns, 110), 60)
        every = [one for one in self.options.values() if not one.hidden]
        short = not whole and self.common and len(every) > MANY_OPTIONS
        shown = [one for one in every if one.name in self.common] if short else every
        alone = "".join(f" [{name.upper()}]" for name in self.alone.split())
        text = textwrap.dedent(self.help).strip()
        lines = [f"Usage: ltx {self.name} [OPTIONS]{alone}", ""]
        for paragraph in text.split("\n\n"):
            lines += [*textwrap.wrap(paragraph, width, break_long_words=False), ""]
        for group in dict.fromkeys(one.group for one in shown):
            lines += [group or "Options", *(row for one in shown if one.group == group for row in rows(one, width)), ""]
        if short:
            lines += [f"`ltx {self.name} {ALL}` shows all {len(every)} options.", ""]
        return "\n".join(lines)


def rows(one: Option, width: int) -> list[str]:
    """An option in help: its names and values, then what it does."""
    flags = sorted(one.spellings, key=lambda flag: flag.startswith("--"))
    name = f"  {', '.join(flags)} {one.value}".rstrip()
    facts = f" [{one.facts}]" if one.facts else ""
    text = textwrap.wrap(one.help + facts, width - NAME_WIDTH, break_long_words=False)
    if len(name) > NAME_WIDTH - 2:
        return [name, *(" " * NAME_WIDTH + row for row in text)]
    return [name.ljust(NAME_WIDTH) + text[0], *(" " * NAME_WIDTH + row for row in text[1:])]


def with_dashes(token: str) -> str:
    """``--num_frames`` as ``--num-frames``; values are left alone."""
    flag, equals, value = token.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else token


def split_token(token: str, known: Mapping[str, Option]) -> tuple[str, str | None, list[str]]:
    """The option of a token, the value joined to it, and further short options: ``--seed=3``, ``-s3``, ``-qk``."""
    if token.startswith("--"):
        flag, equals, value = token.partition("=")
        return flag, value if equals else None, []
    flag, more = token[:2], token[2:]
    if not more or flag not in known:
        return token, None, []
    return (flag, None, [f"-{more}"]) if known[flag].is_switch else (flag, more.removeprefix("="), [])


def is_value(token: str) -> bool:
    """Whether a token cannot be an option: it starts with no dash, or is a negative number or a dash alone."""
    if not token.startswith("-") or token == "-":
        return True
    try:
        float(token)
    except ValueError:
        return False
    return True


def from_tokens(one: Option, tokens: Sequence[str]) -> Any:
    """The value that the tokens of an option mean."""
    least, most = one.count
    if not least <= len(tokens) <= most:
        raise UsageError(f"{one.flag} has {len(tokens)} values, expected {one.value}")
    if one.by_level and (len(tokens) > 1 or ":" in tokens[0]):
        pairs = [token.partition(":") for token in tokens]
        return {parse_value(one, float, level): parse_value(one, one.element, value) for level, _, value in pairs}
    kinds = [kind for _, kind, _ in one.parts]
    values = [parse_value(one, kinds[min(index, len(kinds) - 1)], token) for index, token in enumerate(tokens)]
    alone = not one.several or (len(values) == 1 and one.kinds[0] is one.element)
    return values[0] if alone and not is_dataclass(one.element) else values


def parse_value(one: Option, kind: Any, token: str) -> Any:
    """One value of a line as its type."""
    convert, words = next((found for key, found in KINDS.items() if kind == key or kind == key | None), (str, ""))
    try:
        return convert(token)
    except ValueError:
        raise UsageError(f"{one.flag}: {token!r} is not {words}, expected {one.value}") from None


def on_each_device(devices: int, line: Sequence[str]) -> None:
    """Run a line in one process for each device and end with its exit code, unless this is one of them."""
    from ltx_core.parallel.launch import is_launched, launch

    if not is_launched():
        raise SystemExit(launch([sys.executable, "-m", "ltx_pipelines", *line], devices))
