"""Whole pipelines: every state a stage starts from, its steps, its result, frames and sound."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_pipelines.a2vid_two_stage import A2VidPipelineTwoStage
from ltx_pipelines.dfr_pipeline import DFRPipeline
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.dubit import DubItPipeline
from ltx_pipelines.ic_lora import ICLoraPipeline
from ltx_pipelines.keyframe_interpolation import KeyframeInterpolationPipeline
from ltx_pipelines.pipeline import GUIDED, Pipeline
from ltx_pipelines.planning.layout import runs
from ltx_pipelines.planning.plan import BackendName, ImageCondition, Lora, StagePlan
from ltx_pipelines.request import AutoDuration
from ltx_pipelines.retake import RetakePipeline
from ltx_pipelines.running.decoding import decode_streams
from ltx_pipelines.running.engine import generate
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.running.stages import Event, Run, sampler_of, tools_of
from ltx_pipelines.running.texts import Contexts
from ltx_pipelines.t2a_one_stage import T2AOneStagePipeline
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.ti2vid_two_stages_hq import TI2VidTwoStagesHQPipeline
from ltx_pipelines.utils.model_ledger import ModelLedger
from tests.golden.case import TINY_CHECKPOINT, Case, assert_close

PIPELINES: dict[str, type[Pipeline]] = {
    pipeline.__name__: pipeline
    for pipeline in (
        A2VidPipelineTwoStage,
        DFRPipeline,
        DistilledPipeline,
        DubItPipeline,
        ICLoraPipeline,
        KeyframeInterpolationPipeline,
        RetakePipeline,
        T2AOneStagePipeline,
        TI2VidOneStagePipeline,
        TI2VidTwoStagesHQPipeline,
        TI2VidTwoStagesPipeline,
    )
}
MEDIA_ARGUMENTS = ("audio_path", "video_path", "reference_video_path", "conditioning_attention_mask")
IMAGE_FIELDS = ("path", "frame_idx", "strength", "crf")
# What a call means that leaves these out, where it is not this library's own default.
CALL_DEFAULTS: dict[type[Pipeline], dict[str, Any]] = {
    RetakePipeline: {"negative_prompt": "", "num_inference_steps": 40},
}
# Relative L2 errors that a bfloat16 run may have, by the end of a tensor's name, from the cases' README.
BF16_LIMITS = {
    "stage1.video_latent": 0.05,
    "stage1.audio_latent": 0.07,
    "stage2.video_latent": 0.010,
    "stage2.audio_latent": 0.012,
    "frames": 0.010,
    "audio": 0.04,
}


@cache
def ledger_for(folder: Path, dtype: torch.dtype, backend: BackendName) -> ModelLedger:
    return ModelLedger(find_model(str(folder)).files, dtype=dtype, device="cpu", policy="resident", backend=backend)


def checkpoint_folder(case: Case) -> Path:
    """Beside the case, or the one that all tests share; a case may name the folder or the file in it."""
    beside = case.directory / case.header.get("checkpoint", "tiny-checkpoint")
    if beside.is_file():
        return beside.parent
    return beside if beside.is_dir() else TINY_CHECKPOINT


def make_pipeline(case: Case, name: str, backend: BackendName) -> Pipeline:
    """The pipeline with the adapters the case names per stage."""
    ledger = ledger_for(checkpoint_folder(case), getattr(torch, case.header["dtype"]), backend)
    first, second = adapters(case, "stage1"), adapters(case, "stage2")
    kind = PIPELINES[name]
    if kind is TI2VidTwoStagesHQPipeline:  # the user's, then the distilled one at a strength per stage
        distilled = (second or first)[-1:]
        return kind(
            ledger, tuple(lora for lora in first if lora.path not in {one.path for one in distilled}), distilled
        )
    if kind in (DistilledPipeline, DFRPipeline, DubItPipeline, ICLoraPipeline):
        return kind(ledger, first)
    return kind(ledger, first, second[len(first) :])


def adapter_arguments(case: Case, pipeline: Pipeline) -> dict[str, Any]:
    """What a request says of the adapters the case names per stage."""
    first, second = adapters(case, "stage1"), adapters(case, "stage2")
    if isinstance(pipeline, TI2VidTwoStagesHQPipeline):
        paths = [lora.path for lora in pipeline.distilled_loras]
        strengths = [sum(lora.strength for lora in stage if [lora.path] == paths) for stage in (first, second)]
        return {"distilled_strength_1": strengths[0], "distilled_strength_2": strengths[1]}
    if isinstance(pipeline, DFRPipeline):  # what the second stage has besides are detailing adapters
        return {"detailing_loras": second[len(first) :]}
    return {}


def adapters(case: Case, stage: str) -> tuple[Lora, ...]:
    """Those of one stage: ``[file, strength]`` or ``{"path": ..., "strength": ...}`` each."""
    folder, given = checkpoint_folder(case), (case.header.get("loras") or {}).get(stage) or ()
    pairs = [(one["path"], one.get("strength", 1.0)) if isinstance(one, Mapping) else one for one in given]
    return tuple(Lora(str(next(folder.rglob(Path(file).name))), strength) for file, strength in pairs)


def arguments(case: Case, pipeline: Pipeline) -> dict[str, Any]:
    """The call arguments that have an effect in the pipeline, media found beside the case, values as their types."""
    given = {**CALL_DEFAULTS.get(type(pipeline), {}), **{k: v for k, v in case.args.items() if v is not None}}
    args = {name: value for name, value in given.items() if name in pipeline.fields()}
    if images := args.pop("images", None):
        args["images"] = [image_condition(case, image) for image in images]
    if references := args.pop("video_conditioning", None):
        args["video_conditioning"] = [reference(case, one) for one in references]
    for name in MEDIA_ARGUMENTS:
        if isinstance(args.get(name), str):
            args[name] = media(case, args[name])
    if (mask := given_mask(case)) is not None:
        args["conditioning_attention_mask"] = mask
    for name in ("video_guider_params", "audio_guider_params"):
        if isinstance(args.get(name), Mapping):
            args[name] = MultiModalGuiderParams(**args[name])
    if "auto_duration" in pipeline.accepts and not isinstance(args.get("num_frames"), int):
        limits = args.pop("num_frames", None)
        if limits is not None or pipeline.ledger.holds("duration_head"):
            args["num_frames"] = AutoDuration(**(limits if isinstance(limits, Mapping) else {}))
    return args


def media(case: Case, name: str) -> str:
    """A file among the inputs, else beside the case."""
    found = [folder / name for folder in (case.directory / "inputs", case.directory) if (folder / name).exists()]
    return str(found[0]) if found else name


def image_condition(case: Case, image: Mapping[str, Any] | Sequence[Any]) -> ImageCondition:
    """From a mapping of fields or from their values in order."""
    values = image if isinstance(image, Mapping) else dict(zip(IMAGE_FIELDS, image, strict=False))
    values = {name: value for name, value in values.items() if name in IMAGE_FIELDS and value is not None}
    return ImageCondition(**{**values, "path": media(case, values["path"])})


def reference(case: Case, given: Mapping[str, Any] | Sequence[Any]) -> tuple[str, float]:
    path, strength = (given["path"], given.get("strength", 1.0)) if isinstance(given, Mapping) else given
    return media(case, path), strength


def given_mask(case: Case) -> str | None:
    """A mask that the case holds as a tensor ``[1, 1, F, h, w]``, in a file of its own."""
    named = case.args.get("conditioning_attention_mask")
    if named is None and "in.conditioning_attention_mask" not in case.tensors:
        return None
    wanted = [str(named), f"in.{named}", "in.conditioning_attention_mask"]
    masks = [key for key, value in case.inputs.items() if "mask" in key and value.ndim == 5]
    keys = [key for key in (*wanted, *(f"in.{key}" for key in masks)) if key in case.tensors]
    if not keys:
        return None
    path = Path(tempfile.mkdtemp()) / "mask.safetensors"
    save_file({"mask": case.tensors[keys[0]].float().contiguous()}, path)
    return str(path)


def give_contexts(case: Case, ledger: ModelLedger) -> None:
    """The recorded texts: the case's own, else those it names among the recorded ones of all cases."""
    texts, named = case.group("in.context."), case.header.get("contexts")
    keys: Sequence[str] = ("positive", "negative")
    if not texts and isinstance(named, list):
        texts, keys = recorded_contexts(case.directory / "contexts.safetensors"), named
    for key, prompt in zip(keys, (case.args["prompt"], case.args.get("negative_prompt")), strict=False):
        if f"{key}.video" in texts and prompt is not None:
            ledger.texts.remember(prompt, Contexts(texts[f"{key}.video"], texts[f"{key}.audio"]))


