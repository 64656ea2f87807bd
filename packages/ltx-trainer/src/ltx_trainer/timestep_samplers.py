"""Noise levels of training examples: one sigma per batch element.

The shifted logit-normal follows the schedule used at inference: the more tokens a sequence has, the more of the
probability sits at high noise. Percentiles of the logit-normal are stretched onto [eps, 1], and a share of the draws
is uniform so that no noise level is starved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_trainer.draws import Draws

# The shift is linear in the token count through (1024, 0.95) and (4096, 2.05), unclamped.
BASE_SHIFT, MAX_SHIFT = 0.95, 2.05
BASE_TOKENS, MAX_TOKENS = 1024, 4096
UPPER_QUANTILE, LOWER_QUANTILE = 3.0902, 2.5758  # standard scores of 99.9 % and 0.5 %


def shift_for_tokens(tokens: int | Tensor) -> float | Tensor:
    """The mean of the logit-normal for a sequence of ``tokens`` target tokens."""
    slope = (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    return BASE_SHIFT + slope * (tokens - BASE_TOKENS)


class NoiseLevels(Protocol):
    """Source of the noise levels of a batch."""

    def sample(self, draws: Draws, batch: int, tokens: int) -> Tensor:
        """Sigmas ``[B]`` of examples of ``tokens`` target tokens each."""
        ...


@dataclass(frozen=True)
class UniformTimestepSampler:
    """sigma uniform in [min_value, max_value)."""

    min_value: float = 0.0
    max_value: float = 1.0

    def sample(self, draws: Draws, batch: int, tokens: int) -> Tensor:
        """Sigmas ``[B]`` float32. One draw: uniform [B]."""
        return draws.rand((batch,)) * (self.max_value - self.min_value) + self.min_value


@dataclass(frozen=True)
class ShiftedLogitNormalTimestepSampler:
    """sigma from a stretched logit-normal whose mean grows with the token count, mixed with a uniform share."""

    std: float = 1.0
    eps: float = 1e-3
    uniform_prob: float = 0.1

    def sample(self, draws: Draws, batch: int, tokens: int) -> Tensor:
        """Sigmas ``[B]`` float32 in [eps, 1]. Three draws, always: normal [B], uniform [B], selector [B]."""
        normal, uniform, selector = draws.randn((batch,)), draws.rand((batch,)), draws.rand((batch,))
        return self.from_draws(normal, uniform, selector, tokens)

    def from_draws(self, normal: Tensor, uniform: Tensor, selector: Tensor, tokens: int) -> Tensor:
        """The sigmas that given draws lead to, all ``[B]``."""
        stretched = self.stretch(normal, tokens)
        return torch.where(selector > self.uniform_prob, stretched, self.eps + (1 - self.eps) * uniform)

    def stretch(self, normal: Tensor, tokens: int) -> Tensor:
        """The logit-normal branch: percentiles 0.5 and 99.9 moved to 0 and 1, values below eps reflected at eps."""
        mean = torch.tensor(float(shift_for_tokens(tokens)), device=normal.device)
        low = torch.sigmoid(mean - LOWER_QUANTILE * self.std)
        high = torch.sigmoid(mean + UPPER_QUANTILE * self.std)
        value = (torch.sigmoid(self.std * normal + mean) - low) / (high - low)
        return torch.where(value >= self.eps, value, 2 * self.eps - value).clamp(0, 1)


TimestepSampler = UniformTimestepSampler | ShiftedLogitNormalTimestepSampler
TIMESTEP_SAMPLERS: dict[str, type[UniformTimestepSampler] | type[ShiftedLogitNormalTimestepSampler]] = {
    "uniform": UniformTimestepSampler,
    "shifted_logit_normal": ShiftedLogitNormalTimestepSampler,
}


def make_timestep_sampler(mode: str, params: Mapping[str, Any]) -> TimestepSampler:
    """The sampler of a ``flow_matching`` configuration. Raises `ConfigError` for unknown modes or parameters."""
    if mode not in TIMESTEP_SAMPLERS:
        known = ", ".join(TIMESTEP_SAMPLERS)
        raise ConfigError(f"timestep_sampling_mode is {mode!r}, expected one of {known}")
    try:
        return TIMESTEP_SAMPLERS[mode](**params)
    except TypeError as error:
        raise ConfigError(f"timestep_sampling_params of {mode!r}: {error}") from error
