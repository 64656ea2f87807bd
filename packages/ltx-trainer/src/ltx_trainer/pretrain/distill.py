"""A step-distilled LoRA of a transformer that was trained from nothing: `ltx_trainer.distillation` on its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_trainer.distillation import DistillSettings, adapters_off, teacher_targets
from ltx_trainer.draws import Draws, step_draws
from ltx_trainer.lora import LoraSettings, add_lora, lora_tensors, save_lora
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.task import PretrainTask
from ltx_trainer.pretrain.transformer import HELD_OUT_SEED, Judge, TransformerTrainer, pick


class Distiller(nn.Module):
    """Teacher and student in one network: with the adapter on it is the student, with the adapter off the teacher."""

    def __init__(self, trainer: TransformerTrainer, lora: LoraSettings, settings: DistillSettings) -> None:
        super().__init__()
        self.trainer, self.settings = trainer.requires_grad_(False), settings
        add_lora(trainer.transformer, lora)

    def compile(self, **options: Any) -> None:
        """Compile the blocks of the one transformer."""
        self.trainer.compile(**options)

    def forward(self, batch: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """A batch of latents and token rows, with ``empty_ids`` and ``empty_mask`` of the empty prompt, to losses."""
        steps = len(self.settings.sigmas) - 1
        return self.step_losses(batch, pick(float(draws.rand(())), [1.0] * steps), draws)

    def step_losses(self, batch: Mapping[str, Tensor], step: int, draws: Draws) -> dict[str, Tensor]:
        """The losses at one step of the schedule."""
        sigma, after = self.settings.sigmas[step : step + 2]
        inputs = self.trainer.at_sigma(batch, sigma, draws)
        span = torch.tensor([sigma], device=self.trainer.device), torch.tensor([after], device=self.trainer.device)
        with torch.no_grad():
            contexts = self.trainer.contexts(batch)
            empty = {"input_ids": batch["empty_ids"], "attention_mask": batch["empty_mask"]}
            both = contexts, self.trainer.contexts(empty)
            with adapters_off(self.trainer.transformer):
                targets = teacher_targets(self.trainer.predict, inputs, span, both, self.settings)
        velocities = self.trainer.predict(inputs, contexts)
        losses = {f"loss_{name}": (velocity - targets[name]).square().mean() for name, velocity in velocities.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


class DistillTask(PretrainTask):
    """Train the adapter of a `Distiller`."""

    name = "distill"
    module: Distiller

    def __init__(
        self,
        trainer: TransformerTrainer,
        examples: Examples,
        lora: LoraSettings,
        settings: DistillSettings | None = None,
        held_out: Mapping[str, Tensor] | None = None,
        judge: Judge | None = None,
    ) -> None:
        super().__init__(Distiller(trainer, replace(lora, alpha=lora.rank), settings or DistillSettings()), examples)
        self.held_out, self.judge, self.rank = held_out, judge, lora.rank

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        with torch.compiler.set_stance("force_eager"):  # these forms are met too seldom to compile for them
            for index, sigma in enumerate(self.module.settings.sigmas[:-1]) if self.held_out is not None else ():
                losses = self.module.step_losses(self.held_out or {}, index, step_draws("cpu", HELD_OUT_SEED, index))
                figures[f"held_out_{sigma:g}"] = float(losses["loss"])
            return figures if self.judge is None else {**figures, **self.judge(self.module.trainer, step, folder)}

    def export(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        """The adapter, in the layout every loader reads."""
        path = folder / f"{self.name}_step_{step:05d}.safetensors"
        prefix = "trainer.transformer."
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        return [export_lora(path, self.module.trainer.transformer, own, self.rank)]


def export_lora(
    path: Path, network: nn.Module, weights: Mapping[str, Tensor], rank: int, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write the adapter of a network, whose alpha is its rank."""
    said = {"lora_rank": str(rank), "lora_alpha": str(rank), **(metadata or {})}
    return save_lora(path, lora_tensors(network, weights), torch.bfloat16, said)


def block_linears(trainer: TransformerTrainer) -> Sequence[str]:
    """The linears of the blocks that a distilled adapter covers, as targets of `LoraSettings`."""
    blocks: Any = trainer.transformer.transformer_blocks
    names = {
        name
        for name, module in blocks[0].named_modules()
        if isinstance(module, nn.Linear) and "gate_logits" not in name
    }
    return sorted(names)
