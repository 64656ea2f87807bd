"""One step from ``sigmas[i]`` to ``sigmas[i + 1]``, given the sample and its x0 prediction.

Steps work on one stream; the sampling loop applies them to each. ``sigmas`` is 1-D and best kept on the CPU: its values
decide branches, and 0-d CPU tensors mix with accelerator tensors without a copy or a wait. The second argument of every
``step`` is the x0 prediction, not the velocity (``ltx_core.utils.to_denoised`` converts).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.utils import to_velocity, widest_dtype

SIGMA_UP_LIMIT = 0.9999  # of the next sigma: some signal must remain
EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class EulerDiffusionStep:
    """A straight line along the velocity."""

    def step(self, sample: Tensor, denoised_sample: Tensor, sigmas: Tensor, step_index: int) -> Tensor:
        """The velocity is rounded to the sample's dtype, the update is made in float32. Sample's shape and dtype."""
        sigma, sigma_next = sigmas[step_index], sigmas[step_index + 1]
        velocity = to_velocity(sample, sigma, denoised_sample)
        return (sample.float() + velocity.float() * (sigma_next - sigma)).to(sample.dtype)


@dataclass(frozen=True)
class HeunDiffusionStep:
    """Euler to a predicted sample, then the mean of the velocities at both ends."""

    def step(
        self,
        sample: Tensor,
        denoised_sample: Tensor,
        sigmas: Tensor,
        step_index: int,
        denoised_at_predicted: Tensor | None = None,
    ) -> Tensor:
        """The predicted sample, or with its x0 prediction ``denoised_at_predicted`` the corrected one.

        Raises ``ValueError`` for a correction at sigma 0, where no velocity exists.
        """
        sigma, sigma_next = sigmas[step_index], sigmas[step_index + 1]
        velocity = to_velocity(sample, sigma, denoised_sample).float()
        predicted = sample.float() + velocity * (sigma_next - sigma)
        if denoised_at_predicted is None:
            return predicted.to(sample.dtype)
        at_end = to_velocity(predicted.to(sample.dtype), sigma_next, denoised_at_predicted).float()
        return (sample.float() + 0.5 * (velocity + at_end) * (sigma_next - sigma)).to(sample.dtype)


@dataclass(frozen=True)
class EulerAncestralDiffusionStep:
    """Euler to a lower noise level, then fresh noise up to the next one, on the straight path of rectified flow.

    ``eta`` 0 is plain Euler, 1 the most noise; ``s_noise`` scales the fresh noise.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    @property
    def draws_noise(self) -> bool:
        return self.eta > 0

    def step(
        self, sample: Tensor, denoised_sample: Tensor, sigmas: Tensor, step_index: int, noise: Tensor | None = None
    ) -> Tensor:
        """In float32, in the sample's dtype. Raises ``ConfigError`` when ``eta > 0`` and there is no noise."""
        sigma, sigma_next = sigmas[step_index], sigmas[step_index + 1]
        if sigma_next == 0:
            return denoised_sample.to(sample.dtype)
        if self.draws_noise and noise is None:
            raise ConfigError(f"noise is None, expected noise for an ancestral step with eta {self.eta}")
        sigma_down = sigma_next * (1 + (sigma_next / sigma - 1) * self.eta)
        ratio = sigma_down / sigma
        result = ratio * sample.float() + (1 - ratio) * denoised_sample.float()
        if noise is not None and self.draws_noise:
            rescale = (1 - sigma_next) / (1 - sigma_down)
            noise_scale = (sigma_next**2 - sigma_down**2 * rescale**2).clamp(min=0).sqrt()
            result = rescale * result + noise.float() * (self.s_noise * noise_scale)
        return result.to(sample.dtype)


