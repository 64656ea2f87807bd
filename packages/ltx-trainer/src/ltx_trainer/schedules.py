"""Learning-rate schedules as pure functions of the step, so that a resumed run cannot drift from an uninterrupted one.

``params`` may override a schedule's own parameters by their names below; any other name is refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ltx_core.errors import ConfigError

Schedule = Callable[[int], float]


def constant(rate: float, steps: int) -> Schedule:
    return lambda step: rate


def linear(
    rate: float, steps: int, start_factor: float = 1.0, end_factor: float = 0.1, total_iters: int | None = None
) -> Schedule:
    total = total_iters or max(steps, 1)
    return lambda step: rate * (start_factor + (end_factor - start_factor) * min(step, total) / total)


def cosine(rate: float, steps: int, eta_min: float = 0.0, T_max: int | None = None) -> Schedule:
    total = T_max or max(steps, 1)
    return lambda step: eta_min + (rate - eta_min) * (1 + math.cos(math.pi * step / total)) / 2


def cosine_with_restarts(
    rate: float,
    steps: int,
    T_0: int | None = None,
    T_mult: int = 1,
    eta_min: float | None = None,
) -> Schedule:
    """Each period is ``T_mult`` times as long as the one before; ``eta_min`` is 5e-5, never above ``rate``."""
    first = T_0 or max(steps // 4, 1)
    floor = min(5e-5, rate) if eta_min is None else eta_min

    def at(step: int) -> float:
        position, period = step, first
        while position >= period:
            position, period = position - period, period * T_mult
        return floor + (rate - floor) * (1 + math.cos(math.pi * position / period)) / 2

    return at


def polynomial(rate: float, steps: int, power: float = 1.0, total_iters: int | None = None) -> Schedule:
    total = total_iters or max(steps, 1)
    return lambda step: rate * (1 - min(step, total) / total) ** power


def step(rate: float, steps: int, step_size: int | None = None, gamma: float = 0.1) -> Schedule:
    size = step_size or max(steps // 2, 1)
    return lambda step: rate * gamma ** (step // size)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "step": step,
}


def schedule_parameters(kind: str) -> tuple[str, ...]:
    """Parameters of a schedule."""
    return tuple(inspect.signature(SCHEDULES[kind]).parameters)[2:]


def learning_rate_schedule(
    kind: str, rate: float, steps: int, params: Mapping[str, Any] | None = None, warmup_steps: int = 0
) -> Schedule:
    """The rate in force during optimizer step i (0-based), after a linear warm-up that multiplies it.

    Raises `ConfigError` for an unknown kind or parameter.
    """
    if kind not in SCHEDULES:
        raise ConfigError(f"scheduler_type is {kind!r}, expected one of {', '.join(SCHEDULES)}")
    try:
        schedule = SCHEDULES[kind](rate, steps, **(params or {}))
    except TypeError as error:
        raise ConfigError(f"scheduler_params of {kind!r}: {error}") from error
    if not warmup_steps:
        return schedule
    return lambda step: schedule(step) * min((step + 1) / warmup_steps, 1.0)
