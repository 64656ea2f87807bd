"""LTX-Video 0.9.x: text, pictures and clips to video, in one pass or in two of which the second is twice as large.

    contexts + conditions -> tokens -> denoise -> latent [1, C, F, h, w] -> decode -> frames [f, H, W, 3]
    two passes: first size -> upsampler x2 -> statistics of the first latent -> second pass -> frames at the asked size

A pipeline takes embeddings and pixels; `ltxv_command` goes from prompts and files to these and back to a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.config import LTX_VIDEO_CLASS
from ltx_core.model.upsampler.ltxv import adain_latent, first_pass_size, tone_map_latent
from ltx_core.model.upsampler.model import upsample_latent
from ltx_core.model.video_vae.video_vae import DecodeConditioning
from ltx_core.types import VideoLatentShape, VideoPixelShape
from ltx_pipelines.ltx_video.noise import GeneratorNoise, Noise
from ltx_pipelines.ltx_video.sampler import TOLERANCE, LTXVContexts, PassSettings, denoise
from ltx_pipelines.ltx_video.schedule import SchedulerConfig, guidance_per_step, pass_levels
from ltx_pipelines.ltx_video.settings import LTXVConfig, Sampling
from ltx_pipelines.ltx_video.tokens import (
    PATCHIFIER,
    EncodedCondition,
    LTXVCondition,
    Placement,
    VideoTokens,
    resize_video,
)

if TYPE_CHECKING:
    from ltx_pipelines.planning.plan import Lora
    from ltx_pipelines.utils.model_ledger import ModelLedger

Phase = Literal["text", "conditions", "upsample", "denoise", "decode", "done"]
Encode = Callable[[Tensor], Tensor]  # pixels [1, 3, f, H, W] in [-1, 1] -> normalised latent [1, C, f', h, w]


@dataclass(frozen=True)
class LTXVInputs:
    """What a clip is made from. Height and width are multiples of 32 in pixels, ``num_frames`` is 8k+1."""

    contexts: LTXVContexts
    height: int
    width: int
    num_frames: int
    frame_rate: float = 30.0
    conditions: tuple[LTXVCondition, ...] = ()
    media: Tensor | None = None  # [1, 3, F, H, W] in [-1, 1]: the clip to start from
    latents: Tensor | None = None  # [1, C, F', h, w] normalised: the latent to start from
    image_cond_noise_scale: float = 0.0  # noise on held tokens, times the squared noise level

    @property
    def shape(self) -> VideoPixelShape:
        return VideoPixelShape(1, self.num_frames, self.height, self.width, self.frame_rate)

    @property
    def has_source(self) -> bool:
        """Whether there is a clip to start from."""
        return self.latents is not None or self.media is not None


@dataclass(frozen=True)
class LTXVEvent:
    """Something happened; read like the engine's `Event`. ``step`` counts finished steps of the pass."""

    phase: Phase
    stage: int = 0  # the pass, from 0
    step: int = 0
    total: int = 0
    sigma: float = 0.0  # noise level of the step just made, of the first one at step 0
    state: VideoTokens | None = field(default=None, repr=False)  # with "denoise" and "done"
    frames: Iterator[Tensor] | None = field(default=None, repr=False)  # with "done": chunks [f, H, W, 3] in [0, 1]

    @property
    def latent(self) -> Tensor:
        """The video latent ``[1, C, F', h, w]``, normalised; noisy until the pass ends."""
        if self.state is None:
            raise ValueError(f"a {self.phase} event has no latent")
        return self.state.latent


