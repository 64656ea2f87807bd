"""The devices of a run: how many share the guidance passes of a step, the tokens of each pass, the weights.

The same on paper, where the first of them counts what it would compute, hold and send with no other there; and the
processes of a training run, which share the tokens of an example and hold weights together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.loader.streaming import Shards
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.model.video_vae.video_vae import VideoDecoder as ConvolutionalDecoder
from ltx_core.networks import VideoDecoder
from ltx_core.parallel.launch import local_rank, local_size, world_size
from ltx_core.parallel.ranks import Ranks, shares
from ltx_core.parallel.sequence import PassParallel, SequenceParallel, SharedTokens, share_tokens
from ltx_core.parallel.strips import StripDecoder, Strips, can_strip
from ltx_core.sampling.denoisers import Transformer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


NAMES = ("sp", "cfg", "fsdp")


def read_mesh(text: str, names: tuple[str, ...]) -> dict[str, int]:
    """The counts of a mesh such as ``sp=2,cfg=2``. Raises `ConfigError` for other names, one twice and no counts."""
    given: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in names or name in given or not value.isdigit() or int(value) < 1:
            raise ConfigError(f"mesh is {text!r}, expected such as {','.join(f'{name}=2' for name in names)}")
        given[name] = int(value)
    return given


@dataclass(frozen=True)
class MeshShape:
    """``cfg`` groups of ``sp`` devices: groups share guidance passes, devices of a group the tokens."""

    cfg: int = 1
    sp: int = 1

    def __str__(self) -> str:
        return f"cfg={self.cfg},sp={self.sp}"

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
    def usual(cls, size: int, passes: int, most: int, heads: int) -> MeshShape:
        """Up to ``most`` devices share tokens, then as many as there are passes share those, the rest tokens again.

        Passes that begin alike are computed once as far as they agree, which devices that share passes forgo, so tokens
        are shared first where links are fast (``benchmarks/scale.py``). No more share tokens than there are ``heads``,
        even where some are left with nothing to do.
        """
        neighbours = max(count for count in range(1, min(most, size) + 1) if size % count == 0)
        left = size // neighbours
        cfg = max(count for count in range(1, min(passes, left) + 1) if left % count == 0)
        fitting = (count for count in range(cfg, size + 1) if size % count == 0 and size // count <= heads)
        cfg = next(fitting)
        return cls(cfg, size // cfg)


def stage_mesh(asked: str | None, size: int, passes: int, heads: int) -> MeshShape:
    """The mesh of ``size`` devices for a stage with so many passes: as asked, else the usual one."""
    given = {} if asked is None else read_mesh(asked, NAMES)
    if asked is not None and given.keys() & {"sp", "cfg"}:
        return MeshShape.read(asked, size)
    return MeshShape.usual(size, passes, min(local_size(), heads), heads)


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
        """Join the processes that the environment speaks of, as torchrun sets it; None where there is only one.

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

    def shape(self, config: TransformerConfig, passes: int) -> MeshShape:
        """The mesh of a stage with so many guidance passes; without a picture there are no tokens to share."""
        return stage_mesh(self.asked, self.size, passes, config.video.heads if config.video is not None else 1)

    @property
    def shards(self) -> Shards | None:
        """The neighbours that hold weights together; None where each holds its own."""
        if self._shards is None and (count := self.spread_over or 1) > 1:
            ranks = Ranks.of_neighbours(count)
            self._shards = Shards(ranks.group, ranks.rank, ranks.size)
        return self._shards

    @property
    def sent(self) -> int:
        """Bytes this device has sent so far for steps."""
        shared = sum(ranks.sent for pair in self.groups.values() for ranks in pair)
        return shared + (self._shards.sent if self._shards is not None else 0)

    def agree(self, count: int) -> int:
        """The largest of what all devices say; on paper what this one does."""
        if not dist.is_initialized():
            return count
        said = torch.tensor(count, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return int(said)

    def decoder(self, decoder: VideoDecoder, latent: Tensor, most: int | None = None) -> VideoDecoder:
        """A decoder of which each device computes some rows of ``latent``, where that can be, else all of them."""
        network = getattr(decoder, "network", None)
        if isinstance(network, ConvolutionalDecoder) and self.together(network, latent, most):
            return StripDecoder(network, Strips(self._everyone))
        return decoder

    def together(self, network: ConvolutionalDecoder, latent: Tensor, most: int | None = None) -> bool:
        """Whether each device decodes some rows: there are enough, and no more than ``most`` cells on each."""
        cells = shares(latent.shape[3], self.size)[0] * latent.shape[4]
        return can_strip(network) and latent.shape[3] >= self.size and cells <= (most or cells)

    @property
    def helping(self) -> bool:
        """Whether another process decodes and writes what is made."""
        return self.rank > 0

    def spread(self, transformer: LTXModel | X0Model, passes: int) -> Transformer:
        """The transformer of a stage with so many guidance passes, as one that computes its share."""
        shape = self.shape(transformer.config, passes)
        by_pass, by_token = self.groups.get(shape) or self._groups(shape)
        spread: Transformer = transformer
        share_tokens(transformer, shared := SharedTokens(by_token))
        if shape.sp > 1:
            spread = SequenceParallel(spread, shared)
        return PassParallel(spread, by_pass, all_compute=(self.spread_over or 1) > 1) if shape.cfg > 1 else spread

    @cached_property
    def _everyone(self) -> Ranks:
        return Ranks.of()

    def _groups(self, shape: MeshShape) -> tuple[Ranks, Ranks]:
        """Every process makes every group, in the same order."""
        places = torch.arange(self.size).view(shape.cfg, shape.sp)
        tokens = [dist.new_group(row.tolist()) for row in places]
        passes = [dist.new_group(column.tolist()) for column in places.T]
        found = Ranks.of(passes[self.rank % shape.sp]), Ranks.of(tokens[self.rank // shape.sp])
        return self.groups.setdefault(shape, found)


# On paper -------------------------------------------------------------------------------------------------------------


@dataclass
class PaperRanks(Ranks):
    """A group that counts what is sent; what is received has shapes and no values."""

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        self.sent += self.leaving(parts)
        return [parts[0].new_empty(shape) for shape in shapes]

    def gather(self, share: Tensor, counts: Sequence[int], dim: int) -> Tensor:
        self.sent += self.leaving_all(share, counts, dim)
        return share.new_empty(*share.shape[:dim], sum(counts), *share.shape[dim + 1 :])


@dataclass
class PaperDevices(Devices):
    """The first of some devices. It has the largest shares there are."""

    @classmethod
    def of(cls, devices: Devices) -> PaperDevices:
        """The first of devices which may not be there yet."""
        return cls(0, devices.size, devices.asked, spread_over=devices.spread_over)

    def _groups(self, shape: MeshShape) -> tuple[Ranks, Ranks]:
        return self.groups.setdefault(shape, (PaperRanks(None, 0, shape.cfg), PaperRanks(None, 0, shape.sp)))


# In training ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingMesh:
    """``sp`` neighbours share tokens, ``fsdp`` neighbours weights, gradients and moments; two cuts, each for itself.

    What shares tokens sees the same examples, so that ``size // sp`` examples are computed at once; weights are whole
    ``size // fsdp`` times.
    """

    rank: int = 0
    size: int = 1
    sp: int = 1
    fsdp: int = 1

    @classmethod
    def read(cls, text: str | None, rank: int, size: int) -> TrainingMesh:
        """From ``fsdp=4,sp=2``. Raises `ConfigError` for counts that do not divide ``size``."""
        given = {} if text is None else read_mesh(text, ("fsdp", "sp"))
        for name, count in given.items():
            if size % count:
                raise ConfigError(f"mesh is {text!r} in a run of {size} processes, expected {name} to divide them")
        return cls(rank, size, **given)

    @property
    def data_rank(self) -> int:
        """Number of this process's share of the examples that are computed at once."""
        return self.rank // self.sp

    @property
    def data_size(self) -> int:
        """Number of processes, or groups of them, that see different examples."""
        return self.size // self.sp

    def share_tokens(self, transformer: LTXModel) -> None:
        """Let the transformer, given all tokens and asked for all, compute this process's; every process calls this."""
        if self.sp == 1:
            return
        shared = SharedTokens(Ranks.of_neighbours(self.sp))
        share_tokens(transformer, shared)
        transformer.forward = SequenceParallel(transformer.forward, shared)  # type: ignore[assignment, method-assign]

    def device_mesh(self, device: str) -> DeviceMesh:
        """The processes as FSDP takes them: those that hold parts, and copies of that where there are some (HSDP)."""
        from torch.distributed.device_mesh import init_device_mesh

        if self.fsdp == self.size:
            return init_device_mesh(device, (self.size,))
        return init_device_mesh(device, (self.size // self.fsdp, self.fsdp), mesh_dim_names=("replicate", "shard"))
