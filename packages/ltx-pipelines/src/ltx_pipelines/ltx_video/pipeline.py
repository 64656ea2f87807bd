"""Video without sound from text, pictures and clips, on LTX-Video 0.9.x: one pass, or two of which one enlarges."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ltx_core.errors import ConditioningError, ConfigError, MediaError
from ltx_core.types import VideoLatentShape, VideoPixelShape
from ltx_pipelines.pipeline import COMMON, Loras, Pipeline
from ltx_pipelines.planning.layout import PaddedSize
from ltx_pipelines.planning.plan import (
    ImageCondition,
    Plan,
    SamplerPlan,
    Source,
    StagePlan,
    StreamPlan,
    StreamStart,
)
from ltx_pipelines.planning.schema import File, UsageError
from ltx_pipelines.request import Request, condition, sampling

if TYPE_CHECKING:
    from ltx_media.video import VideoInfo
    from ltx_pipelines.ltx_video.schedule import SchedulerConfig
    from ltx_pipelines.ltx_video.settings import LTXVConfig, Sampling

logger = logging.getLogger(__name__)

NEGATIVE_PROMPT = "poor quality, inconsistent motion, blurry, jittery, distorted"


@dataclass(frozen=True)
class LTXVideoRequest(Request):
    """A request with the settings of an LTX-Video model."""

    pipeline_config: str | None = sampling(
        None, "Published settings such as 13b-0.9.8-distilled, or a YAML file.", metavar="NAME", shown="by file name"
    )
    input_media_path: File | None = condition(None, "Clip to start from.")
    image_cond_noise_scale: float = condition(0.15, "Fresh noise on held frames.", least=0)


class LTXVideoPipeline(Pipeline):
    """Clips of any size and length: made at the next ones the model can hold, and cut back.

    An image may also be a clip, shown from its frame on; it is prepared like the training data.
    """

    accepts = COMMON - {"sigmas"} | {"negative_prompt", "images", "sparse_attention", "first_block_cache"}
    uses = Pipeline.uses | {"spatial_upsampler", "keep_latents", "first_stage"}
    usual: ClassVar[Mapping[str, Any]] = {
        "height": 704,
        "width": 1216,
        "num_frames": 121,
        "frame_rate": 30.0,
        "seed": 171198,
        "negative_prompt": NEGATIVE_PROMPT,
    }
    variant = "distilled"

    #: Settings where a request names none.
    config: LTXVConfig | None = None

    @classmethod
    def command(cls) -> str:
        return "ltxv"

    @classmethod
    def complete(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """With the files that the YAML file of a request names, where the request names none."""
        if not Path(str(given.get("pipeline_config"))).is_file():
            return dict(given)
        from ltx_pipelines.ltx_video.settings import find_config

        return find_config(given["pipeline_config"]).networks() | dict(given)

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, loras: Loras = (), **networks: Any) -> Self:
        """A pipeline on ``model``: a file, a folder, a hub id, or the YAML file of a pipeline config.

        The settings are those of the YAML file, of ``pipeline_config`` in a request, or the published ones that the
        file's name says. ``networks`` as for every pipeline.
        """
        from ltx_pipelines.ltx_video.settings import find_config

        if model is None or Path(model).suffix not in (".yaml", ".yml"):
            return super().from_pretrained(model, loras, **networks)
        config = find_config(model)
        pipeline = super().from_pretrained(None, loras, **(config.networks() | networks))
        pipeline.config = config
        return pipeline

    def make_plan(self, request: LTXVideoRequest) -> Plan:
        from ltx_core.model.upsampler.model import first_pass_size
        from ltx_pipelines.ltx_video.schedule import SchedulerConfig

        if not self.ledger.is_ltx_video:
            raise ConfigError(f"{self.ledger.files.checkpoint} is no LTX-Video 0.9.x model, which ltxv needs")
        config = self.config_of(request)
        asked = request.shape()
        size = PaddedSize.of(asked, self.ledger.scale_factors)
        self.check_media(request, size)
        if (words := len(request.prompt.split())) < config.prompt_enhancement_words_threshold:
            logger.info("the prompt has %d words; these models were trained on longer descriptions", words)
        shapes = [size.padded]
        if len(config.passes) == 2:
            height, width = first_pass_size(size.padded.height, size.padded.width, config.downscale_factor)
            shapes = [size.padded._replace(height=n * height, width=n * width) for n in (1, 2)]
        scheduler = SchedulerConfig.chosen(config.sampler, self.ledger.config)
        stages = [
            self.stage(request, config, config.passes[index], scheduler, shape, again=index > 0)
            for index, shape in enumerate(shapes)
        ]
        last = replace(stages[-1], delivered=None if shapes[-1] == asked else asked)
        return self.finish_plan(
            request,
            [*stages[:-1], last],
            sources={"video": Source(request.input_media_path)} if request.input_media_path else {},
            ltx_video=config.decoding(asked, config.passes[-1]),
        )

    def config_of(self, request: LTXVideoRequest) -> LTXVConfig:
        """The settings a request names, else those of the YAML file or of the model's name."""
        from ltx_pipelines.ltx_video.settings import PUBLISHED, find_config

        if request.pipeline_config is not None:
            return find_config(request.pipeline_config)
        name = Path(self.ledger.files.checkpoint).name.replace("-v0", "-0")
        known = max((published for published in PUBLISHED if published in name), key=len, default=None)
        if (found := self.config or (PUBLISHED[known] if known else None)) is None:
            raise ConfigError(f"pipeline_config is not given, expected a YAML file or one of {', '.join(PUBLISHED)}")
        return found

    def stage(
        self,
        request: LTXVideoRequest,
        config: LTXVConfig,
        sampling: Sampling,
        scheduler: SchedulerConfig,
        shape: VideoPixelShape,
        again: bool,
    ) -> StagePlan:
        """One pass; ``again`` says that it goes on from the pass before."""
        from ltx_pipelines.ltx_video.schedule import guidance_per_step, pass_levels

        cells = VideoLatentShape.from_pixel_shape(shape, scale_factors=self.ledger.scale_factors).token_count
        levels = pass_levels(sampling, scheduler, cells)
        start: StreamStart = "previous" if again else "source" if request.input_media_path else "noise"
        check_start(sampling, float(levels[0]), start != "noise")
        renoise = request.image_cond_noise_scale if request.images else 0.0
        guidance = guidance_per_step(sampling, levels, config.stg_mode.lower())
        return StagePlan(
            shape=shape,
            sigmas=(*levels.tolist(), 0.0),
            streams={"video": StreamPlan(start=start, conditions=request.images)},
            loras=self.loras,
            sampler=SamplerPlan("token_levels", {"stochastic": config.stochastic_sampling, "renoise": renoise}),
            velocity_guidance=tuple(guidance),
            max_batch_size=3,
            match_statistics=again,
        )

    def check_media(self, request: LTXVideoRequest, size: PaddedSize) -> None:
        """Refuse conditions that do not fit the clip."""
        for image in request.images:
            if image != ImageCondition(image.path, image.frame_idx, image.strength):
                raise UsageError("images have a file, a frame and a strength with LTX-Video, expected nothing more")
            clip = self.probe(image.path)
            check_frame(image, shown_frames(clip, size), size, self.ledger.scale_factors.time)
        if (source := request.input_media_path) is not None:
            frames, asked = shown_frames(self.probe(source), size), size.asked
            if frames < asked.frames:
                lasts = f"it lasts {frames} frames at {asked.fps:g} fps"
                raise MediaError(f"{source}: {lasts}, expected at least num_frames, {asked.frames}")


