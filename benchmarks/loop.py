"""The loop around the transformer: its own time, and how often it waits for the device."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import Options, Table
from benchmarks.models import cpu_sizes, guided_denoiser, model_of, states_of
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import X0Model
from ltx_core.sampling.loop import denoise

STEPS = 4


class Reads(TorchDispatchMode):
    """Counts operations that make the host wait for a tensor of more than one step's schedule."""

    NAMES = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function._opname in self.NAMES
        return function(*args, **(kwargs or {}))


def run(options: Options) -> list[Table]:
    table = Table(
        f"Loop of {STEPS} guided steps",
        ("case", "step s", "loop s per step", "share %", "reads in step 1", "reads per later step"),
        notes=["reads of the schedule, which lies on the host, are counted too: they wait for nothing"],
    )
    for size in cpu_sizes(options.quick):
        model = model_of(size, options.device)
        states = states_of(model, size, options.device, held=8)
        denoiser = guided_denoiser(model, size, options.device, model.num_blocks // 2)
        inside: list[float] = []

        def timed(
            video: Modality, audio: Modality, perturbations: Any, model: Any = model, inside: Any = inside
        ) -> tuple[Tensor, Tensor]:
            start = time.perf_counter()
            result = X0Model(model, 1)(video, audio, perturbations)
            inside.append(time.perf_counter() - start)
            return result

        sigmas = torch.linspace(1, 0, STEPS + 1)
        start = time.perf_counter()
        with torch.no_grad():
            for _ in denoise(timed, denoiser, states, sigmas):
                pass
        total = (time.perf_counter() - start) / STEPS
        own = total - sum(inside) / STEPS
        first, later = counted(model, replace(denoiser), states, sigmas)
        table.rows.append(
            [size.name, f"{total:.3f}", f"{own:.4f}", f"{100 * own / total:.2f}", str(first), f"{later:.1f}"]
        )
    return [table]


def counted(model: Any, denoiser: Any, states: Any, sigmas: Tensor) -> tuple[int, float]:
    """Reads in the first step, with what is done once, and per later step."""
    steps = denoise(X0Model(model, 1), denoiser, states, sigmas)
    with torch.no_grad(), Reads() as reads:
        next(steps)
        first = reads.count
        for _ in steps:
            pass
    return first, (reads.count - first) / (STEPS - 1)
