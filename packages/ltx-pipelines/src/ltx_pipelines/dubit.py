"""New speech for a clip, in its own voice; the picture is kept, what is said follows the prompt."""

from dataclasses import dataclass, replace

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import COMMON, TIME, TwoStagePipeline
from ltx_pipelines.planning.plan import AudioReferenceCondition, Condition, Plan, ReferenceCondition, StagePlan
from ltx_pipelines.planning.schema import File
from ltx_pipelines.planning.stages import distilled_stage, halve_size, refinement_stage, with_stream
from ltx_pipelines.request import Request, condition


@dataclass(frozen=True)
class DubRequest(Request):
    """A request with the clip that is dubbed."""

    reference_video_path: File | None = condition(None, "Clip with the voice to keep.", "--reference-video")
    reference_strength: float = condition(1.0, "How closely to follow it.", least=0, most=1)


class DubItPipeline(TwoStagePipeline):
    """Two distilled stages that both follow the clip through one in-context adapter.

    The voice of the clip is heard as tokens before time 0. The first stage speaks; the second holds that sound, hears
    it as its own reference and refines the picture. The length and the frame rate are the clip's.
    """

    accepts = (COMMON | {"images"}) - TIME
    variant = "distilled"
    aliases = ("dub",)

    def make_plan(self, request: DubRequest) -> Plan:
        if (path := request.reference_video_path) is None:
            raise ConfigError("reference_video_path is not given, expected a clip with sound")
        if len(self.loras) != 1:
            raise ConfigError(f"{len(self.loras)} adapters are given, expected the one that was trained for dubbing")
        clip = self.probe(path)
        frames = clip.frames if request.snap is False else self.ledger.scale_factors.cover_frames(clip.frames)
        shape = self.shape(request, frames, float(clip.fps))
        factor = self.ledger.lora(self.loras[0]).reference_downscale_factor
        conditions: tuple[Condition, ...] = (
            *request.images,
            ReferenceCondition(path, request.reference_strength, factor),
        )
        first = distilled_stage(request, halve_size(shape), conditions, self.loras)
        second = refinement_stage(shape, conditions, self.loras)
        stages = [
            with_voice(first, path),
            replace(with_kept_sound(second), delivered=shape._replace(frames=clip.frames)),
        ]
        return self.finish_plan(request, stages, audio="first")


def with_voice(stage: StagePlan, path: str) -> StagePlan:
    """The stage with the voice of a clip as reference."""
    return with_stream(stage, "audio", replace(stage.streams["audio"], conditions=(AudioReferenceCondition(path),)))


def with_kept_sound(stage: StagePlan) -> StagePlan:
    """The stage with the sound of the one before, unchanged, which is its own reference."""
    conditions = (AudioReferenceCondition(None),)
    return with_stream(
        stage, "audio", replace(stage.streams["audio"], noise_scale=0.0, frozen=True, conditions=conditions)
    )