def shown_frames(clip: VideoInfo, size: PaddedSize) -> int:
    """Number of frames shown of a clip at the rate that is asked for."""
    from ltx_media.source import sampling_rate

    rate = sampling_rate(clip, size.asked.fps)
    return clip.frames if rate is None else round(clip.duration * rate)


def check_frame(image: ImageCondition, frames: int, size: PaddedSize, step: int) -> None:
    """A picture lies inside the clip; the frames of a clip begin with a latent frame."""
    image.check_place(size.asked.frames)
    start = image.frame_idx
    if min(frames, size.padded.frames - start) > step and start % step:
        nearest = round(start / step) * step
        raise ConditioningError(f"a clip starts at frame {start}, expected a multiple of {step}; nearest: {nearest}")


def check_start(sampling: Sampling, level: float, has_source: bool) -> None:
    """Skipped steps and a clip to start from go together."""
    if has_source and level > 1 - 1e-6:
        raise ConfigError(
            "timesteps begin at 1, expected less than 1 where there is a clip to start from: "
            "raise skip_initial_inference_steps"
        )
    if sampling.skip_initial_inference_steps and not has_source:
        count = sampling.skip_initial_inference_steps
        raise ConfigError(f"skip_initial_inference_steps is {count}, expected 0 where there is no clip to start from")
