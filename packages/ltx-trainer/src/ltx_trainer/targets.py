"""Modules of a transformer that a name means, told from the names and shapes of its parameters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.config import SENSITIVE

SHORT_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether a module's dotted name is one of ``targets`` or ends with "." and one of them."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def linears(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Names of the modules that map features by one matrix."""
    return [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2
    ]


@dataclass(frozen=True)
class LoraGroup:
    """Modules of an adapter that differ from the rest. ``targets`` None means those of the whole adapter."""

    targets: tuple[str, ...] | None = None
    modality: str | None = None  # video or audio: the stream a module writes to
    rank: int | None = None
    alpha: float | None = None
    rate: float = 1.0  # times the learning rate of the run


def adapted_linears(
    names: Sequence[str], targets: Sequence[str], groups: Sequence[LoraGroup] = ()
) -> dict[str, LoraGroup | None]:
    """Linears of ``names`` that are adapted, in their order, with the group that each belongs to.

    Raises `ConfigError` for a target that matches none, and for a group that means no module.
    """
    found: dict[str, LoraGroup | None] = dict.fromkeys(matching(names, targets))
    for number, group in reversed(list(enumerate(groups))):  # the first decides
        meant = matching(names, targets if group.targets is None else group.targets)
        meant = [name for name in meant if group.modality in (None, modality_of(name))]
        if not meant:
            raise ConfigError(f"lora.groups.{number} means no module of the transformer's {group.modality} stream")
        found |= dict.fromkeys(meant, group)
    return {name: found[name] for name in names if name in found}


def modality_of(name: str) -> str:
    """The stream that a module of the transformer writes to."""
    parts = name.split(".")
    joining = {"audio_to_video_attn": "video", "video_to_audio_attn": "audio"}
    given = next((joining[part] for part in parts if part in joining), None)
    return given or ("audio" if any("audio" in part for part in parts) else "video")


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


def factorize(size: int, factor: int) -> tuple[int, int]:
    """``size`` as a product whose first part is the largest divisor that ``factor`` allows."""
    first = next(part for part in range(min(factor, size), 0, -1) if size % part == 0)
    return first, size // first


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
