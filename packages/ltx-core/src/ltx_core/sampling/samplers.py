"""Samplers: how one step of the loop is made.

A sampler is a value. ``schedule`` may adjust the sigmas, ``begin`` makes what a run remembers, and ``step`` takes all
streams from ``schedule[i]`` to ``schedule[i + 1]``. x0 predictions are held to the clean tokens before every use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.components.diffusion_steps import (
    EulerAncestralDiffusionStep,
    EulerCfgPpDiffusionStep,
    EulerDiffusionStep,
    HeunDiffusionStep,
)
from ltx_core.components.noisers import NoiseSource, plain_noise, seeded_generator
from ltx_core.errors import ConfigError
from ltx_core.sampling.denoisers import DenoisedLatentResult, Predictor
from ltx_core.sampling.modality import States, post_process_latent
from ltx_core.types import LatentState
from ltx_core.utils import to_denoised, to_velocity

EULER = EulerDiffusionStep()
HEUN = HeunDiffusionStep()


@dataclass
class Memory:
    """State of a sampler from step to step."""

    generators: dict[str, torch.Generator] = field(default_factory=dict)  # by purpose
    velocities: dict[str, Tensor] = field(default_factory=dict)  # by stream


class Sampler(Protocol):
    """A method of making steps; see the module's text."""

    def schedule(self, sigmas: Tensor) -> Tensor: ...

    def begin(self, states: States) -> Memory: ...

    def step(self, predict: Predictor, states: States, index: int, memory: Memory) -> States: ...


@dataclass(frozen=True)
class DeterministicSampler:
    """Base of samplers without noise of their own."""

    def schedule(self, sigmas: Tensor) -> Tensor:
        return sigmas

    def begin(self, states: States) -> Memory:
        return Memory()


@dataclass(frozen=True)
class EulerSampler(DeterministicSampler):
    """One prediction and one Euler step."""

    def step(self, predict: Predictor, states: States, index: int, memory: Memory) -> States:
        results = predict(states, index)
        return advance(
            states,
            lambda name, state: EULER.step(state.latent, with_held(state, results[name]), predict.schedule, index),
        )


@dataclass(frozen=True)
class HeunSampler(DeterministicSampler):
    """Two predictions a step, one where sigma ends at 0."""

    def step(self, predict: Predictor, states: States, index: int, memory: Memory) -> States:
        schedule = predict.schedule
        first = predict(states, index)
        x0 = {name: with_held(state, first[name]) for name, state in states.items()}
        predicted = advance(states, lambda name, s: HEUN.step(s.latent, x0[name], schedule, index))
        if schedule[index + 1] == 0:
            return predicted
        second = predict(predicted, index + 1)
        return advance(
            states,
            lambda name, state: HEUN.step(
                state.latent, x0[name], schedule, index, denoised_at_predicted=with_held(state, second[name])
            ),
        )


@dataclass(frozen=True)
class GradientEstimatingSampler(DeterministicSampler):
    """Euler along a velocity extrapolated from the last two by ``gamma``; at sigma 0 it lands on x0."""

    gamma: float = 2.0

    def step(self, predict: Predictor, states: States, index: int, memory: Memory) -> States:
        results = predict(states, index)
        if predict.schedule[index + 1] == 0:
            return advance(states, lambda name, state: with_held(state, results[name]))
        return advance(states, lambda name, state: self._step(name, state, results[name], predict, index, memory))

    def _step(
        self,
        name: str,
        state: LatentState,
        result: DenoisedLatentResult,
        predict: Predictor,
        index: int,
        memory: Memory,
    ) -> Tensor:
        sigma, x0 = predict.schedule[index], with_held(state, result)
        velocity = to_velocity(state.latent, sigma, x0)
        if (previous := memory.velocities.get(name)) is not None:
            x0 = to_denoised(state.latent, self.gamma * (velocity - previous) + previous, sigma)
        memory.velocities[name] = velocity
        return EULER.step(state.latent, x0, predict.schedule, index)


@dataclass(frozen=True)
class StochasticSampler:
    """Steps that add fresh noise: ancestral Euler or CFG++. In float32; at sigma 0 it lands on x0.

    CFG++ reads the ``uncond`` prediction of every stream: ``GuidedDenoiser(..., force_uncond_pass=True)``.
    ``model_dtype`` is the dtype of the states between steps; None keeps theirs.
    """

    stepper: EulerAncestralDiffusionStep | EulerCfgPpDiffusionStep
    noise_seed: int = -1
    noise: NoiseSource = plain_noise
    model_dtype: torch.dtype | None = None

    def schedule(self, sigmas: Tensor) -> Tensor:
        return sigmas

    def begin(self, states: States) -> Memory:
        return Memory(generators={"step": make_generator(states, self.noise_seed)})

    def step(self, predict: Predictor, states: States, index: int, memory: Memory) -> States:
        results = predict(states, index)
        x0 = {name: with_held(state, results[name], torch.float32) for name, state in states.items()}

        def new_latent(name: str, state: LatentState) -> Tensor:
            dtype = self.model_dtype or state.latent.dtype
            if predict.schedule[index + 1] == 0:
                return x0[name].to(dtype)
            extra: dict[str, Any] = {}
            if isinstance(self.stepper, EulerCfgPpDiffusionStep):
                extra["uncond_denoised"] = unconditional(name, results[name])
            if self.stepper.draws_noise:
                extra["noise"] = self.noise(state.latent, memory.generators["step"])
            latent = self.stepper.step(state.latent.float(), x0[name], predict.schedule, index, **extra)
            if "noise" in extra:
                latent = post_process_latent(latent, state.denoise_mask, state.clean_latent)
            return latent.to(dtype)

        return advance(states, new_latent)


def unconditional(name: str, result: DenoisedLatentResult) -> Tensor:
    """The prediction without the prompt; ``ConfigError`` where it was not made."""
    if result.uncond is None:
        raise ConfigError(f"{name} has no unconditional prediction, expected one: CFG++ needs force_uncond_pass")
    return result.uncond


def advance(states: States, new_latent: Callable[[str, LatentState], Tensor]) -> States:
    """The states with new noisy tokens, stream by stream, video first."""
    return {name: replace(state, latent=new_latent(name, state)) for name, state in states.items()}


def with_held(state: LatentState, result: DenoisedLatentResult, dtype: torch.dtype | None = None) -> Tensor:
    """The x0 prediction with held tokens at their clean content, in ``dtype`` or its own."""
    denoised = result.denoised if dtype is None else result.denoised.to(dtype)
    return post_process_latent(denoised, state.denoise_mask, state.clean_latent)


def make_generator(states: States, seed: int) -> torch.Generator:
    """A generator on the states' device."""
    device = next(iter(states.values())).latent.device
    return seeded_generator(device, seed)