@dataclass(frozen=True)
class EulerCfgPpDiffusionStep:
    """Euler that leaves the unconditional noise direction in place and moves to the guided x0 (CFG++)."""

    eta: float = 1.0
    s_noise: float = 1.0

    @property
    def draws_noise(self) -> bool:
        return self.eta > 0 and self.s_noise > 0

    def step(
        self,
        sample: Tensor,
        denoised_sample: Tensor,
        sigmas: Tensor,
        step_index: int,
        uncond_denoised: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """In float32, in the sample's dtype. ``uncond_denoised`` is the x0 prediction without the prompt."""
        sigma, sigma_next = sigmas[step_index], sigmas[step_index + 1]
        alpha, alpha_next = (1 - sigma).clamp(min=EPSILON), (1 - sigma_next).clamp(min=EPSILON)
        down, up = self._split(sigma / alpha, sigma_next / alpha_next)
        direction = (sample.float() - alpha * uncond_denoised.float()) / sigma
        result = alpha_next * denoised_sample.float() + (alpha_next * down) * direction
        if noise is not None and self.draws_noise:
            result = result + noise.float() * (alpha_next * self.s_noise * up)
        return result.to(sample.dtype)

    def _split(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """The noise-to-signal ratio ``end`` as a kept part and a fresh part: ``end^2 = down^2 + up^2``."""
        if self.eta == 0:
            return end, torch.zeros_like(end)
        variance = end**2 * (start**2 - end**2).clamp(min=0) / start**2
        up = torch.minimum(end, self.eta * variance.sqrt())
        return (end**2 - up**2).clamp(min=0).sqrt(), up


@dataclass(frozen=True)
class Res2sDiffusionStep:
    """The noise step of the res_2s solver: takes a deterministic result part of the way back and adds fresh noise."""

    @staticmethod
    def get_sde_coeff(
        sigma_next: Tensor,
        sigma_up: Tensor | None = None,
        sigma_down: Tensor | None = None,
        sigma_max: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(alpha_ratio, sigma_down, sigma_up)`` from one of ``sigma_up`` and ``sigma_down``, or for no noise.

        In double precision: where almost all is noise, the little signal left is a difference of near-equal squares.
        """
        sigma_next = sigma_next.to(widest_dtype(sigma_next.device))
        if sigma_down is not None:
            alpha_ratio = (1 - sigma_next) / (1 - sigma_down)
            sigma_up = (sigma_next**2 - sigma_down**2 * alpha_ratio**2).clamp(min=0).sqrt()
        elif sigma_up is not None:
            sigma_up = torch.minimum(sigma_up.to(sigma_next), SIGMA_UP_LIMIT * sigma_next)
            signal = 1 if sigma_max is None else sigma_max
            residual = (sigma_next**2 - sigma_up**2).clamp(min=0).sqrt()
            alpha_ratio = signal - sigma_next + residual
            sigma_down = residual / alpha_ratio
        else:
            return torch.ones_like(sigma_next), sigma_next, torch.zeros_like(sigma_next)
        return (
            torch.where(alpha_ratio.isnan(), 1.0, alpha_ratio),
            torch.where(sigma_down.isnan(), sigma_next, sigma_down),
            torch.where(sigma_up.isnan(), 0.0, sigma_up),
        )

    def step(
        self, sample: Tensor, denoised_sample: Tensor, sigmas: Tensor, step_index: int, noise: Tensor, eta: float = 0.5
    ) -> Tensor:
        """``denoised_sample`` is here the solver's result at the next sigma; result in its dtype.

        ``sigmas`` ``[2, B, N, 1]`` gives every token its own; one zero among them keeps noise from all tokens.
        """
        sigma, sigma_next = sigmas[step_index], sigmas[step_index + 1]
        alpha_ratio, sigma_down, sigma_up = self.get_sde_coeff(sigma_next, sigma_up=sigma_next * eta)
        noiseless = ((sigma_up == 0) | (sigma_next == 0) | (sigma == sigma_next)).any()
        if sigmas.ndim == 1 and noiseless:
            return denoised_sample
        epsilon = (sample - denoised_sample) / (sigma - sigma_next)
        clean = sample - sigma * epsilon
        result = (alpha_ratio * (clean + sigma_down * epsilon) + sigma_up * noise).to(denoised_sample.dtype)
        return result if sigmas.ndim == 1 else torch.where(noiseless, denoised_sample, result)
