"""Validation sampling: conditioned states, the guided loop, latents without appended tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.sampling.loop import SamplingStep
from ltx_core.sampling.stage import Noiser, begin_streams
from ltx_core.types import LatentState, SpatioTemporalScaleFactors
from ltx_trainer.validation_config import ValidationConfig, ValidationSample
from ltx_trainer.validation_sampler import (
    EncodedCondition,
    PreparedSample,
    ValidationSampler,
    sample_seed,
    sample_shape,
)
from tests.golden.case import Case

FIELDS = ("clean_latent", "denoise_mask", "positions", "keyframes_mask")


def make_sample(case: Case) -> dict[str, Tensor]:
    args, inputs = case.args, case.inputs
    config = ValidationConfig.model_validate({**args["validation"], "samples": []})
    wanted = ValidationSample.model_validate(args["sample"])
    assert sample_seed(config, wanted) == args["seed"]
    checkpoint = Checkpoint.open(case.weights_path)
    factors = args.get("video_scale_factors_thw")
    sampler = ValidationSampler(
        config,
        checkpoint.build("transformer", torch.float32),
        SpatioTemporalScaleFactors(*factors)
        if factors
        else SpatioTemporalScaleFactors.from_model_config(checkpoint.config),
        torch.float32,
    )
    sample = PreparedSample(
        shape=sample_shape(config, wanted),
        seed=args["seed"],
        contexts={name: inputs[f"context.{name}_positive"] for name in ("video", "audio")},
        negative_contexts={name: inputs[f"context.{name}_negative"] for name in ("video", "audio")},
        conditions=tuple(
            EncodedCondition(condition, inputs[f"condition.{i}.latent"], inputs.get(f"condition.{i}.mask"))
            for i, condition in enumerate(wanted.conditions)
        ),
    )
    results: dict[str, Tensor] = {"mid.sigmas": sampler.sigmas()}
    for name, start in sampler.starts(sample).items():
        (state,) = begin_streams({name: replace(start, noise_scale=None)}, None, "cpu", torch.float32).values()
        values = {field: getattr(state, field) for field in FIELDS}
        results |= {f"out.conditioned.{name}.{field}": value for field, value in values.items() if value is not None}
    last: dict[str, Tensor] = {}

    def watch(step: SamplingStep) -> None:
        last.update({f"out.state.{name}": state.latent for name, state in step.states.items()})

    made = sampler.latents(sample, watch, recorded_noiser(case))
    results |= last | {f"out.latent.{name}": latent for name, latent in made.items()}
    return {name: value for name, value in results.items() if name in case.tensors}


def recorded_noiser(case: Case) -> Noiser:
    """Gives each noised stream its recorded tokens: those of video have three axes of positions, those of audio one."""

    def noised(latent_state: LatentState, noise_scale: float = 1.0) -> LatentState:
        name = "video" if latent_state.positions.shape[1] == 3 else "audio"
        return replace(latent_state, latent=case.inputs.get(f"noised.{name}", latent_state.latent))

    return noised


OPERATIONS = {("validation_runner", "build states, denoise with guidance, strip conditioning"): make_sample}
