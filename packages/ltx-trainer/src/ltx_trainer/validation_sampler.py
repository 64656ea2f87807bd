"""Samples made while training, by the denoising loop that generation uses: one stage, Euler, multi-modal guidance.

A `PreparedSample` holds everything that does not change during a run: text contexts and encoded conditions, on the CPU.
`ValidationSampler` makes latents of it with the weights of the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.schedulers import DISTILLED_SIGMAS, LTX2Scheduler
from ltx_core.conditioning.item import ConditioningItem
from ltx_core.conditioning.tools import AudioLatentTools, LatentTools, VideoLatentTools, latent_tools
from ltx_core.conditioning.types.keyframe_cond import VideoConditionByKeyframeIndex
from ltx_core.conditioning.types.latent_cond import VideoConditionByLatentIndex
from ltx_core.conditioning.types.mask_cond import VideoConditionByMask
from ltx_core.conditioning.types.reference_cond import (
    AudioConditionByReferenceLatent,
    VideoConditionByReferenceLatent,
)
from ltx_core.errors import ConditioningError, ConfigError
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.sampling.denoisers import GuidedDenoiser
from ltx_core.sampling.loop import SamplingStep, denoise
from ltx_core.sampling.modality import States
from ltx_core.sampling.stage import Noiser, StreamStart, begin_streams, finish_streams
from ltx_core.types import (
    AUDIO_LATENT_CHANNELS,
    AUDIO_MEL_BINS,
    VIDEO_LATENT_CHANNELS,
    AudioLatentShape,
    LatentState,
    SpatioTemporalScaleFactors,
    VideoPixelShape,
)
from ltx_trainer.comparison import Clip
from ltx_trainer.validation_config import (
    SampleAudioToVideo,
    SampleCondition,
    SampleFirstFrame,
    SampleKeyframe,
    SampleKeyframeImage,
    SampleMask,
    SamplePrefix,
    SampleReference,
    SampleSpatialCrop,
    SampleSuffix,
    SampleVideoToAudio,
    ValidationConfig,
    ValidationSample,
)


@dataclass(frozen=True)
class EncodedCondition:
    """A condition of a sample and what its file became: a latent, and for masks the latent mask."""

    condition: SampleCondition
    latent: Tensor  # [1, C, F, H, W] or [1, C, T, M]
    mask: Tensor | None = None  # [F, H, W] or [T], 1 = given


@dataclass(frozen=True)
class PreparedSample:
    """A sample that needs no file any more. Contexts are ``{modality: [1, S, C]}``."""

    shape: VideoPixelShape
    seed: int
    contexts: Mapping[str, Tensor]
    negative_contexts: Mapping[str, Tensor]
    conditions: tuple[EncodedCondition, ...] = ()
    prompt: str = ""
    pictures: Mapping[int, Tensor] = field(default_factory=dict)  # condition index -> its frames, to show beside
    references: tuple[Clip, ...] = ()  # what it was given, for the sheet
    truth: Clip | None = None  # what it should become


@dataclass(frozen=True)
class HeldAudio:
    """Holds audio latent frames where ``mask`` ``[T]`` is 1 at those of ``latent`` ``[1, C, T, M]``."""

    latent: Tensor
    mask: Tensor

    def apply_to(self, latent_state: LatentState, latent_tools: AudioLatentTools) -> LatentState:
        tokens = latent_tools.patchifier.patchify(self.latent).to(latent_state.latent)
        latent_tools.check_target_tokens(latent_state, "an audio condition")
        given = self.mask.to(tokens.device).view(1, -1, 1).bool()
        return replace(
            latent_state,
            clean_latent=torch.where(given, tokens, latent_state.clean_latent),
            denoise_mask=latent_state.denoise_mask.masked_fill(given, 0.0),
        )


def keyframes_of(sample: PreparedSample) -> list[int]:
    """The pixel frames at which a sample is given pictures."""
    given = (encoded.condition for encoded in sample.conditions)
    return [range(sample.shape.frames)[one.frame] for one in given if isinstance(one, SampleKeyframeImage)]


def sample_shape(config: ValidationConfig, sample: ValidationSample) -> VideoPixelShape:
    """The pixels of a sample: its own size, else the section's."""
    width, height, frames = sample.video_dims or config.video_dims
    return VideoPixelShape(1, frames, height, width, config.frame_rate)


def sample_seed(config: ValidationConfig, sample: ValidationSample) -> int:
    return config.seed if sample.seed is None else sample.seed


