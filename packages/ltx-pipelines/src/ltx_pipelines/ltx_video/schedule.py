"""Noise levels of an LTX-Video pass, and the guidance of each of its steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltx_core.components.guiders import VelocityGuidance
from ltx_core.components.schedulers import LinearQuadraticScheduler
from ltx_core.errors import ConfigError
from ltx_pipelines.ltx_video.settings import PerStep, Sampling

SAMPLERS = ("Uniform", "LinearQuadratic", "Constant")
SHIFTINGS = ("SD3", "SimpleDiffusion")
SHIFT_TOKENS = (1024, 4096)  # latent cells of the two ends of the SD3 shift
SHIFTS = (0.95, 2.05)


@dataclass(frozen=True)
class SchedulerConfig:
    """The ``scheduler`` section of a checkpoint's config. The defaults shift nothing."""

    sampler: str = "Uniform"
    shift: float | None = None  # of the Constant sampler
    shifting: str | None = None
    base_resolution: int | None = None  # latent cells at which SimpleDiffusion shifts nothing
    target_shift_terminal: float | None = None  # what the last level is stretched to
    allowed_inference_steps: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("sampler", self.sampler, SAMPLERS), ("shifting", self.shifting, SHIFTINGS)):
            if value is not None and value not in known:
                raise ConfigError(f"scheduler {name} is {value!r}, expected one of {', '.join(known)}")
        if self.sampler == "Constant" and self.shift is None:
            raise ConfigError("scheduler shift is absent, expected a number for the Constant sampler")
        if self.shifting == "SimpleDiffusion" and not self.base_resolution:
            raise ConfigError("scheduler base_resolution is absent, expected a number for SimpleDiffusion")

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> SchedulerConfig:
        """Read ``config["scheduler"]`` of a checkpoint; the defaults where there is none."""
        section = config.get("scheduler") or {}
        known = {key: section[key] for key in cls.__dataclass_fields__ if section.get(key) is not None}
        if "allowed_inference_steps" in known:
            known["allowed_inference_steps"] = tuple(known["allowed_inference_steps"])
        return cls(**known)

    @classmethod
    def chosen(cls, sampler: str, config: Mapping[str, Any]) -> SchedulerConfig:
        """The schedule a pipeline config names: the checkpoint's, or a plain one."""
        plain = {"uniform": "Uniform", "linear-quadratic": "LinearQuadratic"}
        return cls(plain[sampler]) if sampler in plain else cls.from_metadata(config)

    def levels(self, steps: int, cells: int) -> Tensor:
        """``steps`` falling noise levels without a final 0, float32, for a latent of ``cells`` = F*H*W."""
        if steps < 1:
            raise ConfigError(f"num_inference_steps is {steps}, expected at least 1")
        if self.sampler == "LinearQuadratic":
            levels = LinearQuadraticScheduler().execute(steps)[:-1]
        else:
            levels = torch.linspace(1.0, 1 / steps, steps)
        if self.sampler == "Constant" and self.shift is not None:
            levels = shift_levels(levels, self.shift)
        if self.shifting == "SD3":
            slope = (SHIFTS[1] - SHIFTS[0]) / (SHIFT_TOKENS[1] - SHIFT_TOKENS[0])
            levels = shift_levels(levels, slope * cells + SHIFTS[0] - slope * SHIFT_TOKENS[0])
            if self.target_shift_terminal is not None:
                levels = stretch_levels(levels, self.target_shift_terminal)
        elif self.shifting == "SimpleDiffusion" and self.base_resolution:
            levels = torch.sigmoid(torch.log(levels / (1 - levels)) + math.log(cells / self.base_resolution))
        return levels

    def check(self, levels: Tensor) -> None:
        """Refuse levels that are not among ``allowed_inference_steps`` to four digits."""
        if self.allowed_inference_steps is None:
            return
        allowed = {round(level, 4) for level in self.allowed_inference_steps}
        for level in levels.tolist():
            if round(level, 4) not in allowed:
                nearest = min(allowed, key=lambda known: abs(known - level))
                raise ConfigError(f"timestep is {level:.4f}, which this distilled model lacks; nearest: {nearest}")


