"""Which modules of a transformer a name means, told from the names and shapes of its parameters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.config import SENSITIVE


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether a module's dotted name is one of ``targets`` or ends with "." and one of them."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def linears(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Names of the modules that map features by one matrix."""
    return [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2
    ]


def target_linears(shapes: Mapping[str, Sequence[int]], targets: Sequence[str]) -> list[str]:
    """Names of the linears that ``targets`` adapt. Raises `ConfigError` for a target that matches none."""
    return matching(linears(shapes), targets)


def matching(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Those of ``names`` that ``targets`` mean. Raises `ConfigError` for a target that means none."""
    for target in targets:
        if not any(is_target(name, (target,)) for name in names):
            endings = sorted({ending for name in names for ending in _endings(name)})
            close = difflib.get_close_matches(target, endings, n=1, cutoff=0)
            raise ConfigError(f"lora target {target!r} matches no linear of the transformer; nearest: {close[0]!r}")
    return [name for name in names if is_target(name, targets)]


def chosen_parameters(names: Iterable[str], modules: Sequence[str] | None) -> list[str]:
    """Parameters that lie in a module whose name is, or ends with, one of ``modules``; all of them for None."""
    return [name for name in names if modules is None or any(is_target(owner, modules) for owner in _owners(name))]


def sensitive(name: str) -> bool:
    """Whether a parameter keeps its precision when the rest is quantised."""
    return any(part in name for part in SENSITIVE)


def _owners(name: str) -> list[str]:
    """The names of all modules a parameter lies in."""
    parts = name.split(".")[:-1]
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _endings(name: str) -> Iterator[str]:
    """The last one, two, three and four parts of a name, numbers of blocks left out."""
    parts = name.split(".")
    for count in (1, 2, 3, 4):
        ending = parts[-count:]
        if ending and not ending[0].isdigit():
            yield ".".join(ending)
