"""Video that follows a reference clip through an in-context adapter."""

from dataclasses import dataclass

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import COMMON, LARGE, TwoStagePipeline
from ltx_pipelines.planning.plan import Condition, Plan, ReferenceCondition
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.planning.stages import distilled_stage, halve_size, refinement_stage
from ltx_pipelines.request import Reference, Request, condition


@dataclass(frozen=True)
class ReferenceRequest(Request):
    """A request with clips to follow."""

    video_conditioning: tuple[Reference, ...] = condition((), "Clip to follow, and how closely (0 to 1).")
    conditioning_attention_mask: Reference | None = condition(
        None, "Grey clip, white = look at the reference, and a factor for it (0 to 1)."
    )
    conditioning_attention_strength: float = condition(
        1.0, "How much the clip looks at the reference.", least=0, most=1
    )
    skip_stage_2: bool = condition(False, "Deliver the first stage, at half the size.")


class ICLoraPipeline(TwoStagePipeline):
    """A distilled stage at half size with the references, then a plain one at full size without them."""

    accepts = COMMON | LARGE | {"images", "hdr"}
    variant = "distilled"

    def make_plan(self, request: ReferenceRequest) -> Plan:
        shape = self.shape(request)
        conditions: tuple[Condition, ...] = (*request.images, *self.references(request))
        first = distilled_stage(request, halve_size(shape), conditions, self.loras)
        if request.skip_stage_2:
            return self.finish_plan(request, [first])
        return self.finish_plan(request, [first, refinement_stage(shape, request.images)])

    def references(self, request: ReferenceRequest) -> list[ReferenceCondition]:
        """The request's references with the scale factors the adapters were trained with."""
        if not request.video_conditioning:
            raise ConfigError("video_conditioning is empty, expected at least one reference clip")
        mask, strength = request.conditioning_attention_mask, request.conditioning_attention_strength
        if mask is not None and mask.strength != 1 and strength != 1:
            raise UsageError("conditioning_attention_mask and conditioning_attention_strength both give a strength")
        strength *= 1.0 if mask is None else mask.strength
        spatial = self._agreed("reference_downscale_factor")
        temporal = self._agreed("reference_temporal_scale_factor")
        return [
            ReferenceCondition(
                clip.path, clip.strength, spatial, temporal, strength, None if mask is None else mask.path
            )
            for clip in request.video_conditioning
        ]

    def _agreed(self, factor: str) -> int:
        found = {lora.path: getattr(self.ledger.lora(lora), factor) for lora in self.loras}
        values = {value for value in found.values() if value != 1}
        if len(values) > 1:
            raise ConfigError(f"adapters disagree on {factor}: {found}")
        return values.pop() if values else 1
