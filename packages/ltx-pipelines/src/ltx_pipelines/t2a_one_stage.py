"""Text to sound, without pictures."""

from dataclasses import replace

from ltx_pipelines.pipeline import COMMON, GUIDED, Pipeline
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.planning.stages import guided_stage
from ltx_pipelines.request import Request


class T2AOneStagePipeline(Pipeline):
    """One guided stage of the audio stream alone; no other weight of the transformer is read."""

    accepts = (COMMON | GUIDED) - {"video_guider_params", "height", "width"}
    default_size = (512, 512)  # stands for the picture that is not made
    auto_duration = True

    def make_plan(self, request: Request) -> Plan:
        shape = request.shape(self.default_size, self.predicted_frames(request))  # any length: no picture to hold
        stage = guided_stage(request, self.ledger.defaults, shape, (), self.loras)
        stream = stage.streams["audio"]
        assert stream.guidance is not None
        alone = replace(stream, guidance=replace(stream.guidance, modality_scale=1.0))
        return self.finished(request, [replace(stage, streams={"audio": alone})])