@cache
def recorded_contexts(path: Path) -> dict[str, Tensor]:
    """Of all cases, as ``<key>.video`` and ``<key>.audio``."""
    return {name.removeprefix("in."): t for name, t in load_file(path).items()} if path.is_file() else {}


def run(case: Case, backend: BackendName = "torch") -> dict[str, Tensor]:
    name, _, options = case.key[1].partition("(")
    pipeline = make_pipeline(case, name, backend)
    asked = arguments(case, pipeline) | adapter_arguments(case, pipeline)
    if isinstance(pipeline, RetakePipeline):
        asked["distilled"] = "distilled=False" not in options and bool(case.args.get("distilled", True))
        asked = {name: value for name, value in asked.items() if not (asked["distilled"] and name in GUIDED)}
    give_contexts(case, pipeline.ledger)
    results: dict[str, Tensor] = {}
    plan, number = pipeline.plan(**asked), 0
    parts = [part for stage in plan.stages for part in runs(stage)]  # a window counts as a stage
    for event in generate(plan, pipeline.ledger):
        number += event.phase == "denoise" and event.step == 0
        event = replace(event, stage=max(number - 1, 0))
        if event.step == event.total > 0:
            results |= finished(case, event, parts[event.stage], pipeline.ledger)
        results |= started(event) if event.step == 0 else {}
        if event.step and not isinstance(pipeline, TI2VidTwoStagesHQPipeline):  # whose steps are two predictions each
            results |= stepped(event)
        if event.generation is not None:
            results |= outcome(case, as_made(event.generation, pipeline.ledger))
    results = {key: value for key, value in results.items() if key in case.tensors}
    if case.header["dtype"] == "bfloat16":
        check_bf16_limits(case, results)
    return results


