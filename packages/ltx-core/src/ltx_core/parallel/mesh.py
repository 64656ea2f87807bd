"""The devices of a run: how many share the guidance passes of a step and how many the tokens of each pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

from ltx_core.errors import ConfigError
from ltx_core.parallel.launch import local_rank, world_size
from ltx_core.parallel.passes import PassParallel
from ltx_core.parallel.ranks import Ranks
from ltx_core.parallel.sequence import SequenceParallel, SharedTokens, share_tokens
from ltx_core.sampling.denoisers import Transformer


def read_mesh(text: str, names: tuple[str, ...]) -> dict[str, int]:
    """The counts of a mesh such as ``sp=2,cfg=2``. Raises `ConfigError` for other names and for no counts."""
    given: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in names or not value.isdigit() or int(value) < 1:
            raise ConfigError(f"mesh is {text!r}, expected such as {','.join(f'{name}=2' for name in names)}")
        given[name] = int(value)
    return given


@dataclass(frozen=True)
class MeshShape:
    """``cfg`` groups of ``sp`` devices: groups share guidance passes, devices of a group the tokens."""

    cfg: int = 1
    sp: int = 1

    @classmethod
    def read(cls, text: str, size: int) -> MeshShape:
        """From ``sp=2,cfg=2``; what is left out follows. Raises `ConfigError` where they do not make ``size``."""
        given = read_mesh(text, ("sp", "cfg"))
        sp = given.get("sp", size // given.get("cfg", 1))
        cfg = given.get("cfg", size // max(sp, 1))
        if sp * cfg != size:
            raise ConfigError(f"mesh is {text!r}, which makes {sp * cfg} devices, expected {size}")
        return cls(cfg, sp)

    @classmethod
    def usual(cls, size: int, passes: int) -> MeshShape:
        """The default mesh: as many groups as passes, since they exchange the least; the rest shares tokens."""
        cfg = next(count for count in range(min(passes, size), 0, -1) if size % count == 0)
        return cls(cfg, size // cfg)


@dataclass
class Devices:
    """All processes of a run. They compute the same noise and texts, and hold the same weights."""

    rank: int
    size: int
    asked: str | None = None  # a mesh for every stage
    groups: dict[MeshShape, tuple[Ranks, Ranks]] = field(default_factory=dict)  # of passes, of tokens

    @classmethod
    def begin(cls, asked: str | None = None, on_cards: bool | None = None) -> Devices | None:
        """Join the processes that the environment speaks of, as torchrun sets it; None where there is one.

        ``asked`` is a mesh as `MeshShape.read` takes it. ``on_cards`` says whether each has a CUDA card of its own,
        None where there are some. Raises `ConfigError` for a mesh of another size and for cards that are not there.
        """
        if (size := world_size()) == 1:
            return None
        if asked is not None:
            MeshShape.read(asked, size)
        on_cards = torch.cuda.is_available() if on_cards is None else on_cards
        if on_cards and (card := local_rank()) >= torch.cuda.device_count():
            raise ConfigError(f"device {card} of this machine is asked for, it has {torch.cuda.device_count()} cards")
        if not dist.is_initialized():
            if on_cards:
                torch.cuda.set_device(local_rank())
            dist.init_process_group("nccl" if on_cards else "gloo")
        return cls(dist.get_rank(), size, asked)

    def shape(self, passes: int) -> MeshShape:
        """The mesh of a stage with so many guidance passes."""
        return MeshShape.usual(self.size, passes) if self.asked is None else MeshShape.read(self.asked, self.size)

    @property
    def helping(self) -> bool:
        """Whether another process decodes and writes what is made."""
        return self.rank > 0

    def spread(self, transformer: nn.Module, passes: int) -> Transformer:
        """The transformer of a stage with so many guidance passes, as one that computes its share."""
        shape = self.shape(passes)
        by_pass, by_token = self.groups.get(shape) or self._groups(shape)
        spread: Transformer = transformer
        share_tokens(transformer, shared := SharedTokens(by_token))
        if shape.sp > 1:
            spread = SequenceParallel(spread, shared)
        return PassParallel(spread, by_pass) if shape.cfg > 1 else spread

    def _groups(self, shape: MeshShape) -> tuple[Ranks, Ranks]:
        """Every process makes every group, in the same order."""
        places = torch.arange(self.size).view(shape.cfg, shape.sp)
        tokens = [dist.new_group(row.tolist()) for row in places]
        passes = [dist.new_group(column.tolist()) for column in places.T]
        found = Ranks.of(passes[self.rank % shape.sp]), Ranks.of(tokens[self.rank // shape.sp])
        return self.groups.setdefault(shape, found)