class LTXVideoPipeline:
    """One pass at the delivered size."""

    def __init__(self, ledger: ModelLedger, config: LTXVConfig, loras: Sequence[Lora] = ()) -> None:
        self.ledger, self.config, self.loras = ledger, config, tuple(loras)

    def stream(self, inputs: LTXVInputs, noise: Noise, encode: Encode | None = None) -> Iterator[LTXVEvent]:
        """Denoise step by step; the last event has the result. Close the iterator to cancel.

        ``encode`` makes latents of conditioning pixels; by default they are samples of the VAE's posterior. Raises
        ``ConfigError`` or ``ConditioningError`` before any weight is read.
        """
        self.check(inputs)
        yield from self.run_pass(0, inputs, noise, encode)

    def check(self, inputs: LTXVInputs) -> None:
        """Refuse inputs that do not fit the model or the config; reads no weights."""
        for index, (one, sampling) in enumerate(zip(self.pass_inputs(inputs), self.config.passes, strict=True)):
            self.settings(one, sampling, has_source=index > 0 or one.has_source)

    def pass_inputs(self, inputs: LTXVInputs) -> list[LTXVInputs]:
        """The inputs of every pass; only the latent that a later one starts from is missing."""
        return [inputs]

    @torch.no_grad()
    def decode(self, latent: Tensor, inputs: LTXVInputs, noise: Noise) -> Iterator[Tensor]:
        """The frames of a latent as chunks ``[f, H, W, 3]`` in [0, 1]."""
        decoder: Any = self.ledger.network("video_decoder")
        config = self.config
        if self.ledger.source("video_decoder").network_config("video_decoder").timestep_conditioning:
            share = config.decode_timestep if config.decode_noise_scale is None else config.decode_noise_scale
            if share > 0:
                latent = (1 - share) * latent + share * noise.draw("decoder", tuple(latent.shape), latent)
        latent = tone_map_latent(latent, config.passes[-1].tone_map_compression_ratio)
        conditioning = DecodeConditioning(
            timestep=config.decode_timestep,
            noise_scale=0.0,  # mixed above, before the tone mapping
            noise=lambda shape: noise.draw("decoder", shape, latent),
        )
        yield from decoder.decode_frames(latent, conditioning)

    def __call__(self, inputs: LTXVInputs, noise: Noise | int, encode: Encode | None = None) -> Tensor:
        """The whole clip ``[F, H, W, 3]`` in [0, 1]; ``noise`` may be a seed."""
        source = GeneratorNoise(noise) if isinstance(noise, int) else noise
        *_, last = self.stream(inputs, source, encode)
        return torch.cat(list(self.decode(last.latent, inputs, source)))

    def run_pass(
        self, stage: int, inputs: LTXVInputs, noise: Noise, encode: Encode | None = None
    ) -> Iterator[LTXVEvent]:
        """The events of one pass, numbered from 0."""
        settings = self.settings(inputs, self.config.passes[stage], inputs.has_source)
        sigmas: list[float] = settings.levels.tolist()
        yield LTXVEvent("conditions", stage)
        start = self.start(inputs, sigmas[0], noise, encode or self.posterior(noise))
        yield LTXVEvent("denoise", stage, 0, len(sigmas), sigmas[0], start)
        contexts = inputs.contexts.to(self.ledger.device, self.ledger.dtype)
        model: Any = self.ledger.transformer(self.loras)
        states = denoise(model, start, settings, contexts, noise)
        for step, (sigma, state) in enumerate(zip(sigmas, states, strict=True), 1):
            yield LTXVEvent("denoise", stage, step, len(sigmas), sigma, state)

    def settings(self, inputs: LTXVInputs, sampling: Sampling, has_source: bool) -> PassSettings:
        """Noise levels and guidance of a pass, and everything that can be refused beforehand."""
        if (kind := self.ledger.config.get("transformer", {}).get("_class_name")) != LTX_VIDEO_CLASS:
            raise ConfigError(f"transformer _class_name is {kind!r}, expected {LTX_VIDEO_CLASS!r} (LTX-Video 0.9.x)")
        factors = self.ledger.scale_factors
        factors.check(inputs.shape)
        for condition in inputs.conditions:
            condition.check(inputs.shape, factors)
        cells = VideoLatentShape.from_pixel_shape(inputs.shape, scale_factors=factors).token_count
        scheduler = SchedulerConfig.chosen(self.config.sampler, self.ledger.config)
        levels = pass_levels(sampling, scheduler, cells)
        guidance = guidance_per_step(sampling, levels)
        if has_source and levels[0] > 1 - TOLERANCE:
            raise ConfigError(
                "timesteps begin at 1, expected less than 1 where there is a clip to start from: "
                "raise skip_initial_inference_steps"
            )
        if sampling.skip_initial_inference_steps and not has_source:
            raise ConfigError(
                f"skip_initial_inference_steps is {sampling.skip_initial_inference_steps}, "
                "expected 0 where there is no clip to start from"
            )
        if inputs.contexts.negative is None and any(step.uses_negative for step in guidance):
            raise ConfigError("guidance_scale is above 1, expected a negative prompt")
        return PassSettings(
            levels,
            guidance,
            inputs.frame_rate,
            self.config.stg_mode.lower(),
            self.config.stochastic_sampling,
            inputs.image_cond_noise_scale,
        )

    @torch.no_grad()
    def start(self, inputs: LTXVInputs, level: float, noise: Noise, encode: Encode) -> VideoTokens:
        """The tokens a pass begins with: noise over the source, if there is one, and the conditions."""
        ledger, factors = self.ledger, self.ledger.scale_factors
        device, dtype = ledger.device, ledger.dtype
        grid = VideoLatentShape.from_pixel_shape(inputs.shape, ledger.latent_channels, factors)

        def latent_of(pixels: Tensor) -> Tensor:
            return encode(resize_video(pixels.float(), inputs.height, inputs.width)).to(device, dtype)

        source = None if inputs.latents is None else inputs.latents.to(device, dtype)
        if source is None and inputs.media is not None:
            source = latent_of(inputs.media)
        if source is not None and tuple(source.shape) != grid:
            raise ConfigError(f"the latent to start from has shape {list(source.shape)}, expected {list(grid)}")
        like = torch.empty(0, device=device, dtype=dtype)
        tokens = noise.draw("initial", (1, grid.token_count, grid.channels), like)
        latent = PATCHIFIER.unpatchify(tokens, grid)
        if source is not None:
            latent = level * latent + (1 - level) * source
        conditions = [
            EncodedCondition(latent_of(condition.media), condition.start_frame, condition.strength)
            for condition in inputs.conditions
        ]
        causal = bool(ledger.config["transformer"].get("causal_temporal_positioning", False))
        placement = Placement(factors, causal, noise)
        return placement.tokens(latent, conditions)

    def posterior(self, noise: Noise) -> Encode:
        """Samples of what the encoder says about pixels."""

        def encode(pixels: Tensor) -> Tensor:
            encoder: Any = self.ledger.network("video_encoder")
            moments = encoder.moments(pixels)
            sample = moments.sample(noise.draw("posterior", tuple(moments.mean.shape), moments.mean))
            return encoder.per_channel_statistics.normalize(sample)

        return encode