def shift_levels(levels: Tensor, mu: float) -> Tensor:
    """``e^mu / (e^mu + 1/s - 1)``."""
    return math.exp(mu) / (math.exp(mu) + (1 / levels - 1))


def stretch_levels(levels: Tensor, terminal: float) -> Tensor:
    """Scale the distance to 1 so that the last level is ``terminal``; a single level at 1 stays."""
    clean = 1 - levels
    if clean[-1] == 0:
        return levels
    return 1 - clean / (clean[-1] / (1 - terminal))


def pass_levels(sampling: Sampling, scheduler: SchedulerConfig, cells: int) -> Tensor:
    """The noise levels of one pass: those given, or the schedule's without the steps to skip.

    Raises ``ConfigError`` for levels that do not fall or lie outside (0, 1], and when all steps are skipped.
    """
    if sampling.timesteps is not None:
        levels = torch.tensor(sampling.timesteps, dtype=torch.float32)
        falling = len(levels) > 0 and bool((levels.diff() < 0).all()) and levels[-1] > 0 and levels[0] <= 1
        if not falling:
            raise ConfigError(f"timesteps are {list(sampling.timesteps)}, expected falling numbers in (0, 1]")
    else:
        steps, first = sampling.num_inference_steps, sampling.skip_initial_inference_steps
        last = sampling.skip_final_inference_steps
        if first < 0 or last < 0 or first + last >= steps:
            raise ConfigError(
                f"skip_initial_inference_steps + skip_final_inference_steps is {first} + {last}, "
                f"expected less than num_inference_steps, {steps}"
            )
        levels = scheduler.levels(steps, cells)[first : steps - last]
    scheduler.check(levels)
    return levels


def guidance_per_step(sampling: Sampling, levels: Tensor, strategy: str = "attention_values") -> list[VelocityGuidance]:
    """The guidance at each noise level. Raises ``ConfigError`` for lists of unequal lengths."""
    entries = entry_per_step(sampling.guidance_timesteps, levels)
    expected = len(levels) if sampling.guidance_timesteps is None else len(sampling.guidance_timesteps)

    def value(name: str, scale: PerStep, entry: int) -> float:
        if not isinstance(scale, Sequence):
            return float(scale)
        check_length(name, scale, expected)
        return float(scale[entry])

    return [
        VelocityGuidance(
            cfg_scale=value("guidance_scale", sampling.guidance_scale, entry),
            stg_scale=value("stg_scale", sampling.stg_scale, entry),
            rescale_scale=value("rescaling_scale", sampling.rescaling_scale, entry),
            stg_blocks=blocks_of(sampling, entry, expected),
            cfg_star=sampling.cfg_star_rescale,
            skip_strategy=strategy,
        )
        for entry in entries
    ]


def entry_per_step(guidance_timesteps: Sequence[float] | None, levels: Tensor) -> list[int]:
    """For each level the first entry that is not above it, else the last; compared in float32."""
    if guidance_timesteps is None:
        return list(range(len(levels)))
    reached = torch.tensor(guidance_timesteps, dtype=torch.float32) <= levels[:, None]  # [steps, entries]
    return [row.index(True) if any(row) else len(row) - 1 for row in reached.tolist()]


def blocks_of(sampling: Sampling, entry: int, expected: int) -> tuple[int, ...]:
    """The blocks perturbed at one entry; one flat list serves all entries."""
    blocks: tuple[Any, ...] = sampling.skip_block_list or ()
    if any(isinstance(item, Sequence) for item in blocks):
        check_length("skip_block_list", blocks, expected)
        return tuple(blocks[entry])
    return tuple(blocks)


def check_length(name: str, values: Collection[Any], expected: int) -> None:
    if len(values) != expected:
        raise ConfigError(f"{name} has {len(values)} entries, expected {expected}")
