"""LTX-Video's way of sampling: guidance on velocities, and a noise level of its own for every token.

A condition of strength s holds its tokens at the level 1 - s, which is their denoise mask: they stay until the schedule
has come down to it, then move with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ltx_core.components.guiders import VelocityGuidance
from ltx_core.guidance.perturbations import SKIP_STRATEGIES, Perturbation, PerturbationConfig
from ltx_core.model.transformer.config import STREAMS
from ltx_core.model.transformer.modality import Modality, TimestepGroups
from ltx_core.networks import Contexts
from ltx_core.sampling.denoisers import (
    DenoiseCall,
    DenoisedLatentResult,
    GuidancePass,
    Predictor,
    Results,
    Transformer,
    run_passes,
)
from ltx_core.sampling.modality import States
from ltx_core.sampling.samplers import DeterministicSampler, Memory
from ltx_core.types import LatentState
from ltx_core.utils import to_denoised

TOLERANCE = 1e-6  # between noise levels that count as equal


@dataclass(frozen=True)
class VelocityDenoiser:
    """Predicts every stream with the guidance of each step. The transformer it is given predicts velocities.

    Sound reads the text of the video.
    """

    positive: Contexts
    negative: Contexts | None  # needed where a step's ``cfg_scale`` is above 1
    guidance: Sequence[VelocityGuidance]
    keep_text: bool = True

    def __call__(self, transformer: Transformer, states: States, call: DenoiseCall) -> Results:
        guidance, modalities = self.guidance[call.step_index], {}
        for name, state in states.items():
            groups = call.memory.mask_groups.get(name) or TimestepGroups.of(state.denoise_mask)
            levels = groups.limit_to(call.sigma)
            modalities[name] = Modality(
                latent=state.latent,
                timesteps=levels.timesteps,
                timestep_groups=levels,
                positions=state.positions,
                context=self.positive.video,
            )
        _, passes = self.needs(tuple(states), call)
        made = run_passes(transformer, modalities, passes, call.memory, self.keep_text)
        results = {}
        for name, given in modalities.items():
            by_pass = {each: prediction[name] for each, prediction in made.items()}
            velocity = guidance.combine(by_pass["cond"], by_pass.get("uncond"), by_pass.get("ptb"))
            denoised = to_denoised(given.latent, velocity, given.timesteps)
            results[name] = DenoisedLatentResult(denoised, velocity=velocity)
        return results

    def needs(
        self, streams: Sequence[str], call: DenoiseCall
    ) -> tuple[dict[str, VelocityGuidance], list[GuidancePass]]:
        """The guidance of a step, and its passes."""
        guidance = self.guidance[call.step_index]
        return dict.fromkeys(streams, guidance), self.passes(guidance)

    def passes(self, guidance: VelocityGuidance) -> list[GuidancePass]:
        """The passes one step needs."""
        passes = [text_pass("cond", self.positive)]
        if guidance.uses_negative and self.negative is not None:
            passes.append(text_pass("uncond", self.negative))
        if guidance.uses_perturbed:
            kind = SKIP_STRATEGIES[guidance.skip_strategy]
            weakened = () if kind is None else (Perturbation(kind, guidance.stg_blocks),)
            passes.append(replace(passes[0], name="ptb", perturbations=PerturbationConfig(weakened)))
        return passes


@dataclass(frozen=True)
class TokenLevelSampler(DeterministicSampler):
    """Euler steps along the velocity, each token from its own level to the next one of the schedule.

    ``stochastic`` draws fresh noise at every step. ``renoise`` is the noise on held tokens of the picture, times the
    squared level. ``noise(use, like)`` gives standard normal numbers, ``use`` being "renoise", "stochastic" or, for the
    sound, "sound".
    """

    noise: Callable[[str, Tensor], Tensor] = field(repr=False)
    stochastic: bool = False
    renoise: float = 0.0

    def step(self, predict: Predictor, states: States, index: int, memory: Memory) -> States:
        level, below = float(predict.schedule[index]), float(predict.schedule[index + 1])
        if self.renoise > 0:
            state = states["video"]
            noisy = state.clean_latent + self.renoise * level**2 * self.noise("renoise", state.latent)
            latent = torch.where(state.denoise_mask < TOLERANCE, noisy, state.latent)
            states = {**states, "video": replace(state, latent=latent)}
        results = predict(states, index)
        return {name: self._move(name, states[name], results[name], level, below) for name in states}

    def _move(
        self, name: str, state: LatentState, result: DenoisedLatentResult, level: float, below: float
    ) -> LatentState:
        """One stream's tokens a level further down."""
        tokens, mask, velocity = state.latent, state.denoise_mask, result.velocity
        assert velocity is not None
        now = mask.clamp(max=level)  # [1, N, 1]
        after = torch.where(mask > level - TOLERANCE, now.clamp(max=below), now)
        if self.stochastic:
            fresh = self.noise("stochastic" if name == "video" else "sound", tokens).float()
            moved = (1 - after) * (tokens.float() - now * velocity) + after * fresh
            return replace(state, latent=torch.where(now > after, moved.to(tokens.dtype), tokens))
        return replace(state, latent=(tokens.float() - (now - after) * velocity).to(tokens.dtype))


def text_pass(name: str, text: Contexts) -> GuidancePass:
    masks = {} if text.mask is None else dict.fromkeys(STREAMS, text.mask)
    return GuidancePass(name, dict.fromkeys(STREAMS, text.video), masks=masks)