class LTXMultiScalePipeline(LTXVideoPipeline):
    """A first pass at a part of the size, enlarged twofold and refined by a second one."""

    def __init__(self, ledger: ModelLedger, config: LTXVConfig, loras: Sequence[Lora] = ()) -> None:
        if len(config.passes) != 2:
            raise ConfigError(f"pipeline_type is {config.pipeline_type}, expected multi-scale")
        super().__init__(ledger, config, loras)

    def stream(self, inputs: LTXVInputs, noise: Noise, encode: Encode | None = None) -> Iterator[LTXVEvent]:
        """Both passes; conditions are placed in each."""
        self.check(inputs)
        first, second = self.pass_inputs(inputs)
        event = None
        for event in self.run_pass(0, first, noise, encode):
            yield event
        assert event is not None
        yield LTXVEvent("upsample", 1)
        second = replace(second, latents=self.enlarged(event.latent))
        yield from self.run_pass(1, second, noise, encode)

    def pass_inputs(self, inputs: LTXVInputs) -> list[LTXVInputs]:
        height, width = first_pass_size(inputs.height, inputs.width, self.config.downscale_factor)
        first = replace(inputs, height=height, width=width)
        return [first, replace(inputs, height=2 * height, width=2 * width, media=None, latents=None)]

    @torch.no_grad()
    def enlarged(self, latent: Tensor) -> Tensor:
        """``[1, C, F, h, w] -> [1, C, F, 2h, 2w]`` with the statistics of the smaller latent."""
        mean, std = self.ledger.latent_statistics()
        upsampler: Any = self.ledger.latent_upsampler()
        return adain_latent(upsample_latent(latent, upsampler, mean, std), latent)

    def decode(self, latent: Tensor, inputs: LTXVInputs, noise: Noise) -> Iterator[Tensor]:
        """Frames resized to the asked size, in chunks ``[f, H, W, 3]`` in [0, 1]."""
        for chunk in super().decode(latent, inputs, noise):
            video = chunk.permute(3, 0, 1, 2)[None]  # [1, 3, f, H, W]
            yield resize_video(video, inputs.height, inputs.width)[0].permute(1, 2, 3, 0)


def pipeline_for(ledger: ModelLedger, config: LTXVConfig, loras: Sequence[Lora] = ()) -> LTXVideoPipeline:
    """The pipeline a config names."""
    kind = LTXMultiScalePipeline if config.pipeline_type == "multi-scale" else LTXVideoPipeline
    return kind(ledger, config, loras)
