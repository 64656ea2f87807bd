"""Step distillation: a student follows the guided trajectory of its teacher in the few steps of a schedule.

For a step from sigma_i to sigma_(i+1) of the schedule, clean latents are noised to sigma_i, the frozen teacher walks to
sigma_(i+1) in several guided Euler steps, and the student's one unguided velocity is to land where the teacher did.
Teacher and student are one network: with the adapter on it is the student, with the adapter off the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ltx_core.components.schedulers import DISTILLED_SIGMAS
from ltx_trainer.draws import Draws
from ltx_trainer.held_out import FixedSigma
from ltx_trainer.lora import lora_layers
from ltx_trainer.training_strategies.inputs import Batch, ModalityInputs, TrainingInputs
from ltx_trainer.training_strategies.strategies import Strategy
from ltx_trainer.transformer_task import Contexts, TransformerObjective, to_device

Predict = Callable[[TrainingInputs, Contexts], dict[str, Tensor]]


@dataclass(frozen=True)
class DistillSettings:
    """The teacher's guidance and how finely it walks."""

    guidance_scale: float = 3.0
    substeps: int = 3
    sigmas: tuple[float, ...] = DISTILLED_SIGMAS


def teacher_targets(
    predict: Predict,
    inputs: TrainingInputs,
    span: tuple[Tensor, Tensor],
    contexts: tuple[Contexts, Contexts],
    settings: DistillSettings,
) -> dict[str, Tensor]:
    """Velocities ``[B, T, C]`` that lead in one step to where the guided teacher is at the end of a span of sigmas.

    ``span`` holds the first and the last sigma of each example, ``[B]``. ``contexts`` are those of the captions and of
    the empty caption. What is given stays where it is.
    """
    first, last = (sigma.view(-1, 1, 1) for sigma in span)
    moving, step = inputs, (last - first) / settings.substeps
    for index in range(settings.substeps):
        moving = at_level(moving, span[0] + index * step.flatten())
        guided, unguided = (predict(moving, context) for context in contexts)
        moved = {}
        for name, modality in moving.modalities.items():
            velocity = torch.lerp(unguided[name], guided[name], settings.guidance_scale)
            change = torch.where(modality.timesteps.unsqueeze(-1) > 0, step * velocity, 0.0)
            moved[name] = replace(modality, latent=modality.latent + change)
        moving = replace(moving, modalities=moved)
    return {
        name: (modality.latent - inputs.modalities[name].latent) / (last - first)
        for name, modality in moving.modalities.items()
    }


def at_level(inputs: TrainingInputs, sigma: Tensor) -> TrainingInputs:
    """The same tokens, said to be at other noise levels ``[B]``; what is given stays at 0."""

    def move(modality: ModalityInputs) -> ModalityInputs:
        return replace(
            modality,
            sigma=torch.where(modality.sigma > 0, sigma, modality.sigma),
            timesteps=torch.where(modality.timesteps > 0, sigma.unsqueeze(-1), modality.timesteps),
        )

    return replace(inputs, modalities={name: move(modality) for name, modality in inputs.modalities.items()})


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """The network without its adapters for a while."""
    layers = [layer for _, layer in lora_layers(network)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


@dataclass(frozen=True)
class StepSampler:
    """The noise levels that a schedule's steps begin at, each as often."""

    sigmas: tuple[float, ...]

    def sample(self, draws: Draws, batch: int, tokens: int) -> Tensor:
        """Sigmas ``[B]``. One draw: uniform [B]."""
        drawn = draws.rand((batch,))
        return drawn.new_tensor(self.sigmas)[(drawn * (len(self.sigmas) - 1)).long()]


class DistillObjective(TransformerObjective):
    """A `TransformerObjective` whose targets are where the guided teacher goes."""

    settings = DistillSettings()

    def follow(self, settings: DistillSettings) -> DistillObjective:
        """Learn the steps of ``settings``, each as often."""
        self.settings, self.levels = settings, settings.sigmas[:-1]
        self.strategy = replace(self.strategy, sampler=StepSampler(settings.sigmas))
        return self

    def prepare(self, strategy: Strategy, batch: Batch, draws: Draws) -> tuple[TrainingInputs, Contexts]:
        mask = batch["conditions"]["prompt_attention_mask"]
        drawn = strategy.sampler.sample(draws, len(mask), 0).to(mask.device)
        sigmas = drawn.new_tensor(self.settings.sigmas)
        place = (sigmas[:-1] - drawn.unsqueeze(-1)).abs().argmin(-1)
        span = sigmas[place], sigmas[place + 1]
        inputs, contexts = super().prepare(replace(strategy, sampler=FixedSigma(span[0])), batch, draws)
        with torch.no_grad(), adapters_off(self.transformer):
            empty = self.contexts(to_device(self._empty(len(mask)), mask.device))
            targets = teacher_targets(self.predict, inputs, span, (contexts, empty), self.settings)
        return replace(
            inputs, modalities={name: with_target(m, targets[name]) for name, m in inputs.modalities.items()}
        ), contexts

    def _empty(self, count: int) -> Mapping[str, Tensor]:
        """The empty caption ``count`` times."""
        assert self.empty_caption is not None
        return {
            name: value.expand(count, *value.shape)
            for name, value in self.empty_caption.items()
            if isinstance(value, Tensor)
        }


def with_target(modality: ModalityInputs, velocity: Tensor) -> ModalityInputs:
    """A modality with another target for its own tokens; one without a loss stays without."""
    if modality.targets is None:
        return modality
    return replace(modality, targets=velocity[:, -modality.targets.shape[1] :])
