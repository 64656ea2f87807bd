"""Text and images to video with sound on a distilled model: eight steps at half size, three at full size."""

from ltx_pipelines.pipeline import TEXT_AND_IMAGES, TwoStagePipeline
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.planning.stages import distilled_stage, halve_size, refinement_stage
from ltx_pipelines.request import Request


class DistilledPipeline(TwoStagePipeline):
    """Two stages without guidance. From version 2.5 on the first stage is sampled with fresh noise at every step."""

    accepts = TEXT_AND_IMAGES
    variant = "distilled"

    def make_plan(self, request: Request) -> Plan:
        shape = self.shape(request)
        conditions = self.first_stage_conditions(request, shape.frames)
        ancestral = self.ledger.defaults.ancestral_stage_1
        first = distilled_stage(request, halve_size(shape), conditions, self.loras, ancestral)
        second = refinement_stage(shape, request.images, self.loras)
        return self.finish_plan(request, [first, second])
