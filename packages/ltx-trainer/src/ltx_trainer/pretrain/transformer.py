"""The transformer from nothing, together with the text projection and the connectors that feed it.

Text arrives as tokens and passes through a frozen language model in every step, so that a caption may be worded anew
each time it is met. Every step draws a mode (text to both, one modality given, one alone, conditions) and a noise level
per modality; now and then a sample's modalities do not see each other, which guidance relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.sampling.denoisers import ISOLATED, UNPERTURBED
from ltx_core.text_encoders.gemma.backbone import GemmaBackbone
from ltx_core.text_encoders.gemma.config import EmbeddingsConfig
from ltx_core.text_encoders.gemma.embeddings import AVGemmaEncoderOutput, EmbeddingsProcessor
from ltx_core.text_encoders.gemma.tokenizer import TokenBatch
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_trainer.draws import Draws
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.task import PretrainTask, add_prefix, read_first, say_first
from ltx_trainer.timestep_samplers import ShiftedLogitNormalTimestepSampler
from ltx_trainer.training_strategies.config import FlexibleConfig
from ltx_trainer.training_strategies.inputs import (
    Batch,
    ModalityInputs,
    TrainingInputs,
    audio_tokens,
    velocity_inputs,
    video_tokens,
)
from ltx_trainer.training_strategies.strategies import FlexibleStrategy
from ltx_trainer.transformer_task import mean_losses, working_dtype

DIFFUSION_MODEL = "model.diffusion_model."
FIXED_SIGMAS = (1.0, 0.75, 0.5, 0.25)  # noise levels of the held-out loss
HELD_OUT_SEED = 1234
FORMS = 64  # lengths, batch sizes and modes of a run; past the limit torch goes on without compiling
CAPTIONS_AT_ONCE = 64  # which attend in one row, each to itself
SOURCES = ("video", "audio", "reference", "keyframe")  # latents of a batch
LEAST_VARIANCE = 1e-4  # of the largest: axes with less are noise

Judge = Callable[["TransformerTrainer", int, Path], Mapping[str, float]]


@dataclass(frozen=True)
class Mode:
    """One kind of training step and how often it is taken, relative to the others that clips are long enough for."""

    weight: float
    config: FlexibleConfig
    least_frames: int = 1  # latent ones


@dataclass(frozen=True)
class TextModel:
    """The frozen language model, with its config as in ``config.json``."""

    backbone: GemmaBackbone
    config: Mapping[str, Any]


@dataclass(frozen=True)
class NoisyTimestepSampler(ShiftedLogitNormalTimestepSampler):
    """The shifted logit-normal of a longer sequence than these few tokens are.

    What a prompt says can be seen in a clip until it is nearly all noise; at the shift of 162 tokens only one sample in
    seventeen has a sigma above 0.9, where there is anything to learn from the prompt. Here it is one in five, while the
    uniform share sees to what is decided late: where exactly things are.
    """

    uniform_prob: float = 0.35
    least_tokens: int = 4096

    def sample(self, draws: Draws, batch: int, tokens: int) -> Tensor:
        """Sigmas ``[B]`` float32."""
        return super().sample(draws, batch, max(tokens, self.least_tokens))


class TransformerTrainer(nn.Module):
    """Transformer, embeddings processor and their objective.

    Of a video latent the first ``code_channels`` count (0: all); the others are neither seen nor said.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        text: TextModel,
        modes: Sequence[Mode],
        isolated_share: float = 0.1,
        code_channels: int = 0,
    ) -> None:
        super().__init__()
        self.transformer = LTXModel(TransformerConfig.from_metadata(config))
        self.code_channels = code_channels
        if code_channels:
            read_first(self.transformer.get_submodule("patchify_proj"), code_channels)
            say_first(self.transformer.get_submodule("proj_out"), code_channels)
        self.embeddings = EmbeddingsProcessor(EmbeddingsConfig.from_metadata(config, text.config))
        self.backbone = text.backbone.requires_grad_(False)
        factors = SpatioTemporalScaleFactors.from_model_config(config)
        sampler = NoisyTimestepSampler()
        self.strategies = [FlexibleStrategy(sampler, factors, mode.config) for mode in modes]
        self.modes = list(modes)
        self.isolated_share, self.factors = isolated_share, factors

    def forward(self, batch: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """A batch of latents ``video`` ``[B, C, F, H, W]``, ``audio`` ``[B, C, L, M]`` and token rows to losses."""
        device = self.device
        sources = latent_sources(batch, device)
        frames = batch["video"].shape[2]
        weights = [mode.weight if frames >= mode.least_frames else 0.0 for mode in self.modes]
        strategy = self.strategies[pick(float(draws.rand(())), weights)]
        inputs = strategy.prepare_training_inputs(sources, draws)
        isolated = (draws.rand((batch["video"].shape[0],)) < self.isolated_share).tolist()
        predictions = self.predict(inputs, self.contexts(batch), isolated)
        losses = strategy.compute_loss(self.mask_channels(predictions, inputs), inputs)
        return {"loss": losses.total.mean(), "loss_video": zero(device), "loss_audio": zero(device)} | mean_losses(
            losses, inputs
        )

    def mask_channels(self, predictions: Mapping[str, Tensor], inputs: TrainingInputs) -> dict[str, Tensor]:
        """Predictions whose mean squared error is that of the channels that count."""
        found, count = dict(predictions), self.code_channels
        targets = inputs.modalities["video"].targets if "video" in found else None
        if count and targets is not None:
            channels = targets.shape[-1]
            error = (found["video"][:, -targets.shape[1] :] - targets) * (channels / count) ** 0.5
            error = torch.cat([error[..., :count], torch.zeros_like(error[..., count:])], dim=-1)
            found["video"] = targets + error
        return found

    def compile(self, **options: Any) -> None:
        """Compile the blocks, which is where the time goes, once for every form of a step; ``options`` as
        ``torch.compile``.
        """
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
        self.transformer.compile_blocks(**options)

    def contexts(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contexts of the transformer, by modality, from ``input_ids`` and ``attention_mask`` ``[B, T]``."""
        tokens = TokenBatch(batch["input_ids"], batch["attention_mask"])
        extractor = self.embeddings.feature_extractor
        assert extractor is not None
        total = extractor.start(tokens.attention_mask.to(self.device))
        self.backbone(tokens, total.add)
        output = self.embeddings(total.features())
        assert isinstance(output, AVGemmaEncoderOutput)
        return {"video": output.video_context, "audio": output.audio_context}

    def predict(
        self, inputs: TrainingInputs, contexts: Mapping[str, Tensor], isolated: Sequence[bool] = ()
    ) -> dict[str, Tensor]:
        """Velocities ``[B, T, C]`` in float32, by modality; ``isolated`` samples keep their modalities apart."""
        dtype = working_dtype(self.transformer)
        given = {
            name: self._modality(name, modality, contexts[name].to(dtype), dtype)
            for name, modality in inputs.modalities.items()
        }
        apart = None
        if any(isolated) and len(given) == 2:
            apart = BatchedPerturbationConfig([ISOLATED if alone else UNPERTURBED for alone in isolated])
        found = self.transformer(given.get("video"), given.get("audio"), apart)
        pairs = zip(("video", "audio"), found, strict=True)
        return {name: velocity.float() for name, velocity in pairs if velocity is not None}

    def _modality(self, name: str, inputs: ModalityInputs, context: Tensor, dtype: torch.dtype) -> Modality:
        latent = inputs.latent.to(dtype)
        if name == "video" and self.code_channels:
            latent = torch.cat(
                [latent[..., : self.code_channels], torch.zeros_like(latent[..., self.code_channels :])], dim=-1
            )
        return Modality(
            latent=latent,
            sigma=inputs.sigma,
            timesteps=inputs.timesteps,
            positions=inputs.positions,
            context=context,
        )

    def at_sigma(self, batch: Mapping[str, Tensor], sigma: float, draws: Draws) -> TrainingInputs:
        """Both modalities noised to one level."""
        sources = latent_sources(batch, self.device)
        tokens = {
            "video": video_tokens(sources["video_latents"], self.factors),
            "audio": audio_tokens(sources["audio_latents"]),
        }
        modalities = {}
        for name, token in tokens.items():
            level = torch.full((token.clean.shape[0],), sigma, device=token.clean.device)
            noise = draws.randn(token.clean.shape).to(token.clean)
            modalities[name] = velocity_inputs(token, level, noise)
        return TrainingInputs(modalities)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device


class TransformerTask(PretrainTask):
    """Train a `TransformerTrainer`; ``held_out`` is a batch for losses at fixed sigmas, ``judge`` makes samples."""

    name = "transformer"
    module: TransformerTrainer

    def __init__(
        self,
        config: Mapping[str, Any],
        trainer: TransformerTrainer,
        examples: Examples,
        held_out: Mapping[str, Tensor] | None = None,
        judge: Judge | None = None,
    ) -> None:
        super().__init__(trainer, examples)
        self.given_config, self.held_out, self.judge = dict(config), held_out, judge

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        with torch.compiler.set_stance("force_eager"):  # these forms are met too seldom to compile for them
            figures = {} if self.held_out is None else held_out_losses(self.module, self.held_out)
            return figures if self.judge is None else {**figures, **self.judge(self.module, step, folder)}

    def tensors(self) -> dict[str, Tensor]:
        embeddings = {
            name.replace("feature_extractor.", "text_embedding_projection.")
            if name.startswith("feature_extractor.")
            else DIFFUSION_MODEL + name.replace("_connector.", "_embeddings_connector.", 1): tensor
            for name, tensor in self.module.embeddings.state_dict().items()
        }
        return add_prefix(DIFFUSION_MODEL, self.module.transformer.state_dict()) | embeddings

    def config(self) -> dict[str, Any]:
        return {name: self.given_config[name] for name in ("transformer", "scheduler") if name in self.given_config}


@torch.no_grad()
def start_distinct(trainer: TransformerTrainer, tokens: TokenBatch) -> None:
    """Let fresh text projections give features of unit spread that do not go together, over the tokens of captions.

    The states of a language model have a large part in common: one word for another changes features drawn at random
    by a hundredth, and the transformer takes long to hear the difference.
    """
    extractor = trainer.embeddings.feature_extractor
    assert extractor is not None

    def states_of(part: TokenBatch) -> Tensor:
        lengths, states = part.attention_mask.sum(1).tolist(), list[Tensor]()
        trainer.backbone(part, lambda state: states.append(extractor.normalize(state, lengths)))
        return torch.stack(states, dim=2).flatten(1)

    parts = zip(*(rows.split(CAPTIONS_AT_ONCE) for rows in (tokens.input_ids, tokens.attention_mask)), strict=True)
    x = torch.cat([states_of(TokenBatch(*part)) for part in parts]).double()  # [n, D * L]
    mean = x.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov(x.T))  # rising
    for linear in extractor.projections.values():
        count = linear.out_features
        weight = axes[:, -count:].T / (variances[-count:, None] + LEAST_VARIANCE * variances[-1]).sqrt()
        scale = (count / extractor.config.hidden_size) ** 0.5  # the extractor multiplies by
        linear.weight.copy_(weight / scale)
        linear.bias.copy_(-(weight @ mean))


def held_out_losses(trainer: TransformerTrainer, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Velocity losses at fixed noise levels, the same noise each time."""
    from ltx_trainer.draws import step_draws

    figures: dict[str, float] = {}
    contexts = trainer.contexts(batch)
    for sigma in FIXED_SIGMAS:
        inputs = trainer.at_sigma(batch, sigma, step_draws("cpu", HELD_OUT_SEED, sigma))
        for name, velocity in trainer.mask_channels(trainer.predict(inputs, contexts), inputs).items():
            target = inputs.modalities[name].targets
            assert target is not None
            figures[f"held_out_{name}_{sigma:g}"] = float((velocity - target.float()).square().mean())
    return figures


def latent_sources(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    """Stacked latents in the form the strategies read, in float32."""
    latents = {name: batch[name].to(device, non_blocking=True).float() for name in SOURCES if name in batch}
    sources = {"video_latents": {"latents": latents["video"], "fps": batch["fps"]}}
    sources["audio_latents"] = {"latents": latents["audio"]}
    if "reference" in latents:
        sources["reference"] = {"latents": latents["reference"], "fps": batch["fps"]}
    if "keyframe" in latents:
        sources["keyframe_latents"] = {"latents": latents["keyframe"], "frames": batch["keyframe_number"][:, None]}
    return sources


def pick(at: float, weights: Sequence[float]) -> int:
    """The index that a point in [0, 1) falls on when the weights are laid end to end; one must be positive."""
    if not any(weight > 0 for weight in weights):
        raise ConfigError("no kind of training step is left, expected one with a weight that clips are long enough for")
    point = at * sum(weights)
    for index, weight in enumerate(weights):
        if point < weight:
            return index
        point -= weight
    return len(weights) - 1


def zero(device: torch.device) -> Tensor:
    return torch.zeros((), device=device)