def as_made(generation: Generation, ledger: ModelLedger) -> Generation:
    """The generation with all that its latents decode to, also where what is delivered is the source's own."""
    plan, stage = generation.plan, generation.plan.stages[-1]
    if plan.audio == "source" or all(plan.new_span(name) is None for name in stage.streams):
        return generation
    streams = {name: replace(stream, start="previous") for name, stream in stage.streams.items()}
    raw = plan.with_(stages=(*plan.stages[:-1], replace(stage, streams=streams, delivered=None)))
    assert generation.rng_state is not None
    run = Run(raw, ledger, (ledger.texts.contexts([plan.prompt])[0], None))
    run.noise.set_state(generation.rng_state)
    return decode_streams(replace(generation, plan=raw), run)


def started(event: Event) -> dict[str, Tensor]:
    """What a stage starts from. The mask of a frozen stream is 0 only once it is frozen."""
    results: dict[str, Tensor | None] = {}
    for name, state in event.states.items():
        stream = f"mid.stage{event.stage + 1}.{name}"
        fields = ("clean_latent", "denoise_mask", "positions", "attention_mask", "keyframes_mask")
        results |= {f"{stream}.{field}": getattr(state, field) for field in fields}
        results[f"{stream}.noised_latent"] = state.latent
        if state.frozen:
            del results[f"{stream}.denoise_mask"]
    return {key: value for key, value in results.items() if value is not None}


