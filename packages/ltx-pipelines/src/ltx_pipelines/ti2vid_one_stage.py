"""Text and images to video with sound, in one guided pass at the delivered size."""

from ltx_pipelines.pipeline import GUIDED, TEXT_AND_IMAGES, Pipeline
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.planning.stages import guided_stage
from ltx_pipelines.request import Request


class TI2VidOneStagePipeline(Pipeline):
    """One guided stage of a full model."""

    accepts = TEXT_AND_IMAGES | GUIDED
    uses = Pipeline.uses | {"spatial_upsampler"}
    aliases = ("one-stage",)

    def make_plan(self, request: Request) -> Plan:
        shape = self.shape(request)
        conditions = self.first_stage_conditions(request, shape.frames)
        stage = guided_stage(request, self.ledger.defaults, shape, conditions, self.loras)
        return self.finish_plan(request, [stage])
