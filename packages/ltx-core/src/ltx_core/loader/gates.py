"""Gates that some diffusion decoders store beside their blocks, multiplied into the layers they scale.

``diff_blocks.{j}.gate_msa`` scales what ``attn.proj`` gives, ``gate_mlp`` what ``mlp.w_down`` gives, ``gate_ctx`` what
``context_proj`` gives; ``[C]`` each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltx_core.loader.layouts import Source

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = "diff_blocks."
LAYERS = {"gate_msa": "attn.proj", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}


@dataclass(frozen=True)
class GatedSource(Source):
    """A weight ``[C, ...]`` or bias ``[C]`` whose rows are scaled by another tensor, in float32."""

    gate: Source

    def read(self) -> Tensor:
        tensor, gate = super().read(), self.gate.read()
        return (tensor.float() * gate.float().view(-1, *[1] * (tensor.ndim - 1))).to(tensor.dtype)


def fold_gates(sources: Mapping[str, Source]) -> dict[str, Source]:
    """The tensors of a component by module name, gates multiplied into their layers and left out themselves."""
    folded = dict(sources)
    for name, gate in sources.items():
        block, _, leaf = name.rpartition(".")
        if name.startswith(BLOCKS) and leaf in LAYERS:
            del folded[name]
            for part in ("weight", "bias"):
                scaled = f"{block}.{LAYERS[leaf]}.{part}"
                if scaled in folded:
                    folded[scaled] = GatedSource(folded[scaled].file, folded[scaled].key, gate)
    return folded