@dataclass(frozen=True)
class ValidationSampler:
    """Makes the latents of prepared samples. ``transformer`` is the network being trained.

    ``config`` is the section validation: steps or noise levels, and guidance. ``scale_factors`` are pixels per latent
    cell of the video VAE; ``dtype`` is that of latents and contexts while they are denoised, bfloat16 by default.
    """

    config: ValidationConfig
    transformer: LTXModel
    scale_factors: SpatioTemporalScaleFactors
    dtype: torch.dtype = torch.bfloat16

    def latents(
        self,
        sample: PreparedSample,
        watch: Callable[[SamplingStep], None] | None = None,
        noiser: Noiser | None = None,
    ) -> dict[str, Tensor]:
        """The finished latents, ``[1, C, F, H, W]`` and ``[1, C, T, M]``; ``watch`` is told of every step.

        ``noiser`` adds the noise of the sample's seed unless given: one generator, video first.
        """
        noiser = noiser or GaussianNoiser(torch.Generator(self.device).manual_seed(sample.seed))
        starts = self.starts(sample)
        states: States = begin_streams(starts, noiser, self.device, self.dtype)
        contexts = {name: sample.contexts[name].to(self.device, self.dtype) for name in states}
        denoiser = GuidedDenoiser(contexts, self.guiders(sample, starts))
        for step in denoise(X0Model(self.transformer), denoiser, states, self.sigmas()):
            states = step.states
            if watch is not None:
                watch(step)
        final = finish_streams({name: start.tools for name, start in starts.items()}, states)
        return {name: state.latent for name, state in final.items()}

    def tools(self, sample: PreparedSample) -> dict[str, LatentTools[Any]]:
        """Latent tools of the streams a sample has."""
        video, audio = self.transformer.config.video, self.transformer.config.audio
        channels = video.in_channels if video else VIDEO_LATENT_CHANNELS
        bins = audio.in_channels // AUDIO_LATENT_CHANNELS if audio else AUDIO_MEL_BINS
        return latent_tools(sample.shape, self._streams(sample), self.scale_factors, channels, bins)

    def starts(self, sample: PreparedSample) -> dict[str, StreamStart]:
        """Start of every stream; one that is given whole is frozen and gets no noise."""
        starts = {}
        for name, tools in self.tools(sample).items():
            own = [e for e in sample.conditions if e.condition.targets() == name]
            whole = next((e for e in own if isinstance(e.condition, SampleVideoToAudio | SampleAudioToVideo)), None)
            if whole is not None:
                latent = fit_frames(whole.latent, tools.target_shape.frames).to(self.device, self.dtype)
                starts[name] = StreamStart(tools, latent, noise_scale=None, frozen=True)
                continue
            own.sort(key=lambda e: isinstance(e.condition, SampleReference | SampleKeyframeImage))  # in place first
            starts[name] = StreamStart(tools, items=[conditioning_item(encoded, tools) for encoded in own])
        return starts

    def given_cells(self, sample: PreparedSample) -> Tensor | None:
        """Mask of the cells of the video latent ``[F, H, W]`` that conditions hold as they are; None for no video."""
        start = self.starts(sample).get("video")
        if start is None:
            return None
        grid = start.tools.target_shape.to_torch_shape()[2:]
        mask = start.condition(self.device, self.dtype).denoise_mask[0, : grid.numel(), 0]
        return (mask == 0).reshape(grid).cpu()

    def guiders(self, sample: PreparedSample, starts: Mapping[str, StreamStart]) -> dict[str, MultiModalGuider]:
        """Guidance of every stream: none when it is frozen, none towards a stream that is not there."""
        return {name: self._guider(name, sample, len(starts)) for name, start in starts.items() if not start.frozen}

    def sigmas(self) -> Tensor:
        """The schedule of generation: the shift of 4096 tokens, whatever the size; or the levels that were given."""
        if (given := self.config.sigmas) is not None:
            return torch.tensor(DISTILLED_SIGMAS if given == "distilled" else given)
        return LTX2Scheduler().execute(steps=self.config.inference_steps)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def _streams(self, sample: PreparedSample) -> list[str]:
        """Streams that are made, and those that are given whole."""
        wanted = {"video": self.config.generate_video, "audio": self.config.generate_audio}
        given = {
            e.condition.targets()
            for e in sample.conditions
            if isinstance(e.condition, SampleVideoToAudio | SampleAudioToVideo)
        }
        return [name for name in self.transformer.config.streams if wanted[name] or name in given]

    def _guider(self, name: str, sample: PreparedSample, streams: int) -> MultiModalGuider:
        config = self.config
        cfg, stg, modality = (
            getattr(config, f"{name}_{kind}") for kind in ("cfg_scale", "stg_scale", "modality_guidance_scale")
        )
        params = MultiModalGuiderParams(
            cfg_scale=cfg,
            stg_scale=stg,
            stg_blocks=config.stg_blocks,
            rescale_scale=config.guidance_rescale,
            modality_scale=modality if streams > 1 else 1.0,
        )
        negative = None if cfg == 1 else sample.negative_contexts[name].to(self.device, self.dtype)
        return MultiModalGuider(params, negative)


