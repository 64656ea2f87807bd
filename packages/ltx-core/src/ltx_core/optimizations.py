"""Switches of the optimizations: work left out because its result is known already. None changes a result.

All are on. To compare with the long way round they are switched off: ``with without("shared_prefix"): ...`` in a
program, ``LTX_OPTIMIZATIONS_OFF=shared_prefix,kept_text`` or ``LTX_OPTIMIZATIONS_OFF=all`` for a process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace

from ltx_core.errors import ConfigError


@dataclass(frozen=True)
class Optimizations:
    """Optimizations that are on."""

    shared_prefix: bool = True  # guidance passes share the blocks before they differ
    distinct_modulation: bool = True  # modulation is computed per noise level, not per token
    kept_text: bool = True  # text keys and values are shared by passes, and kept for the run where sigma is no input
    grouped_masks: bool = True  # attention strengths by groups of tokens that share them, not as a dense bias
    streamed_decode: bool = True  # video is decoded in pieces of time


NAMES = tuple(field.name for field in fields(Optimizations))


def parse(names: str) -> Optimizations:
    """The optimizations without the comma-separated ones named; ``all`` names every one."""
    off = NAMES if names.strip() == "all" else tuple(name.strip() for name in names.split(",") if name.strip())
    return _without(Optimizations(), off)


def _without(now: Optimizations, names: tuple[str, ...]) -> Optimizations:
    if unknown := [name for name in names if name not in NAMES]:
        raise ConfigError(f"optimization is {unknown[0]!r}, expected one of {', '.join(NAMES)}")
    return replace(now, **dict.fromkeys(names, False))


_of_process = parse(os.environ.get("LTX_OPTIMIZATIONS_OFF", ""))
_current: ContextVar[Optimizations | None] = ContextVar("optimizations", default=None)


def optimizations() -> Optimizations:
    """The switches in force."""
    return _current.get() or _of_process


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, these optimizations are off; all of them when none is named. ``ConfigError`` for an unknown name."""
    token = _current.set(_without(optimizations(), names or NAMES))
    try:
        yield
    finally:
        _current.reset(token)
