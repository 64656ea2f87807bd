"""The loss on examples that are never trained on, at fixed noise levels and with fixed noise: comparable over a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltx_trainer.draws import Draws, step_draws
from ltx_trainer.training_strategies.inputs import Batch
from ltx_trainer.transformer_task import TransformerObjective


@dataclass(frozen=True)
class FixedSigma:
    """A sampler of noise levels that always gives the same one, or the same ``[B]``."""

    value: float | Tensor

    def sample(self, draws: Draws, batch: int, tokens: int) -> Tensor:
        return torch.as_tensor(self.value).expand(batch)


@torch.no_grad()
def held_out_losses(
    objective: TransformerObjective, batches: Callable[[], Iterable[Batch]], seed: int
) -> dict[str, float]:
    """``val/loss_<modality>_sigma_<s>``: means over all held-out examples, captions never dropped."""
    strategy, dropout, observed = objective.strategy, objective.caption_dropout, objective.observed
    device = next(objective.transformer.parameters()).device
    found: dict[str, list[float]] = {}
    objective.caption_dropout = 0.0
    try:
        for sigma in objective.levels:
            objective.strategy = replace(strategy, sampler=FixedSigma(sigma))
            for index, batch in enumerate(batches()):
                objective(batch, step_draws(device, seed, "held out", index))
                for name, (_, losses) in objective.sigma_losses().items():
                    found.setdefault(f"val/loss_{name}_sigma_{sigma:g}", []).extend(losses)
    finally:
        objective.strategy, objective.caption_dropout, objective.observed = strategy, dropout, observed
    return {name: sum(losses) / len(losses) for name, losses in found.items() if losses}
