"""The pipelines as commands: what each is called, which options have an effect in it, and how one is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx_pipelines.cli import options as o

ENHANCING = ("enhance_prompt", "prompt_enhancer")
COMMON = ("prompt", "output", "seed", "sigmas", *ENHANCING, *o.MODEL, *o.MEMORY, *o.SHOWING)
SIZED = ("height", "width", "num_frames", "duration", "frame_rate", "snap")
GUIDED = ("negative_prompt", "num_inference_steps", "max_batch_size", *o.GUIDANCE["video"], *o.GUIDANCE["audio"])
STAGES = (*o.SECOND_STAGE,)
NO_STAGES_KEPT = {"keep_latents", "first_stage"}


@dataclass(frozen=True)
class Task:
    """One pipeline. ``pipeline`` is ``module:Class``, imported when the task is run."""

    command: str
    pipeline: str
    summary: str
    options: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    suffix: str = ".mp4"  # of a file whose name was not given
    two_stages: bool = False


def _task(command: str, pipeline: str, summary: str, *groups: object, **fields: Any) -> Task:
    """A task with the common options; a string is one option, a tuple several, a set what is left out again."""
    names = dict.fromkeys(COMMON if fields.get("two_stages") else (n for n in COMMON if n not in NO_STAGES_KEPT))
    for group in groups:
        if isinstance(group, set):
            names = {name: None for name in names if name not in group}
        else:
            names |= dict.fromkeys([group] if isinstance(group, str) else group)  # type: ignore[call-overload]
    return Task(command, f"ltx_pipelines.{pipeline}", summary, tuple(names), **fields)


TASKS = (
    _task(
        "ti2vid-one-stage",
        "ti2vid_one_stage:TI2VidOneStagePipeline",
        "Text and images to video with sound, in one guided pass.",
        (*SIZED, "auto_duration", "images", "generated_keyframes", *GUIDED),
        aliases=("one-stage",),
    ),
    _task(
        "ti2vid-two-stages",
        "ti2vid_two_stages:TI2VidTwoStagesPipeline",
        "The same at half size, then refined at full size.",
        (*SIZED, "auto_duration", "images", "generated_keyframes", *GUIDED, *STAGES),
        aliases=("two-stages",),
        two_stages=True,
    ),
    _task(
        "ti2vid-two-stages-hq",
        "ti2vid_two_stages_hq:TI2VidTwoStagesHQPipeline",
        "Two stages with the second-order sampler.",
        (*SIZED, "auto_duration", "images", "generated_keyframes", *GUIDED, *STAGES, *o.HQ),
        aliases=("two-stages-hq", "hq"),
        two_stages=True,
    ),
    _task(
        "distilled",
        "distilled:DistilledPipeline",
        "Text and images to video with sound on a distilled model.",
        (*SIZED, "auto_duration", "images", "generated_keyframes", "spatial_upsampler"),
        two_stages=True,
    ),
    _task(
        "keyframe-interpolation",
        "keyframe_interpolation:KeyframeInterpolationPipeline",
        "Video that passes smoothly through given pictures.",
        (*SIZED, "images", *GUIDED, *STAGES),
        aliases=("keyframe", "keyframes"),
        two_stages=True,
    ),
    _task(
        "a2vid-two-stage",
        "a2vid_two_stage:A2VidPipelineTwoStage",
        "Pictures for a given sound.",
        (*SIZED, "images", "audio_path", "audio_start_time", "audio_max_duration", *GUIDED, *STAGES),
        set(o.GUIDANCE["audio"]),
        aliases=("a2v", "a2vid"),
        two_stages=True,
    ),
    _task(
        "ic-lora",
        "ic_lora:ICLoraPipeline",
        "Video that follows a reference clip through an in-context adapter.",
        (*SIZED, "images", "video_conditioning", "conditioning_attention_mask", "conditioning_attention_strength"),
        ("skip_stage_2", "spatial_upsampler"),
        two_stages=True,
    ),
    _task(
        "dubit",
        "dubit:DubItPipeline",
        "New speech for a clip, in its own voice.",
        ("height", "width", "snap", "images", "reference_video_path", "reference_strength", "spatial_upsampler"),
        aliases=("dub",),
        two_stages=True,
    ),
    _task(
        "dfr-pipeline",
        "dfr_pipeline:DFRPipeline",
        "Text and images to long or fast video, through keyframes of its own.",
        (*SIZED, "auto_duration", "images", "temporal_upsample_rounds", *STAGES, *o.ROUNDS),
        aliases=("dfr",),
        two_stages=True,
    ),
    _task(
        "retake",
        "retake:RetakePipeline",
        "Make a span of a clip anew, pictures, sound or both.",
        ("video_path", "start_time", "end_time", "keep_video", "keep_audio", "full_model", *GUIDED, "snap"),
    ),
    _task(
        "extend",
        "extend:ExtendPipeline",
        "Continue a clip, after its end or before its start.",
        ("video_path", "height", "width", "extend_seconds", "direction", *GUIDED, "snap"),
    ),
    _task(
        "v2a-one-stage",
        "v2a_one_stage:V2AOneStagePipeline",
        "Sound for a silent clip.",
        ("video_path", "height", "width", *GUIDED, "snap"),
        set(o.GUIDANCE["video"]),
        aliases=("v2a",),
    ),
    _task(
        "t2a-one-stage",
        "t2a_one_stage:T2AOneStagePipeline",
        "Text to sound.",
        ("num_frames", "duration", "auto_duration", "frame_rate", "snap", *GUIDED),
        {*o.GUIDANCE["video"], "audio_modality_scale", "contact_sheet"},
        aliases=("t2a",),
        suffix=".wav",
    ),
)
BY_NAME: dict[str, Task] = {name: task for task in TASKS for name in (task.command, *task.aliases)}


# Option -> the pipeline that alone has a use for it; the first that is given decides.
ASKED_BY = {
    "extend_seconds": "extend",
    "start_time": "retake",
    "end_time": "retake",
    "video_path": "v2a-one-stage",
    "reference_video_path": "dubit",
    "temporal_upsample_rounds": "dfr-pipeline",
    "detailing_loras": "dfr-pipeline",
    "video_conditioning": "ic-lora",
    "audio_path": "a2vid-two-stage",
    "distilled_strength_1": "ti2vid-two-stages-hq",
    "distilled_strength_2": "ti2vid-two-stages-hq",
}


@dataclass(frozen=True)
class Known:
    """What the choice of a task depends on besides the options."""

    distilled: bool
    has_upsampler: bool
    has_distilled_lora: bool
    reference_lora: bool = False  # an adapter given was trained with a reference clip


def choose(given: Mapping[str, Any], known: Known) -> Task:
    """The task that uses what is given: source clip, reference, sound, pictures, and what the model can do."""
    asked = next((command for option, command in ASKED_BY.items() if option in given), None)
    if asked is not None:
        return BY_NAME[asked]
    refined = "ti2vid-two-stages" if known.has_distilled_lora else "ti2vid-one-stage"
    two_stages = "distilled" if known.distilled else refined
    plain = two_stages if known.has_upsampler else "ti2vid-one-stage"
    if known.reference_lora:
        name = "ic-lora"
    elif str(given.get("output", "")).lower().endswith(".wav"):
        name = "t2a-one-stage"
    elif len(given.get("images", ())) > 1 and plain == "ti2vid-two-stages":
        name = "keyframe-interpolation"
    else:
        name = plain
    return BY_NAME[name]
