"""Make a span of a clip anew, its pictures, its sound or both; the rest stays."""

from dataclasses import replace

from ltx_core.errors import ConfigError
from ltx_core.types import VideoPixelShape
from ltx_pipelines.pipeline import COMMON, GUIDED, Loras, Pipeline
from ltx_pipelines.planning.plan import Plan, RegionCondition, Source, StagePlan, StreamPlan
from ltx_pipelines.planning.stages import distilled_stage, guided_stage
from ltx_pipelines.request import Request
from ltx_pipelines.utils.media_io import probe_video
from ltx_pipelines.utils.model_ledger import ModelLedger


class RetakePipeline(Pipeline):
    """One stage on the whole clip, in which only tokens that overlap ``[start_time, end_time)`` are noised.

    A stream that is not regenerated is frozen at its source. A clip without sound gets new sound throughout.
    """

    accepts = (COMMON | GUIDED) - {"height", "width", "num_frames", "frame_rate"} | {
        "video_path",
        "start_time",
        "end_time",
        "regenerate_video",
        "regenerate_audio",
    }

    def __init__(
        self, ledger: ModelLedger, loras: Loras = (), distilled_loras: Loras = (), distilled: bool = True
    ) -> None:
        super().__init__(ledger, loras, distilled_loras)
        self.distilled = distilled

    def make_plan(self, request: Request) -> Plan:
        if request.video_path is None or request.start_time is None or request.end_time is None:
            raise ConfigError("video_path, start_time and end_time are all needed")
        if not 0 <= request.start_time < request.end_time:
            raise ConfigError(f"the span is {request.start_time} to {request.end_time} s, expected 0 <= start < end")
        if not (request.regenerate_video or request.regenerate_audio):
            raise ConfigError("regenerate_video and regenerate_audio are both off, expected at least one on")
        shape = self.source_shape(request, request.video_path)
        region = RegionCondition(request.start_time, request.end_time)
        anew = {"video": request.regenerate_video, "audio": request.regenerate_audio}
        sounding = probe_video(request.video_path).has_audio
        stage = self._stage(request, shape)
        streams = {
            name: _stream(stream, region if anew[name] else None)
            for name, stream in stage.streams.items()
            if name == "video" or sounding
        }
        source = Source(request.video_path, 0.0, shape.duration)
        return self.finished(
            request,
            [replace(stage, streams={**stage.streams, **streams})],
            sources=dict.fromkeys(streams, source),
        )

    def _stage(self, request: Request, shape: VideoPixelShape) -> StagePlan:
        if self.distilled:
            return distilled_stage(request, shape, (), self.loras)
        return guided_stage(request, self.ledger.defaults, shape, (), self.loras)


def _stream(stream: StreamPlan, region: RegionCondition | None) -> StreamPlan:
    if region is None:
        return StreamPlan(start="source", noise_scale=0.0, frozen=True)
    return replace(stream, start="source", conditions=(region,))
