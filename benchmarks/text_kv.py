"""Text keys and values: projected in every pass (plain), shared by passes and kept for the run (improved)."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import COMPARISON, Options, Table, alternate, comparison, drain
from benchmarks.models import LTX_19B, LTX_23, cpu_sizes, guided_denoiser, model_of, states_of
from ltx_core.model.transformer.model import X0Model
from ltx_core.optimizations import without
from ltx_core.sampling.loop import denoise


def run(options: Options) -> list[Table]:
    table = Table("Guided steps without and with text kept", COMPARISON)
    for style, version, steps in (("19B, two steps", LTX_19B, 2), ("2.3, one step", LTX_23, 1)):
        for size in cpu_sizes(options.quick, version):
            model = model_of(size, options.device)
            states = states_of(model, size, options.device)

            def improved(model: Any = model, size: Any = size, states: Any = states, steps: int = steps) -> Any:
                denoiser = guided_denoiser(model, size, options.device, model.num_blocks // 2)
                sigmas = torch.linspace(1, 0, steps + 1)
                last = drain(denoise(X0Model(model, 1), denoiser, states, sigmas))
                return [state.latent for state in last.states.values()]

            def plain(improved: Any = improved) -> Any:
                with without("kept_text"):
                    return improved()

            timing = alternate({"plain": plain, "improved": improved}, options)
            table.rows.append(comparison(f"{style}: {size.name}", timing))
    table.notes.append("19B: kept for the whole run; 2.3: kept for a block and shared by the passes of a step")
    return [table]
