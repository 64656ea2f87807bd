"""The few kinds of stages that all pipelines are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.components.schedulers import (
    DISTILLED_SIGMAS,
    STAGE_2_SIGMAS,
    BetaScheduler,
    LinearQuadraticScheduler,
    LTX2Scheduler,
)
from ltx_core.errors import ConfigError
from ltx_core.types import SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape
from ltx_pipelines.planning.layout import tiles_of
from ltx_pipelines.planning.plan import (
    BlockCache,
    Condition,
    ImageCondition,
    KeyframeSlots,
    Lora,
    ReferenceCondition,
    SamplerPlan,
    Source,
    SparseAttention,
    StagePlan,
    StreamPlan,
)
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.request import Guidance, Request

if TYPE_CHECKING:
    from ltx_core.loader.metadata import VersionDefaults

ANCESTRAL_SEED_OFFSET = 10000
TILED_SIGMA = 0.421875  # at which an enlarged picture is refined in tiles, which then still agree on what it shows
TILE_SIDE = 1408  # pixels, of models that do not say which size they are asked for
DECODED_SIDES = 2  # sides of a tile that a side of what is decoded at once has: a decode costs less than a step
STOCHASTIC = ("euler_ancestral", "euler_cfg_pp")
SETTINGS = {  # of samplers that have some
    "gradient_estimating": ("gamma",),
    "res_2s": ("eta",),
    "euler_ancestral": ("eta", "s_noise"),
    "euler_cfg_pp": ("eta", "s_noise"),
}
Asked = TypeVar("Asked", bound=Request)


def default_guidance(defaults: VersionDefaults) -> dict[str, MultiModalGuiderParams]:
    """Guidance of a full model, per modality."""
    shared = MultiModalGuiderParams(
        stg_scale=1.0, stg_blocks=defaults.stg_blocks, rescale_scale=0.7, modality_scale=3.0
    )
    return {"video": replace(shared, cfg_scale=3.0), "audio": replace(shared, cfg_scale=7.0)}


def guidance(request: Request, defaults: VersionDefaults) -> dict[str, Guidance]:
    """Guidance by the request, and the model's defaults where it says nothing."""
    given = {"video": request.video_guider_params, "audio": request.audio_guider_params}
    return {name: given[name] or params for name, params in default_guidance(defaults).items()}


def schedule(request: Request, steps: int) -> tuple[float, ...]:
    """The request's sigmas, else its schedule for ``steps`` (or the number the request asks for)."""
    if request.sigmas is not None:
        return checked_sigmas(request.sigmas)
    count = steps if request.num_inference_steps is None else request.num_inference_steps
    if request.scheduler == "beta":
        return tuple(BetaScheduler().execute(count).tolist())
    scheduler = LinearQuadraticScheduler() if request.scheduler == "linear_quadratic" else LTX2Scheduler()
    return scheduler.sigmas(count)


def sampler_plan(request: Request) -> SamplerPlan:
    """The sampler a request names. Raises `UsageError` for a setting it has no use for."""
    kind = request.sampler or "euler"
    given = {name: getattr(request, name) for name in ("eta", "s_noise", "gamma")}
    params = {name: value for name, value in given.items() if value is not None}
    for name in params:
        if name not in SETTINGS.get(kind, ()):
            raise UsageError(f"{name} has no effect with the sampler {kind}, expected it left out")
    return SamplerPlan(kind, params, request.seed + ANCESTRAL_SEED_OFFSET if kind in STOCHASTIC else None)


