"""A guided step of four passes, each made alone (plain) and with shared prefix and text (improved)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Options, Table, Timing, alternate, max_difference
from benchmarks.models import (
    Size,
    cpu_sizes,
    guided_denoiser,
    modalities_of,
    model_of,
    published,
    states_of,
    thin_size,
)
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.optimizations import without
from ltx_core.sampling.denoisers import DenoiseCall

UNIT = "in units of one plain pass"
CALL = DenoiseCall.at(torch.tensor([0.7, 0.0]), 0)
PUBLISHED = ("ltx-2-19b", "ltx-2.3-22b")
PUBLISHED_TOKENS = 16 * 16 * 24  # 512 x 768, 121 frames


def run(options: Options) -> list[Table]:
    return [timed(options), counted(options)]


def sizes(options: Options) -> list[Size]:
    """The tiny model, one of six blocks, and one of the published depth."""
    return cpu_sizes(options.quick)[:2] + ([] if options.quick else [thin_size()])


def stg_blocks(num_blocks: int) -> list[int]:
    """Published models perturb block 28 or 29 of 48; the blocks on either side of that depth."""
    return sorted({floor(28 / 48 * num_blocks), ceil(29 / 48 * num_blocks)})


def unshared(step: Callable[[], Any]) -> Any:
    with without("shared_prefix", "kept_text"):
        return step()


def timed(options: Options) -> Table:
    columns = ("case", "pass s", "plain, passes", "improved, passes", "max abs diff", "plain MB", "improved MB")
    table = Table(f"Guided step (text, negative text, STG, modality) {UNIT}", columns)
    for size in sizes(options):
        model = model_of(size, options.device)
        given, states = modalities_of(model, size, options.device), states_of(model, size, options.device)

        def step(block: int, model: Any = model, size: Size = size, states: Any = states) -> list[Tensor]:
            denoiser = guided_denoiser(model, size, options.device, block)
            return [result.denoised for result in denoiser(X0Model(model, 1), states, CALL).values()]

        first, *others = stg_blocks(model.num_blocks)
        arms: dict[str, Any] = {
            "pass": partial(X0Model(model), given["video"], given["audio"]),
            "plain": partial(unshared, partial(step, first)),
            **{f"improved {block}": partial(step, block) for block in (first, *others)},
        }
        timing = alternate(arms, options)
        with torch.no_grad():
            plain = {first: timing.results["plain"], **{block: unshared(partial(step, block)) for block in others}}
        table.rows += [row(f"{size.name}, STG on block {b} of {model.num_blocks}", b, timing, plain[b]) for b in plain]
    table.notes.append("the plain step takes the same time whichever block is perturbed: it is timed for the first")
    return table


def row(name: str, block: int, timing: Timing, plain: list[Tensor]) -> list[str]:
    improved = f"improved {block}"
    return [
        name,
        f"{timing.median('pass'):.3f}",
        f"{timing.ratio('plain', 'pass'):.3f}",
        f"{timing.ratio(improved, 'pass'):.3f}",
        f"{max_difference(timing.results[improved], plain):.1e}",
        f"{timing.peaks['plain'] / 1e6:.1f}",
        f"{timing.peaks[improved] / 1e6:.1f}",
    ]


def counted(options: Options) -> Table:
    """The same by the operations of matrix products and attention, on tensors without data."""
    table = Table(f"Operations of the first guided step {UNIT}", ("case", "TFLOP of a pass", "plain", "improved"))
    large = [] if options.quick else [Size(f"{n}, 6144 tokens", published(n), PUBLISHED_TOKENS) for n in PUBLISHED]
    for size in [*sizes(options), *large]:
        with torch.device("meta"):
            model = LTXModel(TransformerConfig.from_metadata({"transformer": size.section})).requires_grad_(False)
        one = operations_of_pass(model, size)
        for block in stg_blocks(model.num_blocks):
            step = partial(operations_of_step, model, size, block)
            plain, improved = unshared(step) / one, step() / one
            name = f"{size.name}, STG on block {block} of {model.num_blocks}"
            table.rows.append([name, f"{one / 1e12:.4f}", f"{plain:.3f}", f"{improved:.3f}"])
    return table


class Counter:
    """Stands for a transformer, one pass at a time: adds up operations and answers with what it was given."""

    def __init__(self, model: LTXModel) -> None:
        self.model, self.operations = X0Model(model, 1), 0

    def __call__(self, video: Modality, audio: Modality, perturbations: Any = None) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model(without_data(video), without_data(audio), perturbations)
        self.operations += counter.get_total_flops()
        return video.latent, audio.latent


def without_data(modality: Modality) -> Modality:
    """Of the same shapes, at one noise level per sample."""
    fields: dict[str, Any] = {n: value.to("meta") for n, value in vars(modality).items() if isinstance(value, Tensor)}
    return replace(modality, **fields | {"timesteps": modality.noise_level.to("meta"), "timestep_groups": None})


def operations_of_pass(model: LTXModel, size: Size) -> int:
    counter = Counter(model)
    counter(**modalities_of(model, size, torch.device("cpu")))
    return counter.operations


def operations_of_step(model: LTXModel, size: Size, block: int) -> int:
    counter, host = Counter(model), torch.device("cpu")
    guided_denoiser(model, size, host, block)(counter, states_of(model, size, host), CALL)
    return counter.operations
