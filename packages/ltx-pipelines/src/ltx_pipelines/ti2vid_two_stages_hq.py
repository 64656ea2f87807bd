"""Text, and images, to video with sound at higher quality: the second-order sampler in both stages."""

from collections.abc import Mapping
from dataclasses import replace

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_pipelines.pipeline import COMMON, GUIDED, Loras, TwoStagePipeline
from ltx_pipelines.planning.plan import Lora, Plan, SamplerPlan
from ltx_pipelines.planning.stages import guided_stage, halved, refinement_stage, scheduled_for_size
from ltx_pipelines.request import Request
from ltx_pipelines.utils.model_ledger import ModelLedger

NUM_INFERENCE_STEPS = 15
GUIDANCE = {
    "video": MultiModalGuiderParams(cfg_scale=3.0, rescale_scale=0.45, modality_scale=3.0),
    "audio": MultiModalGuiderParams(cfg_scale=7.0, rescale_scale=1.0, modality_scale=3.0),
}
DISTILLED_STRENGTHS = (0.25, 0.5)  # of the distilled adapter in the two stages


class TI2VidTwoStagesHQPipeline(TwoStagePipeline):
    """A full model with its distilled adapter at part strength throughout. The sound is that of the first stage."""

    accepts = COMMON | GUIDED | {"images", "generated_keyframes"}
    default_size = (1088, 1920)
    auto_duration = True

    def __init__(
        self,
        ledger: ModelLedger,
        loras: Loras = (),
        distilled_loras: Loras = (),
        distilled_strengths: tuple[float, float] = DISTILLED_STRENGTHS,
    ) -> None:
        super().__init__(ledger, loras, distilled_loras)
        self.distilled_strengths = distilled_strengths

    def usual_guidance(self) -> Mapping[str, MultiModalGuiderParams]:
        return GUIDANCE

    def make_plan(self, request: Request) -> Plan:
        shape = self.shape(request)
        request = replace(
            request,
            num_inference_steps=request.num_inference_steps or NUM_INFERENCE_STEPS,
            video_guider_params=request.video_guider_params or GUIDANCE["video"],
            audio_guider_params=request.audio_guider_params or GUIDANCE["audio"],
        )
        request = scheduled_for_size(request, halved(shape), self.ledger.scale_factors)
        conditions = self.first_stage_conditions(request, shape.frames)
        first = guided_stage(request, self.ledger.defaults, halved(shape), conditions, self._adapters(0))
        second = refinement_stage(shape, request.images, self._adapters(1), SamplerPlan("res_2s"))
        return self.finished(request, [replace(first, sampler=SamplerPlan("res_2s")), second], audio="first")

    def _adapters(self, stage: int) -> tuple[Lora, ...]:
        distilled = [Lora(lora.path, self.distilled_strengths[stage]) for lora in self.distilled_loras[:1]]
        return (*self.loras, *distilled)
