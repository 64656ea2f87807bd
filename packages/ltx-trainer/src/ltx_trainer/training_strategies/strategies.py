"""From a batch of stored latents to what the transformer sees and where the loss is taken.

Draw order, per modality, video first: sigma, noise, one uniform per example and intrinsic condition, one scalar per
reference or keyframe image, which for any frame is followed by one uniform per example. A frozen modality draws no
noise. The two deprecated forms keep their own order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_trainer.draws import Draws
from ltx_trainer.timestep_samplers import NoiseLevels
from ltx_trainer.training_strategies.config import (
    Condition,
    DistillationConfig,
    FirstFrame,
    FlexibleConfig,
    Keyframe,
    KeyframeImage,
    Mask,
    ModalityConfig,
    Prefix,
    Reference,
    SpatialCrop,
    StrategyConfig,
    Suffix,
    TextToVideoConfig,
    VideoToVideoConfig,
)
from ltx_trainer.training_strategies.inputs import (
    Batch,
    Losses,
    ModalityInputs,
    Source,
    Tokens,
    TrainingInputs,
    audio_tokens,
    frozen_inputs,
    give_tokens,
    keyframe_tokens,
    masked_velocity_loss,
    velocity_inputs,
    video_tokens,
    video_tools,
)


@dataclass(frozen=True)
class Strategy:
    """Base of all strategies: the sampler of noise levels, the VAE's factors, the loss."""

    sampler: NoiseLevels
    scale_factors: SpatioTemporalScaleFactors
    causal: bool = field(default=True, kw_only=True)  # the first latent frame stands for one pixel frame

    def prepare_training_inputs(self, batch: Batch, draws: Draws) -> TrainingInputs:
        """Noise, condition and place the tokens of ``batch``."""
        raise NotImplementedError

    def compute_loss(self, predictions: Mapping[str, Tensor], inputs: TrainingInputs) -> Losses:
        """Velocity losses of ``predictions`` ``{modality: [B, T, C]}``."""
        losses = {
            name: masked_velocity_loss(predictions[name], modality)
            for name, modality in inputs.modalities.items()
            if modality.targets is not None
        }
        weights: dict[str, float | Tensor] = {name: inputs.loss_weights.get(name, 1.0) for name in losses}
        if inputs.balance:
            weights = {name: weight / target_power(inputs.modalities[name]) for name, weight in weights.items()}
        total = sum(weights[name] * loss for name, loss in losses.items())
        assert isinstance(total, Tensor)
        return Losses(total, losses)

    def video_tokens(self, source: Source) -> Tokens:
        """Tokens of a stored video latent."""
        return video_tokens(source, self.scale_factors, causal=self.causal)

    def add_noise(self, tokens: Tokens, draws: Draws, sigma: Tensor | None = None) -> ModalityInputs:
        """Noise ``tokens`` at ``sigma``, drawn for their number when not given."""
        batch, count = tokens.clean.shape[:2]
        if sigma is None:
            sigma = self.sampler.sample(draws, batch, count).to(tokens.clean.device)
        noise = draws.randn(tokens.clean.shape, tokens.clean.dtype).to(tokens.clean.device)
        return velocity_inputs(tokens, sigma, noise)


