"""Sound to video: pictures for a given sound, which is delivered untouched."""

from dataclasses import dataclass

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import COMMON, GUIDANCE, GUIDED, LARGE, TwoStagePipeline
from ltx_pipelines.planning.plan import Plan, Source, StreamPlan
from ltx_pipelines.planning.schema import File
from ltx_pipelines.planning.stages import guided_stage, halve_size, refinement_stage, with_stream
from ltx_pipelines.request import Request, condition


@dataclass(frozen=True)
class SoundRequest(Request):
    """A request with a given sound."""

    audio_path: File | None = condition(None, "Sound, or a clip with sound.", "--audio-path", "--audio")
    audio_start_time: float = condition(0.0, "Where in the sound to begin.", unit="seconds", least=0)
    audio_max_duration: float | None = condition(
        None, "How much of the sound to use.", unit="seconds", positive=True, shown="the clip's length"
    )


class A2VidPipelineTwoStage(TwoStagePipeline):
    """Two stages whose audio stream is frozen at the encoded sound."""

    accepts = (COMMON | LARGE | GUIDED | {"images", "hdr"}) - GUIDANCE["audio"]
    uses = TwoStagePipeline.uses | {"distilled_loras"}
    aliases = ("a2v", "a2vid")

    def make_plan(self, request: SoundRequest) -> Plan:
        if request.audio_path is None:
            raise ConfigError("audio_path is not given, expected a sound or a clip with sound")
        shape = self.shape(request)
        sound = StreamPlan(start="source", noise_scale=0.0, frozen=True)
        first = guided_stage(request, self.ledger.defaults, halve_size(shape), request.images, self.loras)
        second = refinement_stage(shape, request.images, self.loras + self.distilled_loras)
        return self.finish_plan(
            request,
            [with_stream(first, "audio", sound), with_stream(second, "audio", sound)],
            sources={"audio": Source(request.audio_path, request.audio_start_time, request.audio_max_duration)},
            audio="source",
        )
