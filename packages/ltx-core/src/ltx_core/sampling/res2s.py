"""res_2s: a second-order exponential integrator in log-sigma, with noise after the midpoint and after the step.

With ``h = ln(s_i / s_{i+1})`` and ``phi_1, phi_2`` the functions of exponential integrators::

    midpoint  xm = x + h * a21 * (D(x) - x)                          at sigma sqrt(s_i * s_{i+1})
    step      xn = x + h * (b1 * (D(x) - x) + b2 * (D(xm) - x))      at sigma s_{i+1}

D predicts x0. The solver works in float64; the model sees the states' dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ltx_core.components.diffusion_steps import Res2sDiffusionStep
from ltx_core.components.noisers import NoiseSource, normalized_noise
from ltx_core.sampling.denoisers import Predictor
from ltx_core.sampling.modality import States, post_process_latent
from ltx_core.sampling.samplers import Memory, advance, make_generator, with_held
from ltx_core.types import LatentState
from ltx_core.utils import widest_dtype

LAST_SIGMA = 0.0011  # stands for 0, where log-sigma has no value
SUBSTEP_SEED_OFFSET = 10000
SUBSTEP_ETA = 0.5
REFINED_STEP = 0.5  # steps shorter than this in log-sigma have their anchor refined ...
REFINED_SIGMA = 0.03  # ... above this sigma


@dataclass(frozen=True)
class Res2sSampler:
    """Two predictions a step, and one more to land on x0 where the schedule ends in 0.

    ``eta`` scales the noise after each step. ``bongmath`` moves the step's starting point to agree with the noisy
    midpoint, by ``bongmath_max_iter`` fixed-point iterations. Without ``legacy_mode`` noise goes by the noise level of
    each token. ``noise_seed_substep`` None is ``noise_seed + 10000``. ``model_dtype`` None keeps the states' dtype.
    """

    noise_seed: int = -1
    noise_seed_substep: int | None = None
    eta: float = 0.5
    bongmath: bool = True
    bongmath_max_iter: int = 100
    legacy_mode: bool = True
    noise: NoiseSource = normalized_noise
    model_dtype: torch.dtype | None = None

    def schedule(self, sigmas: Tensor) -> Tensor:
        """A final 0 becomes ``LAST_SIGMA, 0``: the last step only lands on x0."""
        if sigmas[-1] == 0 and sigmas[-2] > LAST_SIGMA:
            return torch.cat((sigmas[:-1], sigmas.new_tensor([LAST_SIGMA, 0])))
        return sigmas

    def begin(self, states: States) -> Memory:
        substep = self.noise_seed + SUBSTEP_SEED_OFFSET if self.noise_seed_substep is None else self.noise_seed_substep
        generators = {"step": make_generator(states, self.noise_seed), "substep": make_generator(states, substep)}
        return Memory(generators=generators)

    def step(self, predict: Predictor, states: States, index: int, memory: Memory) -> States:
        results = predict(states, index)
        start, end = float(predict.schedule[index]), float(predict.schedule[index + 1])
        if end == 0:
            return self._cast(states, {name: with_held(state, results[name]) for name, state in states.items()})
        middle, h = math.sqrt(start * end), math.log(start / end)
        a21, b1, b2 = res2s_coefficients(h)
        anchors, x0, midpoints = {}, {}, {}
        for name, state in states.items():
            wide = widest_dtype(state.latent.device)
            anchors[name], x0[name] = state.latent.to(wide), with_held(state, results[name]).to(wide)
            midpoint = torch.lerp(anchors[name], x0[name], h * a21)
            noise = self.noise(state.latent, memory.generators["substep"])
            midpoints[name] = self._add_noise(state, anchors[name], midpoint, (start, middle), noise, SUBSTEP_ETA)
        if self.bongmath and h < REFINED_STEP and start > REFINED_SIGMA:
            for name, anchor in anchors.items():
                anchors[name] = refine_anchor(anchor, midpoints[name], x0[name], h * a21, self.bongmath_max_iter)
        sigma = torch.tensor(middle, dtype=next(iter(anchors.values())).dtype)
        second = predict(self._cast(states, midpoints), 0, sigma)
        ends = {}
        for name, state in states.items():
            anchor = anchors[name]
            slope = b1 * (x0[name] - anchor) + b2 * (with_held(state, second[name]) - anchor)
            noise = self.noise(state.latent, memory.generators["step"])
            ends[name] = self._add_noise(state, anchor, anchor + h * slope, (start, end), noise, self.eta)
        return self._cast(states, ends)

    def _add_noise(
        self, state: LatentState, sample: Tensor, result: Tensor, sigmas: tuple[float, float], noise: Tensor, eta: float
    ) -> Tensor:
        """The solver's ``result`` with noise; held tokens stay at their clean content."""
        levels = torch.tensor(sigmas, dtype=sample.dtype)
        if self.legacy_mode:
            noisy = Res2sDiffusionStep().step(sample, result, levels, 0, noise, eta)
            return post_process_latent(noisy, state.denoise_mask, state.clean_latent)
        per_token = torch.stack([state.denoise_mask.to(sample.dtype) * level for level in sigmas])  # [2, B, N, 1]
        return Res2sDiffusionStep().step(sample, result, per_token, 0, noise, eta)

    def _cast(self, states: States, latents: dict[str, Tensor]) -> States:
        return advance(states, lambda name, state: latents[name].to(self.model_dtype or state.latent.dtype))


def res2s_coefficients(h: float) -> tuple[float, float, float]:
    """``(a21, b1, b2)`` of a step of length ``h`` in log-sigma, with its midpoint at h/2."""
    b2 = _phi(2, -h) / 0.5
    return 0.5 * _phi(1, -h / 2), _phi(1, -h) - b2, b2


def _phi(order: int, z: float) -> float:
    """``(e^z - sum_{k < order} z^k / k!) / z^order``, and its limit ``1 / order!`` at 0."""
    if abs(z) < 1e-10:
        return 1 / math.factorial(order)
    return (math.exp(z) - sum(z**k / math.factorial(k) for k in range(order))) / z**order


def refine_anchor(anchor: Tensor, midpoint: Tensor, x0: Tensor, c: float, iterations: int) -> Tensor:
    """The starting point after ``iterations`` of ``x <- midpoint - c * (x0 - x)``, summed in closed form."""
    decay = c**iterations
    slope = (x0 - midpoint) * ((1 - decay) / (1 - c)) + decay * (x0 - anchor)
    return x0 - slope
