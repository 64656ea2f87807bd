"""Adapters, whole training steps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.lora import Lora
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.model.transformer.modality import Modality
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_trainer.loop import LoopSettings, train
from ltx_trainer.lora import LoraSettings, add_lora, load_lora, lora_layers, lora_tensors
from ltx_trainer.models import LORA_NAME, choose_trainable, load_connectors
from ltx_trainer.timestep_samplers import make_timestep_sampler
from ltx_trainer.training_strategies.strategies import make_strategy
from ltx_trainer.transformer_task import TransformerObjective
from tests.golden.case import Case, assert_close
from tests.golden.trainer_cases.objective import STRATEGY_CONFIG, nested_batch, recorded_draws

NATIVE = "model.diffusion_model."


def modalities(inputs: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> list[Modality | None]:
    found: list[Modality | None] = []
    for name in ("video", "audio"):
        fields = {k.removeprefix(f"{name}."): v for k, v in inputs.items() if k.startswith(f"{name}.")}
        found.append(Modality(**fields) if fields else None)
    return found


def saved_adapter(case: Case) -> dict[str, Tensor]:
    """Base, adapted and fused outputs of the saved file; saving it again must give the same file."""
    args, results = case.args, {}
    path = case.directory / f"{case.name}.lora.safetensors"
    settings = LoraSettings(args["rank"], args["alpha"], 0.0, tuple(args["target_modules"]))
    checkpoint = Checkpoint.open(case.weights_path)
    network = checkpoint.build("transformer", torch.float32)
    inputs = modalities(case.inputs)

    def run(label: str, network: nn.Module) -> None:
        with torch.no_grad():
            velocities = network(*inputs)
        results.update(
            {f"out.{label}.{name}": v for name, v in zip(("video", "audio"), velocities, strict=True) if v is not None}
        )

    run("base", network)
    run("fused_no_alpha", checkpoint.build("transformer", torch.float32, loras=[Lora.open(path)]))
    add_lora(network, settings)
    load_lora(network, path)
    again = lora_tensors(network)
    run("adapted", alpha_applied(network))

    stored = SafetensorsFile(path)
    assert dict(stored.metadata) == args["metadata"], stored.metadata
    assert LORA_NAME.format(step=1000) == args["file_name_at_step_1000"]
    assert len(again) == args["num_tensors"] == len(stored.tensors)
    dtype = getattr(torch, args["precision"])
    for name, tensor in again.items():
        assert_close(tensor.to(dtype), stored.read(name), 1e-6, 1e-6, f"{case.name}: {name}")
    return results


def alpha_applied(network: nn.Module) -> nn.Module:
    """Files of other trainers hold B without ``alpha / rank``; put it on, as their training forward has it."""
    with torch.no_grad():
        for _, layer in lora_layers(network):
            layer.lora_B.weight.mul_(layer.scale)
    return network


class ReplayedObjective(nn.Module):
    """An objective whose draws are recorded ones, which remembers what it made of them."""

    def __init__(self, objective: TransformerObjective, named: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.objective, self.named = objective, [named]
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, batch: dict[str, Any], draws: object) -> dict[str, Tensor]:
        recorded = batch["draws"]
        losses = self.objective(batch["batch"], recorded)
        assert not recorded.recorded, f"{len(recorded.recorded)} recorded draws were not made"
        observed = self.objective.observed
        first = next(iter(observed.values()))
        self.seen.append({"loss": sum(loss for _, loss in observed.values()), "sigma": first[0]})
        return losses


class ReplayedTask:
    """The recorded micro-batches as a task of the training loop."""

    def __init__(self, module: ReplayedObjective, micro_batches: list[dict[str, Any]]) -> None:
        self.module, self.micro_batches = module, micro_batches

    def batches(self, first: int, rank: int, world_size: int) -> Any:
        return iter(self.micro_batches[first:])

    def validate(self, step: int, folder: object) -> dict[str, float]:
        return {}

    def export(self, folder: object, step: int, weights: object) -> list[Any]:
        return []


def training_steps(case: Case) -> dict[str, Tensor]:
    results = run_steps(case, forced=False)
    forced = run_steps(case, forced=True)  # near-zero gradients are noise, which Adam enlarges to whole steps
    return results | {name: value for name, value in forced.items() if name.startswith("out.final.")}


def run_steps(case: Case, forced: bool) -> dict[str, Tensor]:
    args, inputs = case.args, case.inputs
    objective, named = build_objective(case)
    module = ReplayedObjective(objective, named)
    labels = [f"step{s}" for s in range(args["steps"])]
    count = args["gradient_accumulation_steps"]
    micros = [f"{label}.micro{m}" if count > 1 else label for label in labels for m in range(count)]
    batches = [
        {
            "batch": nested_batch(inputs, f"{micro}.batch."),
            "draws": recorded_draws(inputs, f"{micro}.draw."),
        }
        for micro in micros
    ]
    results: dict[str, Tensor] = {}
    contexts = objective.contexts(batches[0]["batch"]["conditions"])
    results |= {f"mid.step0.{name}_context": context for name, context in contexts.items()}

    gradients: dict[str, Tensor] = {}

    def keep(name: str, parameter: nn.Parameter) -> None:
        gradients[name] = parameter.grad.clone()
        step, micro = divmod(len(module.seen) - 1, count)
        stored = case.tensors.get(f"out.step{step}.grad.{name}")
        if forced and micro == count - 1 and stored is not None:
            parameter.grad.copy_(stored)

    for name, parameter in named.items():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: keep(name, p))

    settings = LoopSettings(
        steps=args["steps"],
        learning_rate=args["learning_rate"],
        scheduler_type=args["scheduler_type"],
        scheduler_params=args["scheduler_params"],
        gradient_accumulation_steps=count,
        max_grad_norm=args["max_grad_norm"],
        save_state="off",
        resume=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        for label, report in zip(labels, train(ReplayedTask(module, batches), settings, Path(folder)), strict=True):
            results[f"out.{label}.lr"] = torch.tensor(report.learning_rate)
            results[f"out.{label}.grad_norm"] = torch.tensor(report.grad_norm)
            found = {f"out.{label}.grad.{name}": value for name, value in gradients.items()}
            results |= {name: value for name, value in found.items() if name in case.tensors}
    for micro, seen in zip(micros, module.seen, strict=True):
        results |= {f"out.{micro}.{name}": value for name, value in seen.items()}
    final = {f"out.final.{name}": parameter.detach() for name, parameter in named.items()}
    return results | {name: value for name, value in final.items() if name in case.tensors}


def build_objective(case: Case) -> tuple[TransformerObjective, dict[str, nn.Parameter]]:
    """The objective of a case, and its parameters by their saved names."""
    args = case.args
    checkpoint = Checkpoint.open(case.weights_path)
    transformer = checkpoint.build("transformer", torch.float32)
    connectors = load_connectors(checkpoint, torch.float32)
    config = STRATEGY_CONFIG.validate_python(args["strategy"])
    sampling = args.get("timestep_sampler") or {"mode": "shifted_logit_normal", "params": {}}
    sampler = make_timestep_sampler(sampling["mode"], sampling["params"])
    factors = args.get("video_scale_factors_thw")
    strategy = make_strategy(
        config,
        sampler,
        SpatioTemporalScaleFactors(*factors)
        if factors
        else SpatioTemporalScaleFactors.from_model_config(checkpoint.config),
    )
    if args["lora"]:
        lora = args["lora"]
        add_lora(transformer, LoraSettings(lora["rank"], lora["alpha"], 0.0, tuple(lora["targets"])))
        prefix = "diffusion_model."
        state = {name.removeprefix(f"lora.{prefix}"): t for name, t in case.inputs.items() if name.startswith("lora.")}
        transformer.load_state_dict(state, strict=False)
    else:
        choose_trainable(transformer, None)
        prefix = NATIVE
    objective = TransformerObjective(transformer, connectors, strategy, mark_keyframes=False)
    return objective, {prefix + name: parameter for name, parameter in transformer.named_parameters()}


OPERATIONS = {
    ("lora", "apply saved adapter to a tiny transformer"): saved_adapter,
    ("trainer", "training steps in float32"): training_steps,
}