def stepped(event: Event) -> dict[str, Tensor]:
    """Tokens before the next step, and what the step predicted."""
    stage, results = f"mid.stage{event.stage + 1}", {}
    for name, state in event.states.items():
        results[f"{stage}.{name}.latent.{event.step}"] = state.latent
        results[f"{stage}.{name}.denoised.{event.step - 1}"] = event.results[name].denoised
    return results


def finished(case: Case, event: Event, plan: StagePlan, ledger: ModelLedger) -> dict[str, Tensor]:
    """The latents of a stage, without what its conditions appended."""
    stage, results = f"stage{event.stage + 1}", sigmas(case, f"in.stage{event.stage + 1}.sigmas", plan)
    for name, tools in tools_of(plan, ledger).items():
        state = tools.clear_conditioning(event.states[name])
        results[f"out.{stage}.{name}_latent"] = tools.unpatchify(state).latent
        if state.generated_keyframes is not None:
            named = [name for name in case.outputs if name.startswith(f"{stage}.") and name.endswith("keyframes")]
            results |= {f"out.{name}": state.generated_keyframes for name in named}
    return results


def outcome(case: Case, generation: Generation) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    if generation.upsampled is not None:
        results["mid.upsampled_latent"] = generation.upsampled
    if (keyframes := generation.generated_keyframes) is not None:
        results |= {f"out.{name}": keyframes for name in ("keyframes", "generated_keyframes")}
    record = case.header["run"]
    if generation.video is not None:
        frames = torch.cat(list(generation.video))
        assert list(frames.shape) == record.get("frames_shape", list(frames.shape))
        results["out.frames"] = frames[record.get("frames_saved", slice(None))]
    if generation.audio is not None:
        rate = generation.audio.sampling_rate
        assert rate == record.get("audio_sampling_rate", rate)
        waveform = generation.audio.waveform
        results["out.audio"] = waveform[0] if waveform.ndim == 3 else waveform
    return results


def sigmas(case: Case, name: str, stage: StagePlan) -> dict[str, Tensor]:
    """The plan's schedule, or what the sampler makes of it where that is what the case holds."""
    planned = torch.tensor(stage.sigmas)
    made = sampler_of(stage.sampler).schedule(planned)
    return {name: made if len(case.tensors.get(name, planned)) == len(made) else planned}


def check_bf16_limits(case: Case, results: Mapping[str, Tensor]) -> None:
    """Hold the results of a bfloat16 run to their relative L2 errors as well."""
    for key, value in results.items():
        ends = [end for end in BF16_LIMITS if key.startswith("out.") and key.endswith(end)]
        if ends:
            want = case.tensors[key].double()
            error = float((value.double() - want).norm() / want.norm())
            limit = BF16_LIMITS[ends[0]]
            assert error <= limit, f"{case.name}: {key}: relative error {error:.4f}, at most {limit}"


def encode(case: Case, backend: BackendName = "torch") -> dict[str, Tensor]:
    """Prompts to contexts, one by one."""
    ledger = ledger_for(checkpoint_folder(case), torch.float32, backend)
    for key, prompt in case.args.items():
        (contexts,) = ledger.texts.contexts([prompt])
        for name, got in (("video", contexts.video), ("audio", contexts.audio)):
            assert_close(got, case.tensors[f"in.{key}.{name}"], case.rtol, case.atol, f"{case.name}: {key}.{name}")
    return {}


NAMES = (*PIPELINES, "RetakePipeline(distilled=True)", "RetakePipeline(distilled=False)")
OPERATIONS: dict[tuple[str, str], Any] = {("pipeline", name): run for name in NAMES}
OPERATIONS["prompt_encoder", "encode"] = encode
