"""The denoising loop. It yields after every step, so progress, preview, cancelling and checkpoints need no hooks::

for step in denoise(transformer, denoiser, states, sigmas, sampler):
    print(step.index + 1, "of", step.total)
states = step.states
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.sampling.denoisers import Denoiser, Predictor, Results, Transformer
from ltx_core.sampling.modality import States
from ltx_core.sampling.samplers import EulerSampler, Sampler


@dataclass(frozen=True)
class SamplingStep:
    """The streams after one step."""

    index: int  # 0 .. total - 1
    total: int
    sigma: float  # the noise level reached
    states: States
    results: Results  # the x0 predictions last made, before held tokens are put back


@torch.no_grad()
def denoise(
    transformer: Transformer,
    denoiser: Denoiser,
    states: States,
    sigmas: Tensor,
    sampler: Sampler = EulerSampler(),  # noqa: B008 - frozen
) -> Iterator[SamplingStep]:
    """Take the streams along ``sigmas`` ``[steps + 1]``, one ``SamplingStep`` at a time.

    ``transformer`` predicts x0 (``X0Model``); ``denoiser`` calls it and adds guidance (``GuidedDenoiser``). ``states``
    are noisy, patchified and by stream, ``"video"``, ``"audio"`` or both. ``sampler`` makes each step, by default an
    Euler step. Sigmas are read once, at the first step; no step waits for the accelerator. Raises ``ConfigError`` for
    no stream or for sigmas that rise or reach 0 early.
    """
    schedule = sampler.schedule(_check_sigmas(sigmas))
    states = {name: states[name] for name in ("video", "audio") if name in states}
    if not states:
        raise ConfigError("no stream is given, expected video, audio or both")
    predict = Predictor(transformer, denoiser, states, schedule)
    memory = sampler.begin(states)
    total = len(schedule) - 1
    for index in range(total):
        states = sampler.step(predict, states, index, memory)
        yield SamplingStep(index, total, float(schedule[index + 1]), states, predict.memory.last)


def _check_sigmas(sigmas: Tensor) -> Tensor:
    """The schedule on the CPU."""
    schedule = sigmas.detach().cpu()
    values = schedule.tolist()
    if schedule.ndim != 1 or len(values) < 2:
        raise ConfigError(f"sigmas have shape {list(schedule.shape)}, expected at least two values in a row")
    if not all(high > 0 and high >= low >= 0 for high, low in pairwise(values)):
        raise ConfigError(f"sigmas are {values}, expected positive falling values that may end in 0")
    return schedule
