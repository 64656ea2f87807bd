"""Text and images to long or fast video, through keyframes that the model makes itself.

::

    canvas of whole segments -> stage 1, half size, a keyframe at the end of each segment
                             -> stage 2, full size, from the enlarged video and keyframes
                             -> round r: twice the frames, in windows between the keyframes, new ones halfway
                             -> the asked length
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ltx_core.components.schedulers import TEMPORAL_ROUND_SIGMAS
from ltx_core.errors import ConfigError
from ltx_core.types import VideoPixelShape
from ltx_pipelines.pipeline import COMMON, TwoStagePipeline
from ltx_pipelines.planning.layout import Canvas, temporal_tiles
from ltx_pipelines.planning.plan import (
    CarriedKeyframes,
    Condition,
    KeyframeSlots,
    Lora,
    Plan,
    ReferenceCondition,
    SamplerPlan,
    StagePlan,
    StreamPlan,
    Window,
)
from ltx_pipelines.planning.stages import distilled_stage, halve_size, refinement_stage
from ltx_pipelines.request import Request, condition, network

ANCHOR_STRENGTH = 0.95
ETA = 0.5  # of the sampler of a round
SEEDS_PER_ROUND = 1000  # between the sampler seeds of two rounds; the windows of a round count up
FASTEST = 60.0  # frames per second that positions go up to; beyond, only the delivered rate does
DETAIL_FACTOR = 2  # target / reference size of an adapter that declares none


@dataclass(frozen=True)
class RoundsRequest(Request):
    """A request with rounds of doubling."""

    temporal_upsample_rounds: int = condition(0, "Rounds, each of which doubles the frame rate.", least=0, most=2)
    detailing_loras: tuple[Lora, ...] = network(
        (), "In-context adapter that lets the second stage follow the first.", "--detailing-lora"
    )


class DFRPipeline(TwoStagePipeline):
    """A full model with its distilled adapter. Each round doubles the rate, the sound is that of the first stage."""

    accepts = COMMON | {"auto_duration", "images"}
    uses = TwoStagePipeline.uses | {"distilled_loras", "temporal_upsampler"}
    aliases = ("dfr",)

    def make_plan(self, request: RoundsRequest) -> Plan:
        shape = self.shape(request)
        for image in request.images:  # the canvas may be longer
            image.check_place(shape.frames)
        canvas = Canvas.of(shape.frames)
        whole = shape._replace(frames=canvas.frames)
        slots = KeyframeSlots(canvas.keyframes)
        loras = self.loras + self.distilled_loras
        first = distilled_stage(request, halve_size(whole), (*request.images, slots), loras)
        shown: list[Condition] = [*request.images, replace(slots, seeded=True), *self.detail_references(request)]
        second = refinement_stage(whole, shown, loras + request.detailing_loras)
        stages = [replace(first, delivered=halve_size(shape)), replace(second, delivered=shape)]
        seams: Sequence[int] = canvas.keyframes
        for number in range(1, request.temporal_upsample_rounds + 1):
            whole, shape, seams = faster(whole), faster(shape), [2 * seam for seam in seams]
            stage, seams = round_stage(request, number, whole, seams, loras)
            stages.append(replace(stage, delivered=shape))
        return self.finish_plan(request, stages, audio="first")

    def detail_references(self, request: RoundsRequest) -> list[ReferenceCondition]:
        """The video of the first stage as reference, where there is an adapter to follow it."""
        factors = set()
        for lora in map(self.ledger.lora, request.detailing_loras):
            declared = "reference_downscale_factor" in lora.metadata
            factors.add(lora.reference_downscale_factor if declared else DETAIL_FACTOR)
        if len(factors) > 1:
            raise ConfigError(f"detailing adapters disagree on reference_downscale_factor: {sorted(factors)}")
        return [ReferenceCondition(None, downscale_factor=factor) for factor in factors]


def faster(shape: VideoPixelShape) -> VideoPixelShape:
    """The same clip at twice the frame rate: a new frame between any two."""
    return shape._replace(frames=2 * (shape.frames - 1) + 1, fps=2 * shape.fps)


def round_stage(
    request: Request, number: int, shape: VideoPixelShape, seams: Sequence[int], loras: Sequence[Lora]
) -> tuple[StagePlan, list[int]]:
    """Round ``number`` (from 1) of ``shape``, and the keyframes it carries on.

    ``seams`` are the pixel frames of the keyframes that are there; between any two of them one more is made.
    """
    tiles = temporal_tiles(seams, 2**number)
    slots = sorted({slot for tile in tiles for slot in tile.slots})
    images = (replace(image, frame_idx=image.frame_idx * 2**number) for image in request.images)
    video = StreamPlan(
        start="previous",
        noise_scale=TEMPORAL_ROUND_SIGMAS[0],
        conditions=(*images, CarriedKeyframes(tuple(seams), ANCHOR_STRENGTH), KeyframeSlots(tuple(slots), seeded=True)),
    )
    seed = request.seed + SEEDS_PER_ROUND * number
    stage = StagePlan(
        shape=shape._replace(fps=min(shape.fps, FASTEST)),
        sigmas=TEMPORAL_ROUND_SIGMAS,
        streams={"video": video},
        loras=tuple(loras),
        sampler=SamplerPlan("euler_ancestral", {"eta": ETA, "s_noise": 1.0}, seed),
        windows=tuple(Window(tile.pixel_start, tile.pixel_end, tile.dropped_latents) for tile in tiles),
    )
    return stage, sorted({*seams, *slots})
