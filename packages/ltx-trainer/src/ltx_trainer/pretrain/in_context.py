"""An in-context LoRA: a frozen transformer learns to follow a reference clip that stands in front of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ltx_trainer.lora import LoraSettings, add_lora
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.distill import export_lora
from ltx_trainer.pretrain.task import PretrainTask
from ltx_trainer.pretrain.transformer import TransformerTrainer


class InContextTask(PretrainTask):
    """Train an adapter of a `TransformerTrainer` whose modes take a ``reference`` beside each clip."""

    name = "in_context"
    module: TransformerTrainer

    def __init__(self, trainer: TransformerTrainer, examples: Examples, lora: LoraSettings) -> None:
        add_lora(trainer.requires_grad_(False).transformer, replace(lora, alpha=lora.rank))
        super().__init__(trainer, examples)
        self.rank = lora.rank

    def export(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        """The adapter, in the layout every loader reads; references have the size of the clip."""
        path = folder / f"{self.name}_step_{step:05d}.safetensors"
        own = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
        return [export_lora(path, self.module.transformer, own, self.rank, {"reference_downscale_factor": "1"})]
