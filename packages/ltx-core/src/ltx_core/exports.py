"""Names of a package that are imported when they are asked for, so that importing the package costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    ``package`` is its name, ``places`` the module inside it that holds each exported name. The first raises
    ``AttributeError`` for a name that is not exported.
    """

    def find(name: str) -> Any:
        if name in places:
            return getattr(import_module(f"{package}.{places[name]}"), name)
        raise AttributeError(f"module {package} has no attribute {name}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return find, names, [*places]
