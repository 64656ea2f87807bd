"""Letting go of held tokens while sigma falls, around any sampler.

A strength ``s`` below 1 that stays the same to the end leaves a token at ``s * clean + (1 - s) * x0``, two pictures in
one. One that falls to 0 at the last evaluated sigma steers, and the last word is the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ltx_core.components.strength import CURVES, ORDERS, StrengthOverSigma, rebuild_tokens
from ltx_core.model.transformer.modality import TimestepGroups
from ltx_core.sampling.denoisers import Predictor
from ltx_core.sampling.modality import States
from ltx_core.sampling.samplers import Memory, Sampler, with_held
from ltx_core.types import LatentState


@dataclass
class ReleaseMemory(Memory):
    """State of a run with falling strengths, by stream."""

    inner: Memory = field(default_factory=Memory)  # of the sampler inside
    masks: dict[str, Tensor] = field(default_factory=dict)  # as the stage began, [B, N, 1]
    known: dict[str, Tensor] = field(default_factory=dict)  # the last prediction with held tokens put back
    levels: dict[str, tuple[TimestepGroups, Tensor]] = field(default_factory=dict)  # of its mask, how each falls [R]


@dataclass(frozen=True)
class ReleasingSampler:
    """Before each step gives tokens the strength of its sigma, and brings those that changed to their new level.

    Which tokens share a level follows from the masks a run begins with, so that no step reads the device. ``noise`` is
    each token's own, ``[B, N, D]`` by stream; a stream without is left as it is.
    """

    inner: Sampler
    noise: Mapping[str, Tensor] = field(repr=False)

    def schedule(self, sigmas: Tensor) -> Tensor:
        return self.inner.schedule(sigmas)

    def begin(self, states: States) -> ReleaseMemory:
        own = {name: states[name] for name in self.noise}
        known = {name: state.clean_latent for name, state in own.items()}
        masks = {name: state.denoise_mask for name, state in own.items()}
        return ReleaseMemory(inner=self.inner.begin(states), masks=masks, known=known)

    def step(self, predict: Predictor, states: States, index: int, memory: Memory) -> States:
        assert isinstance(memory, ReleaseMemory)
        sigmas = predict.schedule[:-1].tolist()
        begun = {name: self._at(name, state, sigmas, index, memory) for name, state in states.items()}
        for name in self.noise:
            if (release := states[name].release) is not None:
                groups = predict.memory.mask_groups[name]
                groups, falls = memory.levels.setdefault(name, (groups, groups.values_of(release)))
                levels = mask_at(groups.values, falls, sigmas, index)
                predict.memory.mask_groups[name] = TimestepGroups(begun[name].denoise_mask, levels, groups.index)
        after = self.inner.step(predict, begun, index, memory.inner)
        for name in self.noise:
            memory.known[name] = with_held(begun[name], predict.memory.last[name])
        return after

    def _at(self, name: str, state: LatentState, sigmas: list[float], index: int, memory: ReleaseMemory) -> LatentState:
        if name not in self.noise or state.release is None:
            return state
        mask = mask_at(memory.masks[name], state.release, sigmas, index)
        before = torch.where(state.release > 0, -1.0, mask) if index == 0 else state.denoise_mask
        known, noise = memory.known[name].float(), self.noise[name].float()
        latent = rebuild_tokens(state.latent.float(), before, mask, known, noise, sigmas[index])
        return replace(state, latent=latent.to(state.latent.dtype), denoise_mask=mask)


def mask_at(mask: Tensor, release: Tensor, sigmas: list[float], index: int) -> Tensor:
    """The denoise mask at an evaluated sigma, from the one a stage began with and how its holds fall."""
    for curve, order in ORDERS.items():
        share = 0.0
        if sigmas[0] > sigmas[-1]:
            share = StrengthOverSigma(sigmas[0], sigmas[-1], order=order).at(sigmas[index])
        mask = torch.where(release == CURVES.index(curve), 1 - share * (1 - mask), mask)
    return mask
