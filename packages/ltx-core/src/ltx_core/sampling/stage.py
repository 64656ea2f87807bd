"""The two ends of a stage: its streams are conditioned and noised, and cut out of their tokens again.

::

    latent, items --begin_streams--> states --denoise--> states --finish_streams--> latents

Generation and the validation of a training run make their stages with these and the loop between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.conditioning.item import ConditioningItem
from ltx_core.conditioning.tools import LatentTools
from ltx_core.sampling.modality import States
from ltx_core.types import LatentState


class Noiser(Protocol):
    """Mixes noise into a conditioned state by a share in [0, 1]: `GaussianNoiser`, or one that repeats a recording."""

    def __call__(self, latent_state: LatentState, noise_scale: float = 1.0) -> LatentState: ...


@dataclass(frozen=True)
class StreamStart:
    """The beginning of one stream of a stage."""

    tools: LatentTools[Any]
    latent: Tensor | None = None  # [1, C, F, h, w] or [1, C, T, M]; None: nothing
    items: Sequence[ConditioningItem] = ()
    noise_scale: float | None = 1.0  # share of noise mixed into it; None: no noise is drawn
    frozen: bool = False  # only attended to, never changed

    def condition(self, device: torch.device | str, dtype: torch.dtype) -> LatentState:
        """Clean tokens and masks, with what the items append."""
        state = self.tools.create_initial_state(device, dtype, self.latent)
        for item in self.items:
            state = item.apply_to(state, self.tools)
        return state


def begin_streams(
    starts: Mapping[str, StreamStart], noiser: Noiser, device: torch.device | str, dtype: torch.dtype
) -> dict[str, LatentState]:
    """Every stream conditioned and noised, in the order given: one draw for all tokens of a stream, appended ones too.

    A frozen stream is held at its clean tokens at sigma 0, whatever noise was drawn for it.
    """
    states = {}
    for name, start in starts.items():
        state = start.condition(device, dtype)
        if start.noise_scale is not None:
            state = noiser(state, start.noise_scale)
        if start.frozen:
            nothing = torch.zeros_like(state.denoise_mask)
            state = replace(state, latent=state.clean_latent, denoise_mask=nothing, frozen=True)
        states[name] = state
    return states


def finish_streams(tools: Mapping[str, LatentTools[Any]], states: States) -> dict[str, LatentState]:
    """Every stream as a latent, without what conditions appended; generated keyframes are kept beside it."""
    return {name: tools[name].unpatchify(tools[name].clear_conditioning(state)) for name, state in states.items()}
