"""The processes of a training run: which of them share the tokens of an example and which hold the weights together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.model import LTXModel
from ltx_core.parallel.mesh import read_mesh
from ltx_core.parallel.ranks import Ranks
from ltx_core.parallel.sequence import SequenceParallel, SharedTokens, share_tokens

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


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