@dataclass(frozen=True)
class FlexibleStrategy(Strategy):
    """Any mix of generated and frozen modalities with conditions."""

    config: FlexibleConfig | DistillationConfig

    def prepare_training_inputs(self, batch: Batch, draws: Draws) -> TrainingInputs:
        modalities: dict[str, ModalityInputs] = {}
        factors = self._reference_factors(batch)
        for name, modality in self.config.modalities():
            source = batch[f"{name}_latents"]
            tokens = self.video_tokens(source) if name == "video" else audio_tokens(source)
            inputs = self.add_noise(tokens, draws) if modality.is_generated else frozen_inputs(tokens)
            if modality.is_generated:
                inputs = self._apply_intrinsic(inputs, tokens, modality, batch, draws)
            for condition in modality.conditions:
                if isinstance(condition, Reference) and float(draws.rand(())) < condition.probability:
                    reference = self._reference(name, batch[condition.latents_dir], tokens, factors)
                    inputs = inputs.with_reference(reference)
                elif isinstance(condition, KeyframeImage) and float(draws.rand(())) < condition.probability:
                    inputs = inputs.with_reference(self._keyframe(condition, batch, draws))
            if modality.loss_mask_dir is not None:
                inputs = replace(inputs, loss_weight=batch[modality.loss_mask_dir]["mask"].flatten(1))
            modalities[name] = without_absent(inputs, source.get("present"))
        weights = {name: modality.loss_weight for name, modality in self.config.modalities()}
        return TrainingInputs(modalities, factors, weights, self.config.balance)

    def _apply_intrinsic(
        self, inputs: ModalityInputs, tokens: Tokens, modality: ModalityConfig, batch: Batch, draws: Draws
    ) -> ModalityInputs:
        for condition in modality.conditions:
            if isinstance(condition, Reference | KeyframeImage):
                continue
            count = tokens.clean.shape[0]
            selected = draws.rand((count,)).to(tokens.clean.device) < condition.probability
            given = self._given_tokens(condition, tokens, batch).to(tokens.clean.device)
            inputs = give_tokens(inputs, tokens.clean, selected.unsqueeze(1) & given)
        return inputs

    def _given_tokens(self, condition: Condition, tokens: Tokens, batch: Batch) -> Tensor:
        """Mask of the tokens that an intrinsic condition gives: boolean ``[1 or B, N]``."""
        if isinstance(condition, Mask):
            return batch[condition.mask_dir]["mask"].flatten(1) > 0.5
        given = torch.zeros(tokens.grid, dtype=torch.bool)  # [F, H, W]
        match condition:
            case FirstFrame():
                given[0] = True
            case Prefix():
                given[: condition.temporal_boundary] = True
            case Suffix():
                given[-condition.temporal_boundary :] = True
            case Keyframe():
                if not -len(given) <= condition.latent_index < len(given):
                    raise ConfigError(
                        f"keyframe latent_index is {condition.latent_index}, the clip has {len(given)} latent frames"
                    )
                given[condition.latent_index] = True
            case SpatialCrop():
                y1, x1, y2, x2 = condition.spatial_region
                _, rows, columns = self.scale_factors
                given[:, y1 // rows : y2 // rows, x1 // columns : x2 // columns] = True
        return given.flatten().unsqueeze(0)

    def _reference(
        self, name: str, source: Mapping[str, Tensor], target: Tokens, factors: tuple[int, int] | None
    ) -> Tokens:
        if name == "audio":
            return audio_tokens(source)
        assert factors is not None
        return placed_reference(self.video_tokens(source), target, *factors)

    def _keyframe(self, condition: KeyframeImage, batch: Batch, draws: Draws) -> Tokens:
        """The tokens of one picture of every example."""
        pictures, frames = (batch[condition.latents_dir][name] for name in ("latents", "frames"))  # [B, C, K, H, W]
        tools = video_tools(batch["video_latents"], self.scale_factors, causal=self.causal)
        rows, stored = torch.arange(len(frames)), frames.shape[1]
        if condition.frame == "any":
            places = (draws.rand((len(frames),)) * stored).long().to(frames.device)
        else:
            count = tools.target_shape.upscale(self.scale_factors).frames
            found = frames == (condition.frame + count if condition.frame < 0 else condition.frame)
            if not bool(found.any(dim=1).all()):
                raise ConfigError(
                    f"keyframe_image asks for frame {condition.frame} of {count}, {condition.latents_dir} holds frames "
                    f"{', '.join(map(str, frames[0].tolist()))}; data.sets.keyframes names them"
                )
            places = found.int().argmax(dim=1)
        return keyframe_tokens(pictures[rows, :, places], frames[rows, places].tolist(), tools)

    def _reference_factors(self, batch: Batch) -> tuple[int, int] | None:
        """(spatial, temporal) ratio of target to video references, which all must share."""
        if self.config.video is None:
            return None
        target = batch["video_latents"]["latents"].shape
        found = {
            reference_factors(tuple(target[2:]), tuple(batch[condition.latents_dir]["latents"].shape[2:]))
            for condition in self.config.video.conditions
            if isinstance(condition, Reference)
        }
        if len(found) > 1:
            raise ConfigError(f"references have different scale factors (spatial, temporal): {sorted(found)}")
        return found.pop() if found else None


@dataclass(frozen=True)
class TextToVideoStrategy(Strategy):
    """Deprecated form: the first-frame draw comes before sigma, and sound shares the video's sigma."""

    config: TextToVideoConfig

    def prepare_training_inputs(self, batch: Batch, draws: Draws) -> TrainingInputs:
        tokens = video_tokens(batch["latents"], self.scale_factors)
        video = first_frame_then_noise(self, tokens, self.config.first_frame_conditioning_p, draws)
        modalities = {"video": video}
        if self.config.with_audio:
            modalities["audio"] = self.add_noise(audio_tokens(batch["audio_latents"]), draws, video.sigma)
        return TrainingInputs(modalities)


@dataclass(frozen=True)
class VideoToVideoStrategy(Strategy):
    """Deprecated form: one reference video, always, in the target's frame rate."""

    config: VideoToVideoConfig

    def prepare_training_inputs(self, batch: Batch, draws: Draws) -> TrainingInputs:
        tokens = video_tokens(batch["latents"], self.scale_factors)
        target_fps = batch["latents"].get("fps")
        fps = None if target_fps is None else float(target_fps.flatten()[0])
        reference = video_tokens(batch["ref_latents"], self.scale_factors, fps)
        spatial, _ = reference_factors((1, *tokens.grid[1:]), (1, *reference.grid[1:]))
        video = first_frame_then_noise(self, tokens, self.config.first_frame_conditioning_p, draws)
        video = video.with_reference(placed_reference(reference, tokens, spatial, 1))
        return TrainingInputs({"video": video}, (spatial, 1))


def make_strategy(
    config: StrategyConfig, sampler: NoiseLevels, factors: SpatioTemporalScaleFactors, causal: bool = True
) -> Strategy:
    """The strategy of a ``training_strategy`` section."""
    match config:
        case FlexibleConfig() | DistillationConfig():
            return FlexibleStrategy(sampler, factors, config, causal=causal)
        case TextToVideoConfig():
            return TextToVideoStrategy(sampler, factors, config)
        case VideoToVideoConfig():
            return VideoToVideoStrategy(sampler, factors, config)


def first_frame_then_noise(strategy: Strategy, tokens: Tokens, probability: float, draws: Draws) -> ModalityInputs:
    """Noise a video whose first latent frame is given with ``probability``; stills never have it given."""
    batch, count = tokens.clean.shape[:2]
    given = torch.zeros(batch, count, dtype=torch.bool, device=tokens.clean.device)
    if probability > 0 and tokens.tokens_per_frame < count:
        selected = draws.rand((batch,)).to(given.device) < probability
        given[:, : tokens.tokens_per_frame] = selected.unsqueeze(1)
    return give_tokens(strategy.add_noise(tokens, draws), tokens.clean, given)


def reference_factors(target: tuple[int, ...], reference: tuple[int, ...]) -> tuple[int, int]:
    """(spatial, temporal) ratio of two latent grids ``(F, H, W)``.

    Raises `ConfigError` when the target is not a whole multiple of the reference, equal on both sides.
    """
    (frames, height, width), (ref_frames, ref_height, ref_width) = target, reference
    spatial = height // ref_height
    if spatial < 1 or (ref_height * spatial, ref_width * spatial) != (height, width):
        raise ConfigError(
            f"the reference latent is {ref_height}x{ref_width}, expected {height}x{width} divided by one whole number"
        )
    if frames == 1 or ref_frames == 1:
        return spatial, 1
    temporal, remainder = divmod(frames - 1, ref_frames - 1)
    if remainder or temporal < 1:
        raise ConfigError(
            f"the reference has {ref_frames} latent frames, expected (k + 1) with k dividing {frames - 1}"
        )
    return spatial, temporal


def placed_reference(reference: Tokens, target: Tokens, spatial: int, temporal: int) -> Tokens:
    """Positions of a smaller or slower reference, stretched onto the target's."""
    positions = reference.positions.clone()
    if temporal != 1:
        first_end = target.positions[:, :1, :1, 1:]  # [B, 1, 1, 1] seconds
        positions[:, :1] = (positions[:, :1] - (temporal - 1) * first_end).clamp(min=0)
    positions[:, 1:] *= spatial
    return replace(reference, positions=positions)


def target_power(inputs: ModalityInputs) -> Tensor:
    """The mean square of what a modality is to predict, over the whole batch."""
    assert inputs.targets is not None
    return inputs.targets.float().square().mean().clamp(min=1e-8)


def without_absent(inputs: ModalityInputs, present: Tensor | None) -> ModalityInputs:
    """Take no loss from examples that lack the modality (``present`` ``[B]`` is false there)."""
    if present is None or bool(present.all()):
        return inputs
    mask = inputs.loss_mask & present.to(inputs.loss_mask.device).bool().unsqueeze(1)
    return replace(inputs, loss_mask=mask, present=present)
