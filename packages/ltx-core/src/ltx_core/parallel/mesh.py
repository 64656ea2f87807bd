"""The devices of a run: how many share the guidance passes of a step, the tokens of each pass, the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

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
from ltx_core.parallel.passes import PassParallel
from ltx_core.parallel.ranks import Ranks, shares
from ltx_core.parallel.sequence import SequenceParallel, SharedTokens, share_tokens
from ltx_core.parallel.strips import StripDecoder, Strips, can_strip
from ltx_core.sampling.denoisers import Transformer

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