def checked_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Refuse a schedule that does not fall from at most 1 to at least 0."""
    falling = all(a > b for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not falling or sigmas[0] > 1 or sigmas[-1] < 0:
        raise ConfigError(f"sigmas are {list(sigmas)}, expected at least two, falling, within 1 to 0")
    return tuple(float(sigma) for sigma in sigmas)


def guided_stage(
    request: Request,
    defaults: VersionDefaults,
    shape: VideoPixelShape,
    conditions: Sequence[Condition] = (),
    loras: Sequence[Lora] = (),
) -> StagePlan:
    """The first stage of a full model: schedule, sampler, guidance on both streams."""
    params = guidance(request, defaults)
    return StagePlan(
        shape=shape,
        sigmas=schedule(request, defaults.num_inference_steps),
        streams={
            "video": replace(guided_stream(params["video"], conditions), fade=fade_of(request, conditions)),
            "audio": guided_stream(params["audio"]),
        },
        loras=tuple(loras),
        sampler=sampler_plan(request),
        max_batch_size=request.max_batch_size,
    )


def fade_of(request: Request, conditions: Sequence[Condition]) -> float:
    """Strength with which a first stage begins as a fade of its pictures. Raises `UsageError` where there is none."""
    if request.keyframe_fade and not any(isinstance(condition, ImageCondition) for condition in conditions):
        raise UsageError("keyframe_fade has no effect without images, expected it left out")
    return request.keyframe_fade


def guided_stream(guidance: Guidance, conditions: Sequence[Condition] = ()) -> StreamPlan:
    """A stream from noise with guidance, the same at every step or by noise level."""
    if isinstance(guidance, MultiModalGuiderParams):
        return StreamPlan(conditions=tuple(conditions), guidance=guidance)
    return StreamPlan(conditions=tuple(conditions), guidance_by_sigma=tuple(sorted(guidance.items())))


def distilled_stage(
    request: Request,
    shape: VideoPixelShape,
    conditions: Sequence[Condition] = (),
    loras: Sequence[Lora] = (),
    ancestral: bool = False,
) -> StagePlan:
    """The first stage of a distilled model: eight steps, no guidance."""
    seed = request.seed + ANCESTRAL_SEED_OFFSET
    sampler = SamplerPlan("euler_ancestral", {"eta": 1.0, "s_noise": 1.0}, seed) if ancestral else SamplerPlan()
    return StagePlan(
        shape=shape,
        sigmas=checked_sigmas(request.sigmas or DISTILLED_SIGMAS),
        streams={
            "video": StreamPlan(conditions=tuple(conditions), fade=fade_of(request, conditions)),
            "audio": StreamPlan(),
        },
        loras=tuple(loras),
        sampler=sampler,
    )


def refinement_stage(
    shape: VideoPixelShape,
    conditions: Sequence[Condition] = (),
    loras: Sequence[Lora] = (),
    sampler: SamplerPlan | None = None,
) -> StagePlan:
    """The second stage: both streams go on from the first, the video enlarged, three plain steps."""
    again = StreamPlan(start="previous", noise_scale=STAGE_2_SIGMAS[0])
    return StagePlan(
        shape=shape,
        sigmas=tuple(STAGE_2_SIGMAS),
        streams={"video": replace(again, conditions=tuple(conditions)), "audio": again},
        loras=tuple(loras),
        sampler=sampler or SamplerPlan(),
    )


def encoded_clip(
    path: str, shape: VideoPixelShape, shown: VideoPixelShape, has_sound: bool
) -> tuple[StagePlan, dict[str, Source]]:
    """A stage of no steps, whose result is a clip in latents with its own sound beside it; and its sources."""
    streams = {"video": StreamPlan(start="source", noise_scale=0.0)}
    if has_sound:
        streams["audio"] = StreamPlan(start="source", noise_scale=0.0, frozen=True)
    source = Source(path, 0.0, shape.duration)
    return StagePlan(shape, (0.0,), streams, delivered=shown), dict.fromkeys(streams, source)


def tiled_stages(
    last: StagePlan, times: int, factors: SpatioTemporalScaleFactors, side: int, level: float = TILED_SIGMA
) -> Iterator[StagePlan]:
    """The stages that enlarge the result of ``last`` twofold until it is ``times`` as large, in tiles of ``side``.

    Each goes on from the enlarged picture at a low noise ``level``, with the sampler, guidance and adapters of the
    stage before and the pictures and references it was shown. The sound is only heard.
    """
    levels = last.sigmas if last.steps else STAGE_2_SIGMAS
    for _ in range(times.bit_length() - 1):
        shape, shown = double_size(last.shape), last.delivered and double_size(last.delivered)
        video = last.streams["video"]
        seen = tuple(one for one in video.conditions if isinstance(one, ImageCondition | ReferenceCondition))
        video = replace(video, start="previous", noise_scale=level, conditions=seen)
        streams = {"video": video}
        if "audio" in last.streams:
            sound = last.streams["audio"]
            kept = sound.start == "source" and sound.frozen
            streams["audio"] = sound if kept else StreamPlan(start="previous", noise_scale=0.0, frozen=True)
        last = replace(
            last,
            shape=shape,
            delivered=shown,
            sigmas=(level, *(sigma for sigma in levels if sigma < level)),
            streams=streams,
            tiles=tiles_of(shape, factors, side),
            decoded_cells=(DECODED_SIDES * side) ** 2 // (factors.height * factors.width),
        )
        yield last


def with_sparse_attention(stages: Sequence[StagePlan], sparse: SparseAttention) -> list[StagePlan]:
    """The stages with a sparse self-attention where a whole picture is made. Raises `UsageError` where none is."""

    def fits(stage: StagePlan) -> bool:
        video = stage.streams.get("video")
        return video is not None and not video.frozen and stage.tiles is None and stage.steps > sparse.steps

    if not any(map(fits, stages)):
        most = max(stage.steps for stage in stages)
        raise UsageError(f"sparse_attention leaves {sparse.steps} steps dense, expected less than the {most} there are")
    return [replace(stage, sparse_attention=sparse) if fits(stage) else stage for stage in stages]


def with_block_cache(stages: Sequence[StagePlan], cache: BlockCache) -> list[StagePlan]:
    """The stages with a first-block cache where there are many steps: guided ones that are not in tiles."""

    def fits(stage: StagePlan) -> bool:
        return stage.guided and stage.tiles is None and stage.steps > cache.steps

    if not any(map(fits, stages)):
        said = f"first_block_cache runs the first {cache.steps} steps of guided stages as they are"
        raise UsageError(f"{said}, expected less than some stage has")
    return [replace(stage, first_block_cache=cache) if fits(stage) else stage for stage in stages]


def double_size(shape: VideoPixelShape) -> VideoPixelShape:
    """The size of a stage that begins with an enlarged result."""
    return shape._replace(height=2 * shape.height, width=2 * shape.width)


def halve_size(shape: VideoPixelShape) -> VideoPixelShape:
    """The size of a first stage whose result is enlarged twofold."""
    return shape._replace(height=shape.height // 2, width=shape.width // 2)


def with_stream(stage: StagePlan, name: str, stream: StreamPlan) -> StagePlan:
    """The stage with one stream replaced."""
    streams: Mapping[str, StreamPlan] = {**stage.streams, name: stream}
    return replace(stage, streams=streams)


def keyframe_slots(request: Request, frames: int) -> tuple[KeyframeSlots, ...]:
    """The slots of generated keyframes a request asks for, if any."""
    if not request.generated_keyframes:
        return ()
    from ltx_core.components.helpers import resolve_keyframe_positions

    return (KeyframeSlots(tuple(resolve_keyframe_positions(request.generated_keyframes, frames))),)


def schedule_for_size(request: Asked, shape: VideoPixelShape, factors: SpatioTemporalScaleFactors) -> Asked:
    """The request with the schedule of its steps shifted by the real number of tokens of ``shape``."""
    if request.sigmas is not None or request.num_inference_steps is None or request.scheduler not in (None, "ltx2"):
        return request
    latent = VideoLatentShape.from_pixel_shape(shape, scale_factors=factors)
    tokens = latent.frames * latent.height * latent.width
    return replace(request, sigmas=LTX2Scheduler().sigmas(request.num_inference_steps, tokens))
