"""Video with sound that passes through given pictures, each as extra tokens, so that motion stays smooth."""

from dataclasses import replace

from ltx_pipelines.pipeline import COMMON, GUIDED, LARGE, TwoStagePipeline
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.planning.stages import guided_stage, halve_size, refinement_stage
from ltx_pipelines.request import Request


class KeyframeInterpolationPipeline(TwoStagePipeline):
    """Two stages; every image guides, the one at frame 0 too. The sound is that of the second stage."""

    accepts = COMMON | LARGE | GUIDED | {"images", "keyframe_fade", "hdr"}
    uses = TwoStagePipeline.uses | {"distilled_loras"}
    aliases = ("keyframe", "keyframes")

    def make_plan(self, request: Request) -> Plan:
        shape = self.shape(request)
        keyframes = [replace(image, as_keyframe=True) for image in request.images]
        first = guided_stage(request, self.ledger.defaults, halve_size(shape), keyframes, self.loras)
        second = refinement_stage(shape, keyframes, self.loras + self.distilled_loras)
        return self.finish_plan(request, [first, second])
