"""The protocol of conditioning items, and the one way to append tokens to a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.components.strength import CURVES, Curve
from ltx_core.conditioning.mask_utils import update_attention_mask
from ltx_core.conditioning.tools import LatentTools
from ltx_core.errors import ConditioningError, check_shape
from ltx_core.types import LatentState


class ConditioningItem(Protocol):
    """Changes a patchified state: the clean tokens and mask in place, or tokens appended at the end."""

    def apply_to(self, latent_state: LatentState, latent_tools: Any) -> LatentState: ...


def append_tokens(
    state: LatentState,
    tools: LatentTools[Any],
    tokens: Tensor,
    positions: Tensor,
    strength: float = 1.0,
    release: Curve = "hold",
) -> LatentState:
    """Append content ``[B, M, D]`` at ``positions`` ``[B, axes, M, 2]``, held by ``strength`` (1 = unchanged).

    ``release`` is how the hold falls with sigma. The mask column takes the dtype of ``tokens`` first: with bfloat16
    content, ``1 - strength`` is rounded to bfloat16.
    """
    mask = tokens.new_full((*tokens.shape[:2], 1), 1 - strength)
    content = tokens.to(state.latent)
    keyframes = state.keyframes_mask
    return replace(
        state,
        latent=torch.cat((state.latent, torch.zeros_like(content)), dim=1),
        clean_latent=torch.cat((state.clean_latent, content), dim=1),
        denoise_mask=torch.cat((state.denoise_mask, mask.to(state.denoise_mask)), dim=1),
        positions=torch.cat((state.positions, positions.to(state.positions)), dim=2),
        attention_mask=update_attention_mask(state, None, tools.token_count, tokens.shape[1]),
        keyframes_mask=None if keyframes is None else torch.cat((keyframes, torch.zeros_like(mask).to(keyframes)), 1),
        release=_extend_release(state, tokens.shape[1], release),
    )


def _extend_release(state: LatentState, count: int, release: Curve) -> Tensor | None:
    """The release of every token ``[B, N + count, 1]`` when ``count`` more follow; None where all are held."""
    if state.release is None and release == "hold":
        return None
    before = torch.zeros_like(state.denoise_mask) if state.release is None else state.release
    return torch.cat((before, before.new_full((before.shape[0], count, 1), CURVES.index(release))), 1)


def check_axes(what: str, given: Sequence[int], target: Sequence[int], axes: Sequence[int]) -> None:
    """Refuse a latent whose ``axes`` differ from the target's."""
    expected = [size if axis in axes else "any" for axis, size in enumerate(target)]
    check_shape(what, given, expected, ConditioningError)


def check_strength(strength: float) -> None:
    """Refuse a strength outside [0, 1]."""
    if not 0 <= strength <= 1:
        raise ConditioningError(f"strength is {strength}, expected 0 to 1")
