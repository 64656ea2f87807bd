"""Video to video: a clip that follows reference clips through an in-context adapter."""

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import COMMON, TwoStagePipeline
from ltx_pipelines.planning.plan import Condition, Plan, ReferenceCondition
from ltx_pipelines.planning.stages import distilled_stage, halved, refinement_stage
from ltx_pipelines.request import Request


class ICLoraPipeline(TwoStagePipeline):
    """A distilled stage at half size with the references, then a plain one at full size without them."""

    accepts = COMMON | {
        "images",
        "video_conditioning",
        "conditioning_attention_strength",
        "conditioning_attention_mask",
        "skip_stage_2",
    }

    def make_plan(self, request: Request) -> Plan:
        shape = self.shape(request)
        conditions: tuple[Condition, ...] = (*request.images, *self.references(request))
        first = distilled_stage(request, halved(shape), conditions, self.loras)
        if request.skip_stage_2:
            return self.finished(request, [first])
        return self.finished(request, [first, refinement_stage(shape, request.images)])

    def references(self, request: Request) -> list[ReferenceCondition]:
        """The request's references with the scale factors the adapters were trained with."""
        if not request.video_conditioning:
            raise ConfigError("video_conditioning is empty, expected at least one reference clip")
        spatial = self._agreed("reference_downscale_factor")
        temporal = self._agreed("reference_temporal_scale_factor")
        return [
            ReferenceCondition(
                path,
                strength,
                spatial,
                temporal,
                request.conditioning_attention_strength,
                request.conditioning_attention_mask,
            )
            for path, strength in request.video_conditioning
        ]

    def _agreed(self, factor: str) -> int:
        found = {lora.path: getattr(self.ledger.lora(lora), factor) for lora in self.loras}
        values = {value for value in found.values() if value != 1}
        if len(values) > 1:
            raise ConfigError(f"adapters disagree on {factor}: {found}")
        return values.pop() if values else 1
