"""Video to sound: a sound track for a silent clip, whose pictures are kept."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import COMMON, GUIDANCE, GUIDED, TIME, Pipeline
from ltx_pipelines.planning.plan import Plan, Source, StreamPlan
from ltx_pipelines.planning.stages import guided_stage, with_stream
from ltx_pipelines.request import Request


class V2AOneStagePipeline(Pipeline):
    """One guided stage whose video stream is frozen at the encoded clip.

    Size, length and rate are the clip's, and the frames delivered are its own.
    """

    accepts = (COMMON | GUIDED | {"video_path"}) - GUIDANCE["video"] - TIME
    usual: ClassVar[Mapping[str, Any]] = {"num_frames": 121}
    aliases = ("v2a",)

    def make_plan(self, request: Request) -> Plan:
        if request.video_path is None:
            raise ConfigError("video_path is not given, expected the clip that needs sound")
        shape, shown = self.source_shapes(request, self.probe(request.video_path))
        stage = guided_stage(request, self.ledger.defaults, shape, (), self.loras)
        picture = StreamPlan(start="source", noise_scale=0.0, frozen=True)
        stage = replace(with_stream(stage, "video", picture), delivered=shown)
        return self.finish_plan(request, [stage], sources={"video": Source(request.video_path, 0.0, shape.duration)})
