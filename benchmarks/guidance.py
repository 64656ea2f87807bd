"""A guided step of four passes, each made alone (plain) and with shared prefix and text (improved)."""

from __future__ import annotations

from math import ceil, floor
from typing import Any

import torch

from benchmarks.common import Options, Table, alternate
from benchmarks.models import cpu_sizes, guided_denoiser, modalities_of, random_model, states_of
from ltx_core.model.transformer.model import X0Model
from ltx_core.sampling.denoisers import DenoiseCall
from ltx_core.savings import without

COLUMNS = ("case", "pass s", "plain, passes", "improved, passes", "max abs diff", "plain MB", "improved MB")


def run(options: Options) -> list[Table]:
    table = Table("Guided step (text, negative text, STG, modality) in units of one plain pass", COLUMNS)
    call = DenoiseCall.at(torch.tensor([0.7, 0.0]), 0)
    for size in cpu_sizes(options.quick):
        model = random_model(size.section, options.device)
        blocks = model.num_blocks
        chosen = sorted({floor(28 / 48 * blocks), ceil(29 / 48 * blocks)})
        given, states = modalities_of(model, size, options.device), states_of(model, size, options.device)
        for block in chosen:
            denoiser = guided_denoiser(model, size, options.device, block)

            def one_pass(model: Any = model, given: Any = given) -> Any:
                return X0Model(model)(given["video"], given["audio"])

            def step(model: Any = model, denoiser: Any = denoiser, states: Any = states) -> Any:
                results = denoiser(X0Model(model, 1), states, call)
                return [result.denoised for result in results.values()]

            def plain(step: Any = step) -> Any:
                with without("shared_prefix", "kept_text"):
                    return step()

            timing = alternate({"pass": one_pass, "plain": plain, "improved": step}, options)
            table.rows.append(
                [
                    f"{size.name}, STG on block {block} of {blocks}",
                    f"{timing.median('pass'):.3f}",
                    f"{timing.ratio('plain', 'pass'):.3f}",
                    f"{timing.ratio('improved', 'pass'):.3f}",
                    f"{timing.difference('improved', 'plain'):.1e}",
                    f"{timing.peaks['plain'] / 1e6:.1f}",
                    f"{timing.peaks['improved'] / 1e6:.1f}",
                ]
            )
    table.notes.append(
        "published models perturb block 28 or 29 of 48; six blocks have 3 and 4 on either side of that depth"
    )
    return [table]
