"""From a request to a clip: pipelines, plans, the engine, memory policy and the command line.

What is exported here is imported when it is used::

    from ltx_pipelines import DistilledPipeline

    clip = DistilledPipeline.from_pretrained("tiny")("a red ball bounces")
    clip.save("ball.mp4")
"""

from ltx_core.exports import lazily

#: The pipelines, each with the module it stands in, whose name is also that of its command.
PIPELINES = {
    "TI2VidOneStagePipeline": "ti2vid_one_stage",
    "TI2VidTwoStagesPipeline": "ti2vid_two_stages",
    "TI2VidTwoStagesHQPipeline": "ti2vid_two_stages_hq",
    "DistilledPipeline": "distilled",
    "KeyframeInterpolationPipeline": "keyframe_interpolation",
    "A2VidPipelineTwoStage": "a2vid_two_stage",
    "ICLoraPipeline": "ic_lora",
    "HDRICLoraPipeline": "hdr_ic_lora",
    "DubItPipeline": "dubit",
    "DFRPipeline": "dfr_pipeline",
    "RetakePipeline": "retake",
    "ExtendPipeline": "extend",
    "UpscalePipeline": "upscale",
    "InterpolatePipeline": "interpolate",
    "V2AOneStagePipeline": "v2a_one_stage",
    "T2AOneStagePipeline": "t2a_one_stage",
    "LTXVideoPipeline": "ltx_video.pipeline",
    "LTXAudioVideoPipeline": "ltx_video.audio_video",
    "LongVideoPipeline": "long",
}
_EXPORTS = PIPELINES | {
    "AutoDuration": "request",
    "Generation": "running.generation",
    "ImageCondition": "planning.plan",
    "Lora": "planning.plan",
    "ModelFiles": "planning.plan",
    "ModelLedger": "utils.model_ledger",
    "Pipeline": "pipeline",
    "Plan": "planning.plan",
    "Reference": "request",
    "generate": "running.engine",
    "plan_from_json": "planning.plan",
    "request_schema": "pipeline",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
