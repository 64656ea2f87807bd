"""The error family. Everything a caller can do wrong ends in one of these, as one readable line."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LONGEST = 2000  # characters of a message


class LtxError(Exception):
    """Base of all errors raised on purpose. The message names the thing, its value and what was expected.

    It is one line that can be printed, whatever the files it quotes hold.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split("\n")).encode("utf-8", "backslashreplace").decode()
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 400]} ... {line[-380:]}")


class CheckpointError(LtxError, ValueError):
    """A weights file is missing, damaged, foreign or does not fit the network it should fill."""


class ConfigError(LtxError, ValueError):
    """A configuration is incomplete, contradictory or outside what the networks support."""


class ConditioningError(LtxError, ValueError):
    """A conditioning item does not fit the latent state it is applied to."""


class MediaError(LtxError, ValueError):
    """An image, video or audio file cannot be read or written."""


class NonFiniteError(LtxError, ArithmeticError):
    """A computation left the range of its numbers: what it made is NaN or infinity."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is most likely a slip of; None when none is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """The end of a message: "; nearest valid: ..." or nothing."""
    near = nearest(name, known)
    return "" if near is None else f"; nearest valid: {near}"


def check_least(name: str, value: float, least: int, error: type[LtxError] = ConfigError) -> None:
    """Raise ``error`` for a number below ``least``."""
    if value < least:
        raise error(f"{name} is {value}, expected at least {least}")


def check_known(name: str, value: object, known: Collection[Any], error: type[LtxError] = ConfigError) -> None:
    """Raise ``error`` for a value that is none of ``known``, naming the nearest."""
    if value not in known:
        choices = [str(one) for one in known]
        hint = nearest_hint(str(value), choices)
        raise error(f"{name} is {value!r:.60}, expected one of {', '.join(choices)}{hint}")


def check_shape(
    what: str, given: Sequence[int], expected: Sequence[int | str], error: type[LtxError] = ConfigError
) -> None:
    """Raise ``error`` for a tensor's shape whose sizes are not those of ``expected``, where words stand for any."""
    fits = len(given) == len(expected)
    if not fits or any(isinstance(e, int) and g != e for g, e in zip(given, expected, strict=True)):
        raise error(f"{what} has shape {list(given)}, expected [{', '.join(map(str, expected))}]")


@contextmanager
def as_checkpoint_error(what: str) -> Iterator[None]:
    """Turn whatever reading a file raises into a ``CheckpointError`` about ``what``."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {error}") from error
