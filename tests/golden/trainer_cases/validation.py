"""Validation sampling: conditioned states, the guided loop, latents without appended tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.types import SpatioTemporalScaleFactors
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
    states = sampler.conditioned(sample)
    results = {
        f"out.conditioned.{name}.{field}": getattr(state, field)
        for name, state in states.items()
        for field in FIELDS
        if getattr(state, field) is not None and f"out.conditioned.{name}.{field}" in case.tensors
    }
    results["mid.sigmas"] = sampler.sigmas()
    noised = {name: replace(s, latent=inputs.get(f"noised.{name}", s.latent)) for name, s in states.items()}
    last = noised
    for step in sampler.steps(sample, noised):
        last = dict(step.states)
    results |= {f"out.state.{name}": state.latent for name, state in last.items()}
    results |= {f"out.latent.{name}": latent for name, latent in sampler.finished(sample, last).items()}
    return {name: value for name, value in results.items() if name in case.tensors}


OPERATIONS = {("validation_runner", "build states, denoise with guidance, strip conditioning"): make_sample}
