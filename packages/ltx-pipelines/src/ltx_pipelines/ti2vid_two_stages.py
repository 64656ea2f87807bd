"""Text and images to video with sound: a guided stage at half size, then three distilled steps at full size."""

from ltx_pipelines.pipeline import GUIDED, TEXT_AND_IMAGES, TwoStagePipeline
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.planning.stages import guided_stage, halve_size, refinement_stage
from ltx_pipelines.request import Request


class TI2VidTwoStagesPipeline(TwoStagePipeline):
    """A full model, refined by its distilled adapter. The sound is that of the first stage."""

    accepts = TEXT_AND_IMAGES | GUIDED
    uses = TwoStagePipeline.uses | {"distilled_loras"}
    aliases = ("two-stages",)

    def make_plan(self, request: Request) -> Plan:
        shape = self.shape(request)
        conditions = self.first_stage_conditions(request, shape.frames)
        first = guided_stage(request, self.ledger.defaults, halve_size(shape), conditions, self.loras)
        second = refinement_stage(shape, request.images, self.loras + self.distilled_loras)
        return self.finish_plan(request, [first, second], audio="first")
