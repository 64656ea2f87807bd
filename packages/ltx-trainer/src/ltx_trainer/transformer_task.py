"""The transformer as something to train: a batch of stored latents and captions in, one loss per modality out.

Captions are stored as features; the connectors turn them into contexts in every step, frozen and without gradients.
LTX-Video has none: both its modalities read the features, with their mask.
An example that lacks a modality takes no loss from it, and its other modality does not look at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.text_encoders.gemma.embeddings import EmbeddingsProcessor
from ltx_core.text_encoders.gemma.feature_extractor import PromptFeatures
from ltx_trainer.draws import Draws
from ltx_trainer.training_strategies.inputs import Batch, Losses, ModalityInputs, Source, TrainingInputs
from ltx_trainer.training_strategies.strategies import Strategy

#: The attention through which a modality reaches the other one.
READERS = {"audio": PerturbationType.SKIP_A2V_CROSS_ATTN, "video": PerturbationType.SKIP_V2A_CROSS_ATTN}

MASK = "mask"  # of the text, among contexts
Contexts = Mapping[str, Tensor]
BatchSource = Callable[[int, int, int], Iterator[Batch]]  # (first micro-step, rank, world size)
Export = Callable[[Path, int, Mapping[str, Tensor]], list[Path]]  # (folder, step, weights by name in the transformer)
Validate = Callable[[int, Path], Mapping[str, float]]


class TransformerObjective(nn.Module):
    """Transformer, connectors and strategy: ``(batch, draws)`` to the losses of one micro-step."""

    def __init__(
        self,
        transformer: LTXModel,
        connectors: EmbeddingsProcessor | None,
        strategy: Strategy,
        caption_dropout: float = 0.0,
        empty_caption: Source | None = None,
        mark_keyframes: bool = True,
    ) -> None:
        """``empty_caption`` is the record that dropped captions become. ``mark_keyframes``: mark the target's first
        latent frame for models with a keyframe embedding, as sampling does.

        Raises `ConfigError` when captions are dropped and there is no empty one.
        """
        super().__init__()
        self.levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)  # noise levels of the held-out loss
        if caption_dropout > 0 and empty_caption is None:
            raise ConfigError(f"caption_dropout is {caption_dropout}, which needs the features of the empty caption")
        self.transformer = transformer
        self.connectors = None if connectors is None else connectors.requires_grad_(False)
        self.strategy = strategy
        self.caption_dropout, self.empty_caption = caption_dropout, empty_caption
        self.mark_keyframes = mark_keyframes
        self.reference_factors: tuple[int, int] | None = None
        self.observed: dict[str, tuple[Tensor, Tensor]] = {}  # modality -> sigmas and losses of the last batch

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """``loss`` is minimised; ``loss_video`` and ``loss_audio`` are plain means over the examples that have them."""
        device = next(self.transformer.parameters()).device
        batch = {key: to_device(source, device) for key, source in batch.items()}
        inputs, contexts = self.prepare(self.strategy, batch, draws)
        losses = self.strategy.compute_loss(self.predict(inputs, contexts), inputs)
        self.observed = {name: examples_with(inputs.modalities[name], loss) for name, loss in losses.modalities.items()}
        return {"loss": losses.total.mean(), **mean_losses(losses, inputs)}

    def prepare(self, strategy: Strategy, batch: Batch, draws: Draws) -> tuple[TrainingInputs, Contexts]:
        """Inputs and contexts of the transformer, and with them what it is to predict."""
        inputs = strategy.prepare_training_inputs(batch, draws)
        self._keep_reference_factors(inputs.reference_factors)
        return inputs, self.contexts(self._with_dropped_captions(batch["conditions"], draws))

    def predict(self, inputs: TrainingInputs, contexts: Contexts) -> dict[str, Tensor]:
        """Velocities ``[B, T, C]`` in float32, by modality."""
        dtype = working_dtype(self.transformer)
        modalities = {
            name: self._modality(name, modality, contexts[name].to(dtype), dtype, contexts.get(MASK))
            for name, modality in inputs.modalities.items()
        }
        found = self.transformer(modalities.get("video"), modalities.get("audio"), skip_absent(inputs))
        pairs = zip(("video", "audio"), found, strict=True)
        return {name: velocity.float() for name, velocity in pairs if velocity is not None}

    @torch.no_grad()
    def contexts(self, conditions: Source) -> dict[str, Tensor]:
        """Contexts of the transformer, ``{modality: [B, S, C]}``, from stored caption features.

        Without connectors also their mask ``[B, S]``, as ``mask``.
        """
        device = next(self.transformer.parameters()).device
        if self.connectors is None:
            text = conditions["prompt_embeds"]
            return {"video": text, "audio": text, MASK: conditions["prompt_attention_mask"]}
        dtype = next(self.connectors.parameters()).dtype
        shared = conditions.get("prompt_embeds")
        video = conditions.get("video_prompt_embeds", shared)
        audio = conditions.get("audio_prompt_embeds", shared)
        if video is None:
            raise ConfigError(f"a caption holds {', '.join(conditions)}, expected video_prompt_embeds")
        if self.connectors.audio_connector is None:
            audio = None
        elif audio is None:
            raise ConfigError("a caption holds no audio_prompt_embeds, which the model's audio needs")
        with torch.autocast(device.type, enabled=False):
            features = PromptFeatures(
                video.to(device, dtype),
                None if audio is None else audio.to(device, dtype),
                conditions["prompt_attention_mask"].to(device),
            )
            encoded = self.connectors(features)
        found = {"video": encoded.video_context, "audio": getattr(encoded, "audio_context", None)}
        return {name: context for name, context in found.items() if context is not None}

    def sigma_losses(self) -> dict[str, tuple[list[float], list[float]]]:
        """(sigmas, element losses) of the last batch, by modality. Waits for the device."""
        return {name: (sigma.tolist(), loss.tolist()) for name, (sigma, loss) in self.observed.items()}

    def _modality(
        self, name: str, inputs: ModalityInputs, context: Tensor, dtype: torch.dtype, mask: Tensor | None
    ) -> Modality:
        marked = self.mark_keyframes and name == "video"
        return Modality(
            latent=inputs.latent.to(dtype),
            sigma=inputs.sigma,
            timesteps=inputs.timesteps,
            positions=inputs.positions,
            context=context,
            context_mask=mask,
            keyframes_mask=inputs.first_frame_mask() if marked else None,
        )

    def _with_dropped_captions(self, conditions: Source, draws: Draws) -> Source:
        """Replace captions by the empty one, each with probability ``caption_dropout``."""
        if self.caption_dropout <= 0 or self.empty_caption is None:
            return conditions
        mask = conditions["prompt_attention_mask"]
        dropped = draws.rand((mask.shape[0],)).to(mask.device) < self.caption_dropout
        replaced = dict(conditions)
        for name, empty in self.empty_caption.items():
            if name in conditions and isinstance(empty, Tensor):
                given = conditions[name]
                chosen = dropped.view(-1, *[1] * (given.ndim - 1))
                replaced[name] = torch.where(chosen, empty.to(given.device, given.dtype), given)
        return replaced

    def _keep_reference_factors(self, factors: tuple[int, int] | None) -> None:
        if factors is None:
            return
        if self.reference_factors not in (None, factors):
            raise ConfigError(
                f"references have scale factors (spatial, temporal) {factors}, others had {self.reference_factors}"
            )
        self.reference_factors = factors


def working_dtype(network: nn.Module) -> torch.dtype:
    """The dtype the transformer computes in: that of autocast where it is on, else of its weights."""
    first = next(p for p in network.parameters() if p.dtype.is_floating_point and p.dtype.itemsize > 1)
    device = first.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else first.dtype


def to_device(source: Any, device: torch.device) -> Any:
    """Latents, captions and masks on ``device``; numbers ``[B]`` stay on the CPU, where they are read."""
    if not isinstance(source, Mapping):
        return source
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) and value.ndim > 1 else value
        for name, value in source.items()
    }


def skip_absent(inputs: TrainingInputs) -> BatchedPerturbationConfig | None:
    """Keep each modality that an example lacks out of the other one's sight."""
    if len(inputs.modalities) < 2 or all(modality.present is None for modality in inputs.modalities.values()):
        return None
    count = next(iter(inputs.modalities.values())).latent.shape[0]
    skipped: list[list[Perturbation]] = [[] for _ in range(count)]
    for name, modality in inputs.modalities.items():
        present = [True] * count if modality.present is None else modality.present.tolist()
        for row, is_there in zip(skipped, present, strict=True):
            if not is_there:
                row.append(Perturbation(READERS[name]))
    return BatchedPerturbationConfig([PerturbationConfig(row) for row in skipped])


def examples_with(modality: ModalityInputs, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Sigma and loss of the examples that have a modality."""
    sigma, loss = modality.sigma.detach(), loss.detach()
    if modality.present is None:
        return sigma, loss
    present = modality.present.to(loss.device).bool()
    return sigma[present], loss[present]


def mean_losses(losses: Losses, inputs: TrainingInputs) -> dict[str, Tensor]:
    """``loss_<modality>``: means over the examples that have the modality."""
    means = {}
    for name, loss in losses.modalities.items():
        present = inputs.modalities[name].present
        weight = torch.ones_like(loss) if present is None else present.to(loss)
        means[f"loss_{name}"] = (loss * weight).sum() / weight.sum().clamp(min=1)
    return means


@dataclass(frozen=True)
class TransformerTask:
    """A `ltx_trainer.loop.Task`: what is trained, where batches come from, how weights are written and judged."""

    module: TransformerObjective
    source: BatchSource
    write: Export
    judge: Validate | None = None

    def batches(self, first_micro_step: int, rank: int, world_size: int) -> Iterator[Batch]:
        return self.source(first_micro_step, rank, world_size)

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        return {} if self.judge is None else self.judge(step, folder)

    def export(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        prefix = "transformer."
        return self.write(
            folder, step, {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        )
