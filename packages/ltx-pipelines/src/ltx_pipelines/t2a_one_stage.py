"""Text to sound."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ltx_pipelines.pipeline import COMMON, GUIDANCE, GUIDED, SIZE, Pipeline
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.planning.stages import guided_stage
from ltx_pipelines.request import Request


class T2AOneStagePipeline(Pipeline):
    """One guided stage of the audio stream alone; no other weight of the transformer is read."""

    accepts = (COMMON | GUIDED | {"auto_duration"}) - GUIDANCE["video"] - SIZE - {"audio_modality_scale", "background"}
    uses = frozenset[str]()
    usual: ClassVar[Mapping[str, Any]] = {"height": 512, "width": 512, "num_frames": 121}  # of a picture nobody sees
    aliases = ("t2a",)
    suffix = ".wav"

    def make_plan(self, request: Request) -> Plan:
        shape = request.shape(self.predicted_frames(request))  # any length: no picture to hold
        stage = guided_stage(request, self.ledger.defaults, shape, (), self.loras)
        return self.finish_plan(request, [replace(stage, streams={"audio": stage.streams["audio"]})])
