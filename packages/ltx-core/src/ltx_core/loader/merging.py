"""Adapters into checkpoints and out of them: a model with adapters fused in, and the adapter between two models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import TRANSFORMER
from ltx_core.loader.lora import Lora
from ltx_core.loader.weights import ComponentWeights
from ltx_core.loader.writing import Kind, Piece, as_type, plain_type

EXACT_UP_TO = 1024  # rows or columns of a difference that is decomposed exactly


def merged_pieces(checkpoint: Checkpoint, loras: Sequence[Lora]) -> list[Piece]:
    """Every tensor of a checkpoint with adapters fused into its transformer; what they change is plain.

    Raises ``CheckpointError`` for an adapter that does not fit, nothing being read.
    """
    weights = checkpoint.weights("transformer")
    fitted = weights.fit_loras(loras)
    changed = weights.layers_changed_by(fitted)
    pieces, seen = [], set()
    for name, source in ((name, source) for part in checkpoint.parts for name, source in part.tensors.items()):
        module = TRANSFORMER.module_name(name)
        path = (module or "").rpartition(".")[0]
        if module is None or path not in changed:
            pieces.append(Piece.copy_of(name, source))
        elif path not in seen:
            seen.add(path)
            pieces.append(_merge(name.removesuffix(module), path, weights, fitted))
    return pieces


def _merge(prefix: str, path: str, weights: ComponentWeights, loras: Sequence[Lora]) -> Piece:
    """One layer with adapters in it, in the type it has where nothing is quantised."""
    plain = {leaf: source for leaf, source in weights.layers[path].items() if leaf in ("weight", "bias")}
    kinds = {f"{prefix}{path}.{leaf}": Kind(plain_type(source), source.info.shape) for leaf, source in plain.items()}
    return Piece(kinds, partial(_fuse, prefix, path, weights, loras, kinds))


def _fuse(
    prefix: str, path: str, weights: ComponentWeights, loras: Sequence[Lora], kinds: dict[str, Kind]
) -> dict[str, Tensor]:
    tensors = weights.load_layer(path, loras)
    named = {f"{prefix}{path}.{leaf}": tensor for leaf, tensor in tensors.items()}
    return {name: as_type(named[name], kind.stored_as) for name, kind in kinds.items()}


class Extracted(NamedTuple):
    """One layer's part of an adapter, and how much of the difference it holds (1: all)."""

    path: str
    tensors: dict[str, Tensor]
    share: float


def extract(base: Checkpoint, tuned: Checkpoint, rank: int, dtype: torch.dtype = torch.bfloat16) -> Iterator[Extracted]:
    """The adapter of at most ``rank`` that makes ``tuned`` of ``base``, layer by layer, under the official names.

    What is no matrix becomes a difference. Raises ``CheckpointError`` where the two are not of one architecture.
    """
    one, other = base.weights("transformer"), tuned.weights("transformer")
    if (here := one.kinds()) != (there := other.kinds()):
        odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))[0]
        sizes = f"{here.get(odd, 'missing')} and {there.get(odd, 'missing')}"
        raise CheckpointError(f"{base.where} and {tuned.where} are no two of one model: {odd} is {sizes}")
    for path in one.layers:
        found = {leaf: _difference(one, other, path, leaf) for leaf in one.layers[path] if f"{path}.{leaf}" in here}
        kept = {leaf: change for leaf, change in found.items() if change is not None}
        weight = kept.pop("weight", None)
        tensors = {
            f"diffusion_model.{path}.diff_b": change.to(dtype) for leaf, change in kept.items() if leaf == "bias"
        }
        if rest := [leaf for leaf in kept if leaf != "bias"]:
            raise CheckpointError(f"{tuned.where}: {path}.{rest[0]} differs, which no adapter can hold")
        share = 1.0
        if weight is not None and weight.ndim == 2:
            a, b, share = low_rank(weight, rank)
            tensors |= {f"diffusion_model.{path}.lora_{key}.weight": t.to(dtype) for key, t in (("A", a), ("B", b))}
        elif weight is not None:
            tensors[f"diffusion_model.{path}.diff"] = weight.to(dtype)
        if tensors:
            yield Extracted(path, tensors, share)


def _difference(one: ComponentWeights, other: ComponentWeights, path: str, leaf: str) -> Tensor | None:
    """The float32 difference to add to a tensor, None for nothing."""
    before, after = (weights.load_layer(path)[leaf] for weights in (one, other))
    return None if torch.equal(before, after) else after.float() - before.float()


def low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors ``(r, in)`` and ``(out, r)`` of a matrix ``(out, in)``, and the share of its energy they hold."""
    rank = min(rank, *change.shape)
    if max(change.shape) <= EXACT_UP_TO:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        u, s, v = torch.svd_lowrank(change, q=min(rank + 16, *change.shape), niter=4)
        u, s, vh = u[:, :rank], s[:rank], v.t()[:rank]
    root = s.sqrt()
    share = float(s.square().sum() / change.square().sum())
    return root[:, None] * vh, u * root, min(share, 1.0)
