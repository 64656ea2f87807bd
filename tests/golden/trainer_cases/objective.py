"""Noise levels, training inputs, losses, learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ltx_core.types import SpatioTemporalScaleFactors
from ltx_trainer.draws import GeneratorDraws
from ltx_trainer.schedules import learning_rate_schedule
from ltx_trainer.sigma_tracker import SigmaLossTracker
from ltx_trainer.timestep_samplers import (
    ShiftedLogitNormalTimestepSampler,
    UniformTimestepSampler,
    make_timestep_sampler,
    shift_for_tokens,
)
from ltx_trainer.training_strategies.config import StrategyConfig
from ltx_trainer.training_strategies.strategies import make_strategy
from tests.golden.case import Case, assert_close

STRATEGY_CONFIG: TypeAdapter[StrategyConfig] = TypeAdapter(StrategyConfig)


class ReplayedDraws:
    """Gives back recorded draws in order and checks that the shapes asked for are the recorded ones."""

    def __init__(self, recorded: Sequence[Tensor]) -> None:
        self.recorded = list(recorded)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return self.rand(shape).to(dtype)

    def rand(self, shape: Sequence[int]) -> Tensor:
        drawn = self.recorded.pop(0)
        assert tuple(drawn.shape) == tuple(shape), f"asked to draw {tuple(shape)}, recorded {tuple(drawn.shape)}"
        return drawn


def recorded_draws(inputs: Mapping[str, Tensor], prefix: str = "draw.") -> ReplayedDraws:
    return ReplayedDraws([inputs[name] for name in sorted(inputs) if name.startswith(prefix)])


def nested_batch(flat: Mapping[str, Tensor], prefix: str = "batch.") -> dict[str, dict[str, Tensor]]:
    """`batch.<source>.<key>` tensors as a batch."""
    batch: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        if name.startswith(prefix):
            source, key = name.removeprefix(prefix).rsplit(".", 1)
            batch.setdefault(source, {})[key] = tensor
    return batch


def shift_rule(case: Case) -> dict[str, Tensor]:
    return {"out.shift": torch.as_tensor(shift_for_tokens(case.inputs["tokens"]))}


def shifted_logit_normal(case: Case) -> dict[str, Tensor]:
    args, inputs = case.args, case.inputs
    sampler = ShiftedLogitNormalTimestepSampler(args["std"], args["eps"], args["uniform_prob"])
    results = {}
    for tokens in args["seq_lengths"]:
        normal, uniform, selector = (inputs[f"{kind}.{tokens}"] for kind in ("normal", "uniform", "select"))
        results[f"out.sigma.{tokens}"] = sampler.from_draws(normal, uniform, selector, tokens)
        seeds = args.get("torch_seed")
        if seeds:
            seed = seeds[str(tokens)] if isinstance(seeds, dict) else seeds
            draws = GeneratorDraws(torch.Generator().manual_seed(seed))
            again = sampler.sample(draws, len(normal), tokens)
            assert_close(again, case.tensors[f"out.sigma.{tokens}"], case.rtol, case.atol, f"{case.name}: own draws")
    return results


def shifted_statistics(case: Case) -> dict[str, Tensor]:
    args, count = case.args, int(case.args["samples"])
    sampler = ShiftedLogitNormalTimestepSampler(args["std"], args["eps"], args["uniform_prob"])
    results = {}
    for tokens in args["seq_lengths"]:
        sigma = sampler.sample(GeneratorDraws(torch.Generator().manual_seed(args["torch_seed"])), count, tokens)
        levels = torch.tensor(args["quantiles"], dtype=torch.float64)
        ordered = sigma.double().sort().values
        figures = {
            "mean": sigma.mean(),
            "std": sigma.std(),
            "min": sigma.min(),
            "max": sigma.max(),
            "quantiles": ordered[(levels * (count - 1)).round().long()],
            "hist20": torch.histc(sigma, bins=20, min=0.0, max=1.0) / count,
            "frac_exactly_one": (sigma == 1).float().mean(),
        }
        results |= {f"out.{name}.{tokens}": value for name, value in figures.items()}
    return results


def uniform(case: Case) -> dict[str, Tensor]:
    args, drawn = case.args, case.inputs["uniform"]
    bounds = {key: args[key] for key in ("min_value", "max_value") if key in args}
    return {"out.sigma": UniformTimestepSampler(**bounds).sample(ReplayedDraws([drawn]), len(drawn), 1)}


def training_inputs(case: Case) -> dict[str, Tensor]:
    args, inputs = case.args, case.inputs
    config = STRATEGY_CONFIG.validate_python(args["strategy"])
    sampler = make_timestep_sampler(args["timestep_sampler"]["mode"], args["timestep_sampler"]["params"])
    strategy = make_strategy(config, sampler, SpatioTemporalScaleFactors(*args["video_scale_factors_thw"]))
    batch = nested_batch(inputs)
    draws = recorded_draws(inputs)
    prepared = strategy.prepare_training_inputs(batch, draws)
    assert not draws.recorded, f"{case.name}: {len(draws.recorded)} recorded draws were not made"

    expected = args.get("reference_scale_factors") or {}
    spatial, temporal = prepared.reference_factors or (1, 1)
    assert (spatial, temporal) == (expected.get("spatial") or 1, expected.get("temporal") or 1)

    predictions = {name: inputs[f"pred.{name}"] for name in prepared.modalities if f"pred.{name}" in inputs}
    losses = strategy.compute_loss(predictions, prepared)
    results: dict[str, Tensor] = {"out.loss": losses.total, "out.loss_scalar": losses.total.mean()}
    results |= {f"mid.loss.{name}": loss for name, loss in losses.modalities.items()}
    for name, modality in prepared.modalities.items():
        fields = {**vars(modality), "loss_mask": modality.loss_mask.float(), **contexts(batch["conditions"], name)}
        results |= {f"out.{name}.{field}": value for field, value in fields.items() if isinstance(value, Tensor)}
    results = {name: value for name, value in results.items() if name.startswith("out.") or name in case.tensors}
    absent = {name for name in results if name not in case.tensors}
    assert all(name.endswith((".loss_mask", ".targets")) for name in absent), absent
    return {name: value for name, value in results.items() if name not in absent}


def contexts(conditions: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """Stored captions pass through unchanged where no connectors run."""
    embeds = conditions.get(f"{modality}_prompt_embeds", conditions.get("prompt_embeds"))
    return {"context": embeds, "context_mask": conditions["prompt_attention_mask"]} if embeds is not None else {}


def learning_rates(case: Case) -> dict[str, Tensor]:
    args, results = case.args, {}
    for entry in args["schedules"]:
        schedule = learning_rate_schedule(
            entry["scheduler_type"], args["learning_rate"], args["steps"], entry.get("scheduler_params")
        )
        label = entry.get("label", entry["scheduler_type"])
        rates = [schedule(step) for step in range(args["steps"] + 1)]
        results[f"out.lr.{label}"] = torch.tensor(rates, dtype=torch.float64)
    return results


def sigma_buckets(case: Case) -> dict[str, Tensor]:
    tracker = SigmaLossTracker(case.args["boundaries"])
    rows = zip(case.inputs["sigma"].tolist(), case.inputs["loss"].tolist(), strict=True)
    expected = case.args["expected_metrics_per_step"]
    for (sigmas, losses), want in zip([*rows, ([], [])], expected, strict=True):
        tracker.update(sigmas, losses)
        got = tracker.metrics()
        assert got.keys() == want.keys(), (got, want)
        for name, value in want.items():
            assert abs(got[name] - value) <= case.atol + case.rtol * abs(value), (name, got[name], value)
    return {}


OPERATIONS = {
    ("timestep_samplers", "shift from token count"): shift_rule,
    ("timestep_samplers", "shifted_logit_normal"): shifted_logit_normal,
    ("timestep_samplers", "shifted_logit_normal statistics"): shifted_statistics,
    ("timestep_samplers", "uniform"): uniform,
    ("training_strategies.flexible", "prepare_training_inputs + compute_loss"): training_inputs,
    ("training_strategies.text_to_video", "prepare_training_inputs + compute_loss"): training_inputs,
    ("training_strategies.video_to_video", "prepare_training_inputs + compute_loss"): training_inputs,
    ("optimization", "learning-rate schedules"): learning_rates,
    ("sigma_tracker", "update + get_metrics"): sigma_buckets,
}
