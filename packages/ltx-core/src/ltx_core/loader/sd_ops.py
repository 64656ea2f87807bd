"""Key operations: from a tensor's name in a file to its name in a module.

A key map is any function ``str -> str | None``; None means the tensor is not loaded. :class:`SDOps` is one built from
rules, :func:`strip_prefixes` one that only replaces prefixes, which is all the native layout needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

KeyMap = Callable[[str], str | None]


@dataclass(frozen=True)
class SDOps:
    """Which keys pass and how they are renamed; immutable, built by chaining the ``with_`` methods."""

    name: str
    matches: tuple[tuple[str, str, str], ...] = ()  # (prefix, suffix, contains); one of them must hold entirely
    replacements: tuple[tuple[str, str], ...] = ()  # applied in order, each to every occurrence
    allowed: frozenset[str] | None = None  # final names, None = all

    def with_matching(self, prefix: str = "", suffix: str = "", contains: str = "") -> SDOps:
        return replace(self, matches=(*self.matches, (prefix, suffix, contains)))

    def with_replacement(self, old: str, new: str) -> SDOps:
        return replace(self, replacements=(*self.replacements, (old, new)))

    def with_additional_allowed_keys(self, keys: Iterable[str]) -> SDOps:
        return replace(self, allowed=(self.allowed or frozenset()) | frozenset(keys))

    def __call__(self, key: str) -> str | None:
        """The new name, or None where no rule accepts the key or its final name is not allowed."""
        if not any(key.startswith(start) and key.endswith(end) and part in key for start, end, part in self.matches):
            return None
        for old, new in self.replacements:
            key = key.replace(old, new)
        return key if self.allowed is None or key in self.allowed else None


def strip_prefixes(prefixes: Mapping[str, str]) -> KeyMap:
    """Replace the first prefix that fits, once; keys under none of them are not loaded."""

    def rename(key: str) -> str | None:
        for old, new in prefixes.items():
            if key.startswith(old):
                return new + key.removeprefix(old)
        return None

    return rename
