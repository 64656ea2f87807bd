"""From masks as callers have them to additive attention biases that broadcast against ``[B, H, Tq, Tk]``."""

from __future__ import annotations

import torch
from torch import Tensor


def context_bias(mask: Tensor | None, dtype: torch.dtype, penalty: float | None = None) -> Tensor | None:
    """The bias of a text mask.

    A floating-point mask is additive already and only gets the axes it lacks in front of its last two. An integer or
    boolean mask ``[B, S]`` (1 keep, 0 drop) becomes ``[B, 1, 1, S]`` with ``-penalty`` where dropped, the largest
    number of ``dtype`` when None; where everything is dropped the attention is uniform.
    """
    if mask is None:
        return None
    if mask.is_floating_point():
        return with_head_axis(mask).to(dtype)
    dropped = 1 - mask.to(dtype)
    bias = dropped * -(torch.finfo(dtype).max if penalty is None else penalty)
    return bias.reshape(mask.shape[0], 1, -1, mask.shape[-1])


def self_attention_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias ``[B, 1, Tq, Tk]`` of strengths ``[B, Tq, Tk]`` in [0, 1], which multiply the attention weights."""
    if mask is None:
        return None
    limits = torch.finfo(dtype)
    bias = mask.float().clamp(min=limits.tiny).log_().to(dtype)
    return bias.masked_fill_(mask <= 0, limits.min)[:, None]


def with_head_axis(bias: Tensor) -> Tensor:
    """An additive bias with a head axis: ``[Tq, Tk]`` and ``[B, Tq, Tk]`` get it in front of the last two axes."""
    if bias.ndim == 2:
        return bias[None, None]
    return bias[:, None] if bias.ndim == 3 else bias
