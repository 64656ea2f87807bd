"""The devices of a run: how many share the guidance passes of a step, the tokens of each pass, the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.loader.streaming import Shards
from ltx_core.model.video_vae.video_vae import VideoDecoder as ConvolutionalDecoder
from ltx_core.networks import VideoDecoder
from ltx_core.parallel.launch import local_rank, world_size
from ltx_core.parallel.passes import PassParallel
from ltx_core.parallel.ranks import Ranks
from ltx_core.parallel.sequence import SequenceParallel, SharedTokens, share_tokens
from ltx_core.parallel.strips import StripDecoder, Strips, can_strip
from ltx_core.sampling.denoisers import Transformer

NAMES = ("sp", "cfg", "fsdp")


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
        given = read_mesh(text, NAMES)
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


def stage_mesh(asked: str | None, size: int, passes: int) -> MeshShape:
    """How ``size`` devices share a stage with so many passes: as asked, else the usual way."""
    given = {} if asked is None else read_mesh(asked, NAMES)
    return MeshShape.read(asked or "", size) if given.keys() & {"sp", "cfg"} else MeshShape.usual(size, passes)


def check_mesh(asked: str | None, size: int) -> int | None:
    """The devices that hold weights together, where a mesh says so. Raises `ConfigError` for one of another size."""
    if asked is None:
        return None
    MeshShape.read(asked, size)
    spread_over = read_mesh(asked, NAMES).get("fsdp")
    if spread_over is not None and size % spread_over:
        raise ConfigError(f"mesh is {asked!r}, expected fsdp to divide the {size} devices")
    return spread_over


@dataclass
class Devices:
    """All processes of a run. They compute the same noise and texts, and hold the same weights."""

    rank: int
    size: int
    asked: str | None = None  # a mesh for every stage
    groups: dict[MeshShape, tuple[Ranks, Ranks]] = field(default_factory=dict)  # of passes, of tokens
    spread_over: int | None = None  # devices that hold the weights of large networks together; None: not said
    _shards: Shards | None = None

    @classmethod
    def begin(cls, asked: str | None = None, on_cards: bool | None = None) -> Devices | None:
        """Join the processes that the environment speaks of, as torchrun sets it; None where there is one.

        ``asked`` is a mesh as `MeshShape.read` takes it. ``on_cards`` says whether each has a CUDA card of its own,
        None where there are some. Raises `ConfigError` for a mesh of another size and for cards that are not there.
        """
        if (size := world_size()) == 1:
            return None
        spread_over = check_mesh(asked, size)
        on_cards = torch.cuda.is_available() if on_cards is None else on_cards
        if on_cards and (card := local_rank()) >= torch.cuda.device_count():
            raise ConfigError(f"device {card} of this machine is asked for, it has {torch.cuda.device_count()} cards")
        if not dist.is_initialized():
            if on_cards:
                torch.cuda.set_device(local_rank())
            dist.init_process_group("nccl" if on_cards else "gloo")
        return cls(dist.get_rank(), size, asked, spread_over=spread_over)

    def shape(self, passes: int) -> MeshShape:
        """The mesh of a stage with so many guidance passes."""
        return stage_mesh(self.asked, self.size, passes)

    @property
    def shards(self) -> Shards | None:
        """The neighbours that hold weights together; None where each holds its own."""
        if self._shards is None and (count := self.spread_over or 1) > 1:
            ranks = Ranks.of(self._neighbours(count))
            self._shards = Shards(ranks.group, ranks.rank, ranks.size)
        return self._shards

    def agree(self, count: int) -> int:
        """The largest of what all devices say."""
        said = torch.tensor(count, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return int(said)

    def decoder(self, decoder: VideoDecoder, latent: Tensor) -> VideoDecoder:
        """A decoder of which each device computes some rows of ``latent``, where there are enough and it can be."""
        network = getattr(decoder, "network", None)
        if not isinstance(network, ConvolutionalDecoder) or not can_strip(network) or latent.shape[3] < self.size:
            return decoder
        return StripDecoder(network, Strips(self._everyone))

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
        return PassParallel(spread, by_pass, all_compute=self.shards is not None) if shape.cfg > 1 else spread

    @cached_property
    def _everyone(self) -> Ranks:
        return Ranks.of()

    def _neighbours(self, count: int) -> Any:
        """Groups of ``count`` neighbours; the own one."""
        groups = [dist.new_group(list(range(first, first + count))) for first in range(0, self.size, count)]
        return groups[self.rank // count]

    def _groups(self, shape: MeshShape) -> tuple[Ranks, Ranks]:
        """Every process makes every group, in the same order."""
        places = torch.arange(self.size).view(shape.cfg, shape.sp)
        tokens = [dist.new_group(row.tolist()) for row in places]
        passes = [dist.new_group(column.tolist()) for column in places.T]
        found = Ranks.of(passes[self.rank % shape.sp]), Ranks.of(tokens[self.rank // shape.sp])
        return self.groups.setdefault(shape, found)
