"""Sigma schedules: float32 ``[steps + 1]`` on the CPU, falling from about 1 to 0."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ltx_core.errors import ConfigError, check_least

if TYPE_CHECKING:
    from torch import Tensor

# Published tables of the distilled models: falling noise levels, n values for n - 1 steps.
#: Distilled LTX-2, stage 1: 8 steps.
DISTILLED_SIGMAS: tuple[float, ...] = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
#: Stage 2 after the spatial upsampler: 3 steps.
STAGE_2_SIGMAS = DISTILLED_SIGMAS[5:]
#: Stage 2 in tiles on several accelerators: 2 steps.
TILED_STAGE_2_SIGMAS: tuple[float, ...] = (0.625, 0.4, 0.0)
#: Stage 2 of HDR clips: 2 steps.
HDR_STAGE_2_SIGMAS: tuple[float, ...] = (0.909375, 0.725, 0.0)
#: Each round of temporal upsampling: 4 steps.
TEMPORAL_ROUND_SIGMAS = DISTILLED_SIGMAS[4:]
#: Distilled LTX-Video 0.9.8, first and second pass; its config files hold rounded numbers and no final 0.
LTXV_DISTILLED_SIGMAS: tuple[float, ...] = (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725)
LTXV_SECOND_PASS_SIGMAS: tuple[float, ...] = (0.9094, 0.725, 0.4219)

BASE_SHIFT_TOKENS = 1024
MAX_SHIFT_TOKENS = 4096
BETA_TABLE_SIZE = 10000
BETA_TABLE_SHIFT = 2.37
SMALLEST_HEADROOM = 1e-6  # below this ``1 - sigma`` is mostly float32 rounding
TINY, EPSILON = 1e-300, 2.0**-52
LARGEST_EXPONENT = 80.0  # e^80 is finite in float32; every sigma has long rounded to 1 by then


@dataclass(frozen=True)
class LTX2Scheduler:
    """The schedule of LTX-2: uniform steps, shifted towards noise, stretched to end at ``terminal`` before 0."""

    def execute(self, steps: int, latent: Tensor | None = None, **options: Any) -> Tensor:
        """The schedule for the token count ``F*H*W`` of ``latent`` ``[B, C, F, H, W]``; options as in ``sigmas``."""
        import torch

        if latent is not None:
            options["tokens"] = math.prod(latent.shape[2:])
        return torch.tensor(self.sigmas(steps, **options))

    def sigmas(
        self,
        steps: int,
        tokens: int | None = None,
        max_shift: float = 2.05,
        base_shift: float = 0.95,
        stretch: bool = True,
        terminal: float = 0.1,
        default_number_of_tokens: int = MAX_SHIFT_TOKENS,
        **_: Any,
    ) -> tuple[float, ...]:
        """The values, rounded to float32 after every operation and so the same on every processor.

        The shift grows linearly with ``tokens``, the positions of the latent and not those of the transformer. One step
        is (1, 0). Raises ``ConfigError`` for ``steps < 1`` or ``terminal`` outside [0, 1).
        """
        check_least("steps", steps, 1)
        if not 0 <= terminal < 1:
            raise ConfigError(f"terminal is {terminal}, expected 0 <= terminal < 1")
        if steps == 1:
            return (1.0, 0.0)
        slope = (max_shift - base_shift) / (MAX_SHIFT_TOKENS - BASE_SHIFT_TOKENS)
        mu = (tokens or default_number_of_tokens) * slope + (base_shift - BASE_SHIFT_TOKENS * slope)
        uniform = _falling(steps + 1)[:-1]
        scale = float32(math.exp(max(-LARGEST_EXPONENT, min(mu, LARGEST_EXPONENT))))
        shifted = [float32(float32(1 / float32(scale + float32(float32(1 / s) - 1))) * scale) for s in uniform]
        if stretch:
            headroom = [float32(1 - sigma) for sigma in shifted]
            if headroom[-1] < SMALLEST_HEADROOM:
                headroom = _headroom(uniform, mu)
            last = float32(headroom[-1] / float32(1 - terminal))
            shifted = [float32(1 - float32(room / last)) for room in headroom]
        return (*shifted, 0.0)


def float32(value: float) -> float:
    """``value`` rounded to single precision."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _falling(count: int) -> list[float]:
    """``count`` values from 1 to 0 in equal steps, each half counted from its end with one rounding."""
    step = float32(1 / (count - 1))
    first = [float32(1 - step * index) for index in range(count // 2)]
    return [*first, *(float32(step * (count - 1 - index)) for index in range(count // 2, count))]


def _shift(sigmas: Tensor, mu: float) -> Tensor:
    """``e^mu / (e^mu + 1/sigma - 1)`` for positive sigmas."""
    scale = math.exp(mu)
    return scale / (scale + (1 / sigmas - 1))


def _headroom(sigmas: Sequence[float], mu: float) -> list[float]:
    """``1 - shifted sigma`` up to a common factor, without the cancellation that rounds it to 0 at large ``mu``."""
    odds = [1 / sigma - 1 for sigma in sigmas]
    return [float32(one / (1 + one * math.exp(-mu))) for one in odds]


@dataclass(frozen=True)
class LinearQuadraticScheduler:
    """Small equal steps near noise, then quadratically growing ones."""

    def execute(self, steps: int, threshold_noise: float = 0.025, linear_steps: int | None = None, **_: Any) -> Tensor:
        """``sigmas`` as a tensor."""
        import torch

        return torch.tensor(self.sigmas(steps, threshold_noise, linear_steps))

    def sigmas(self, steps: int, threshold_noise: float = 0.025, linear_steps: int | None = None) -> tuple[float, ...]:
        """The first ``linear_steps`` (half of all) steps remove ``threshold_noise``. One step is (1, 0).

        Raises ``ConfigError`` for ``steps < 1`` or ``linear_steps`` outside 1 to ``steps``.
        """
        check_least("steps", steps, 1)
        if steps == 1:
            return (1.0, 0.0)
        linear = steps // 2 if linear_steps is None else linear_steps
        if not 1 <= linear <= steps:
            raise ConfigError(f"linear_steps is {linear}, expected 1 to {steps}")
        removed = [i * threshold_noise / linear for i in range(linear)]
        if quadratic := steps - linear:
            difference = linear - threshold_noise * steps
            a = difference / (linear * quadratic**2)
            b = threshold_noise / linear - 2 * difference / quadratic**2
            c = a * linear**2
            removed += [a * i**2 + b * i + c for i in range(linear, steps)]
        return tuple(float32(1 - x) for x in (*removed, 1.0))


@dataclass(frozen=True)
class BetaScheduler:
    """Steps at the quantiles of a beta distribution over a shifted table of sigmas."""

    def execute(self, steps: int, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
        """Table entries that come up twice are used once, so the result may hold fewer than ``steps + 1`` values.

        Raises ``ConfigError`` for ``steps < 1`` or a shape parameter that is not positive.
        """
        import torch

        check_least("steps", steps, 1)
        quantiles = [beta_quantile(1 - i / steps, alpha, beta) for i in range(steps)]
        indices = dict.fromkeys(round(q * (BETA_TABLE_SIZE - 1)) for q in quantiles)
        return torch.cat((_beta_table()[list(indices)], torch.zeros(1)))


@cache
def _beta_table() -> Tensor:
    import torch

    times = torch.arange(1, BETA_TABLE_SIZE + 1, dtype=torch.float32) / BETA_TABLE_SIZE
    return _shift(times, BETA_TABLE_SHIFT)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The x in [0, 1] with ``I_x(a, b) = probability``: in closed form, or by bisection to the last bit.

    Raises ``ConfigError`` for shapes that are not positive.
    """
    if not (a > 0 and b > 0):
        raise ConfigError(f"beta shape parameters are {a} and {b}, expected positive numbers")
    if not 0 < probability < 1:
        return min(max(probability, 0.0), 1.0)
    if b == 1:
        return probability ** (1 / a)
    if a == 1:
        return 1 - (1 - probability) ** (1 / b)
    if a == b == 0.5:
        return math.sin(probability * math.pi / 2) ** 2
    if probability > 0.5:
        return 1 - beta_quantile(1 - probability, b, a)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if beta_cdf(middle, a, b) < probability else (low, middle)
    return high


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function ``I_x(a, b)``: a continued fraction by Lentz's method."""
    if not 0 < x < 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    logarithm = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d, fraction = 1.0, 0.0, 1.0
    for n in range(1, 1000):
        m, odd = divmod(n, 2)
        term = -(a + m) * (a + b + m) * x / (a + 2 * m + 1) if odd else m * (b - m) * x / (a + 2 * m - 1)
        term /= a + 2 * m
        d = 1 / ((1 + term * d) or TINY)
        c = (1 + term / c) or TINY
        fraction *= c * d
        if abs(c * d - 1) < EPSILON:
            break
    return math.exp(logarithm) / a / fraction