def conditioning_item(encoded: EncodedCondition, tools: LatentTools[Any]) -> ConditioningItem:
    """The item of a condition for a latent state. Raises `ConditioningError` when it does not fit the target."""
    if isinstance(tools, AudioLatentTools):
        return _audio_item(encoded, tools)
    assert isinstance(tools, VideoLatentTools)
    condition, latent, shape = encoded.condition, encoded.latent, tools.target_shape
    match condition:
        case SampleFirstFrame():
            return VideoConditionByLatentIndex(latent[:, :, :1])
        case SamplePrefix():
            return VideoConditionByLatentIndex(latent[:, :, : shape.frames])
        case SampleSuffix():
            kept = latent[:, :, -shape.frames :]
            return VideoConditionByLatentIndex(kept, latent_idx=shape.frames - kept.shape[2])
        case SampleKeyframe():
            place = range(shape.frames)[condition.latent_index]
            return VideoConditionByLatentIndex(latent[:, :, place : place + 1], latent_idx=place)
        case SampleKeyframeImage():
            frames = shape.upscale(tools.scale_factors).frames
            return VideoConditionByKeyframeIndex(latent, range(frames)[condition.frame])
        case SampleSpatialCrop():
            mask = crop_mask(condition, shape.to_torch_shape()[2:], tools.scale_factors)
            return VideoConditionByMask(latent, mask[None])
        case SampleMask() if encoded.mask is not None:
            return VideoConditionByMask(latent, encoded.mask[None])
        case SampleReference():
            return VideoConditionByReferenceLatent(latent, condition.downscale_factor, condition.temporal_scale_factor)
    raise ConditioningError(f"condition {condition.type!r} does not apply to video")


def _audio_item(encoded: EncodedCondition, tools: AudioLatentTools) -> ConditioningItem:
    condition, latent, total = encoded.condition, encoded.latent, tools.target_shape.frames
    frames = min(latent.shape[2], total)
    if isinstance(condition, SampleReference):
        tokens = tools.patchifier.patchify(latent)
        positions = tools.patchifier.get_patch_grid_bounds(AudioLatentShape.from_torch_shape(latent.shape), None)
        return AudioConditionByReferenceLatent(tokens, positions)
    given = torch.zeros(total)
    match condition:
        case SamplePrefix():
            given[:frames] = 1
            return HeldAudio(fit_frames(latent, total), given)
        case SampleSuffix():
            given[total - frames :] = 1
            tail = latent[:, :, latent.shape[2] - frames :]
            padding = latent.new_zeros(*latent.shape[:2], total - frames, latent.shape[3])
            return HeldAudio(torch.cat((padding, tail), dim=2), given)
        case SampleMask() if encoded.mask is not None:
            return HeldAudio(fit_frames(latent, total), encoded.mask)
    raise ConditioningError(f"condition {condition.type!r} does not apply to audio")


def crop_mask(condition: SampleSpatialCrop, grid: Sequence[int], factors: SpatioTemporalScaleFactors) -> Tensor:
    """A latent ``grid`` (F, H, W), 1 in the rectangle, whole latent cells only, in every frame."""
    y1, x1, y2, x2 = condition.spatial_region
    _, rows, columns = factors
    mask = torch.zeros(*grid)
    mask[:, y1 // rows : y2 // rows, x1 // columns : x2 // columns] = 1
    return mask


def fit_frames(latent: Tensor, frames: int) -> Tensor:
    """A latent cut, or continued with zeros, to ``frames`` latent frames."""
    missing = frames - latent.shape[2]
    if missing <= 0:
        return latent[:, :, :frames]
    return torch.cat((latent, latent.new_zeros(*latent.shape[:2], missing, *latent.shape[3:])), dim=2)


def check_samples(config: ValidationConfig, factors: SpatioTemporalScaleFactors, streams: Sequence[str]) -> None:
    """Refuse samples that the model cannot make: sizes off its grid, conditions off its frames, absent streams."""
    for index, sample in enumerate(config.samples):
        where = f"validation.samples.{index}"
        shape = sample_shape(config, sample)
        try:
            factors.check(shape)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        for condition in sample.conditions:
            latent_frames = factors.latent_frames(shape.frames)
            if isinstance(condition, SampleKeyframe) and condition.latent_index not in range(
                -latent_frames, latent_frames
            ):
                given = f"{where}: keyframe latent_index is {condition.latent_index}"
                raise ConfigError(f"{given}, the sample has {latent_frames} latent frames")
            if isinstance(condition, SampleKeyframeImage) and not -shape.frames <= condition.frame < shape.frames:
                given = f"{where}: keyframe_image frame is {condition.frame}"
                raise ConfigError(f"{given}, the sample has {shape.frames} frames")
            if condition.targets() not in streams:
                raise ConfigError(f"{where}: {condition.type} conditions the {condition.targets()}, which is not there")
            count = getattr(condition, "num_frames", None)
            if count is None or condition.targets() != "video":
                continue
            rest = 1 % factors.time if isinstance(condition, SamplePrefix) else 0
            if count % factors.time != rest:
                expected = f"{factors.time}k+1" if rest else f"a multiple of {factors.time}"
                raise ConfigError(f"{where}: {condition.type} num_frames is {count}, expected {expected}")
