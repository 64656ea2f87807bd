"""Text and images to video with sound at higher quality: the second-order sampler in both stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_pipelines.pipeline import GUIDED, TEXT_AND_IMAGES, TwoStagePipeline
from ltx_pipelines.planning.plan import Lora, Plan
from ltx_pipelines.planning.stages import guided_stage, halve_size, refinement_stage, schedule_for_size
from ltx_pipelines.request import Request, network

GUIDANCE = {
    "video": MultiModalGuiderParams(cfg_scale=3.0, rescale_scale=0.45, modality_scale=3.0),
    "audio": MultiModalGuiderParams(cfg_scale=7.0, rescale_scale=1.0, modality_scale=3.0),
}


@dataclass(frozen=True)
class HQRequest(Request):
    """A request with the strengths of the distilled adapter."""

    distilled_strength_1: float = network(
        0.25, "Strength of the distilled adapter in the first stage.", "--distilled-lora-strength-stage-1"
    )
    distilled_strength_2: float = network(
        0.5, "Strength of the distilled adapter in the second stage.", "--distilled-lora-strength-stage-2"
    )


class TI2VidTwoStagesHQPipeline(TwoStagePipeline):
    """A full model with its distilled adapter at part strength throughout. The sound is that of the first stage."""

    accepts = TEXT_AND_IMAGES | GUIDED
    uses = TwoStagePipeline.uses | {"distilled_loras"}
    usual: ClassVar[Mapping[str, Any]] = {
        **TwoStagePipeline.usual,
        "height": 1088,
        "width": 1920,
        "num_inference_steps": 15,
        "sampler": "res_2s",
    }
    aliases = ("two-stages-hq", "hq")

    def usual_guidance(self) -> Mapping[str, MultiModalGuiderParams]:
        return GUIDANCE

    def make_plan(self, request: HQRequest) -> Plan:
        shape = self.shape(request)
        request = schedule_for_size(request, halve_size(shape), self.ledger.scale_factors)
        conditions = self.first_stage_conditions(request, shape.frames)
        weak, strong = map(self._adapters, (request.distilled_strength_1, request.distilled_strength_2))
        first = guided_stage(request, self.ledger.defaults, halve_size(shape), conditions, weak)
        second = refinement_stage(shape, request.images, strong, first.sampler)
        return self.finish_plan(request, [first, second], audio="first")

    def _adapters(self, strength: float) -> tuple[Lora, ...]:
        distilled = [Lora(lora.path, strength) for lora in self.distilled_loras[:1]]
        return (*self.loras, *distilled)
