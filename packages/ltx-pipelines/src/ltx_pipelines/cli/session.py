"""From the options of a line to a pipeline on its networks and the request it is asked."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import typer

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.errors import CheckpointError, ConfigError, nearest_hint
from ltx_core.loader.quantization import policy_named
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.precision import DTYPE_NAMES
from ltx_pipelines.cli import options as o
from ltx_pipelines.cli.line import split_values
from ltx_pipelines.cli.tasks import BY_NAME, Known, Task, choose
from ltx_pipelines.pipeline import Pipeline
from ltx_pipelines.planning.plan import ImageCondition, Lora, ModelFiles
from ltx_pipelines.request import AutoDuration
from ltx_pipelines.running.model_files import FoundModel, find_model
from ltx_pipelines.utils.model_ledger import ModelLedger

DEFAULT_MODEL = "tiny"
MODEL_VARIABLE = "LTX_MODEL"
OFFLOAD = {"none": "resident", "cpu": "streamed", "disk": "sequential"}
POLICIES = ("auto", "resident", "sequential", "streamed")
# Options that are request fields under the same name and need no conversion.
PLAIN = (
    *("prompt", "negative_prompt", "seed", "num_inference_steps", "height", "width", "num_frames", "frame_rate"),
    *("generated_keyframes", "conditioning_attention_strength", "skip_stage_2", "audio_path", "audio_start_time"),
    *("reference_video_path", "reference_strength", "temporal_upsample_rounds"),
    *("audio_max_duration", "video_path", "start_time", "end_time", "extend_seconds", "direction", "max_batch_size"),
    *("snap",),
)
SPLIT = ("transformer", "text_encoder", "audio_vae", "duration_head")
EITHER_KIND = ("retake",)  # tasks for full and for distilled models


@dataclass(frozen=True)
class Session:
    """A pipeline with its networks, and what it is asked."""

    task: Task
    pipeline: Pipeline
    request: dict[str, Any]  # keyword arguments of the pipeline
    model: str  # as the user calls it

    @property
    def ledger(self) -> ModelLedger:
        return self.pipeline.ledger


def open_session(
    given: Mapping[str, Any], task: Task | None = None, share: dict[str, ModelLedger] | None = None
) -> Session:
    """The session of a line; without ``task`` the pipeline follows from what is given.

    ``share`` keeps ledgers between lines, so that those with the same model and settings load it once.
    """
    found = with_overrides(find_files(given, task), given)
    task = task or choose(given, known_of(found, given))
    if "prompt_enhancer" in given and not given.get("enhance_prompt"):
        raise typer.BadParameter("it has no effect without --enhance-prompt", param_hint="--prompt-enhancer-gemma-root")
    refuse_unused(given, task)
    ledger = make_ledger(found.files, given) if share is None else shared_ledger(found.files, given, share)
    pipeline = make_pipeline(task, found, ledger, given)
    return Session(task, pipeline, make_request(given, pipeline), model_name(given))


def refuse_unused(given: Mapping[str, Any], task: Task) -> None:
    """A chosen pipeline may have no use for something given."""
    for name in given:
        if name not in task.options and given[name] != o.OPTIONS[name].default:
            message = f"it has no effect in {task.command}, which follows from the other options; leave it out"
            raise typer.BadParameter(message, param_hint=o.OPTIONS[name].name)


# Model ------------------------------------------------------------------------------------------------------------


def model_name(given: Mapping[str, Any]) -> str:
    """What the user calls the model."""
    named = given.get("model") or given.get("checkpoint_path") or given.get("transformer")
    return str(named or os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL)


def find_files(given: Mapping[str, Any], task: Task | None) -> FoundModel:
    """The files of the model a line names: by file, by parts, or by folder, hub id or ``tiny``."""
    parts = [name for name in SPLIT if name in given]
    if parts and ("checkpoint_path" in given or "gemma_root" in given):
        used = o.OPTIONS[parts[0]].name
        raise typer.BadParameter(f"{used} names part of a split model, which has no --checkpoint-path or --gemma-root")
    if parts and "model" not in given:
        if "transformer" not in given:
            raise typer.BadParameter("a split model needs --transformer-path")
        return FoundModel(ModelFiles(given["transformer"]), is_distilled="distilled" in Path(given["transformer"]).name)
    return find_model(model_name(given), variant_of(task))


def variant_of(task: Task | None) -> str:
    """Which of several transformers in a folder a task wants."""
    distilled = task is None or task.command in ("distilled", "ic-lora", "dubit", *EITHER_KIND)
    return "distilled" if distilled else "dev"


def with_overrides(found: FoundModel, given: Mapping[str, Any]) -> FoundModel:
    """The files with those a line names one by one."""
    slots = {field.name for field in fields(ModelFiles)} - {"checkpoint"}
    named = {slot: str(given[slot]) for slot in slots if slot in given}
    if "gemma_root" in given:
        named["text_encoder"] = given["gemma_root"]
    for slot, path in named.items():
        if not Path(path).exists():
            raise CheckpointError(f"{slot} is {path}, which does not exist")
    if "distilled_loras" in given:
        found = replace(found, distilled_loras=loras(given, "distilled_loras"))
    return replace(found, files=replace(found.files, **named))


def known_of(found: FoundModel, given: Mapping[str, Any]) -> Known:
    """What the choice of a pipeline depends on."""
    return Known(
        distilled=found.is_distilled,
        has_upsampler=found.files.spatial_upsampler is not None,
        has_distilled_lora=bool(found.distilled_loras),
        reference_lora=any(
            "reference_downscale_factor" in SafetensorsFile(lora.path).metadata for lora in loras(given, "loras")
        ),
    )


def make_ledger(files: ModelFiles, given: Mapping[str, Any]) -> ModelLedger:
    """The networks of these files, placed as the line says."""
    if "policy" in given and "offload" in given:
        raise typer.BadParameter("--offload and --policy say the same, expected one of them")
    policy = one_of(given, "policy", POLICIES) or OFFLOAD.get(one_of(given, "offload", OFFLOAD) or "", "auto")
    if "quantization" in given:
        policy_named(given["quantization"])
    return ModelLedger(
        files,
        dtype=cast(Any, one_of(given, "dtype", DTYPE_NAMES)) or "auto",
        device=checked_device(given.get("device")),
        policy=cast(Any, policy),
        quantization=given.get("quantization"),
        compile_blocks=given.get("compile_blocks", False),
    )


def shared_ledger(files: ModelFiles, given: Mapping[str, Any], share: dict[str, ModelLedger]) -> ModelLedger:
    """The ledger of an earlier line with the same files and settings, else a new one, the old ones emptied."""
    key = repr((files, [given.get(name) for name in o.MEMORY]))
    if key not in share:
        for ledger in share.values():
            ledger.release()
        share.clear()
        share[key] = make_ledger(files, given)
    return share[key]


def checked_device(name: str | None) -> str | None:
    """A device torch knows and this machine has."""
    if name is None:
        return None
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ConfigError(f"device is {name!r}, which cannot be used: {reason}; see `ltx doctor`") from error
    return name


def one_of(given: Mapping[str, Any], name: str, choices: Collection[str]) -> str | None:
    """A value that must be one of some words."""
    if (value := given.get(name)) is None or value in choices:
        return value
    raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(choices)}{nearest_hint(value, choices)}")


def make_pipeline(task: Task, found: FoundModel, ledger: ModelLedger, given: Mapping[str, Any]) -> Pipeline:
    """The pipeline of a task."""
    module, _, name = task.pipeline.partition(":")
    extra: dict[str, Any] = {}
    if task.command in EITHER_KIND:
        distilled = not given.get("full_model", not found.is_distilled)
        guided = [name for name in given if name in ("num_inference_steps", *o.GUIDANCE["video"], *o.GUIDANCE["audio"])]
        if distilled and guided:
            message = "it has no effect on a distilled model; leave it out or say --full-model"
            raise typer.BadParameter(message, param_hint=o.OPTIONS[guided[0]].name)
        extra["distilled"] = distilled
    strengths = [given.get("distilled_strength_1"), given.get("distilled_strength_2")]
    if any(value is not None for value in strengths):
        pairs = zip(strengths, importlib.import_module(module).DISTILLED_STRENGTHS, strict=True)
        extra["distilled_strengths"] = tuple(usual if value is None else value for value, usual in pairs)
    if "detailing_loras" in given:
        extra["detailing_loras"] = loras(given, "detailing_loras")
    cls = getattr(importlib.import_module(module), name)
    return cls(ledger, loras(given, "loras"), found.distilled_loras, **extra)


def loras(given: Mapping[str, Any], name: str) -> tuple[Lora, ...]:
    """The adapters of a repeatable option."""
    unpacked = [split_values(o.OPTIONS[name], packed, (str, float)) for packed in given.get(name, ())]
    found = tuple(Lora(*values) for values in unpacked)
    for lora in found:
        if not Path(lora.path).is_file():
            raise CheckpointError(f"{o.OPTIONS[name].name} is {lora.path}, which does not exist")
    return found


# Request ----------------------------------------------------------------------------------------------------------


def make_request(given: Mapping[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """The keyword arguments a line means. A seed of -1 is drawn here."""
    request = {name: given[name] for name in PLAIN if name in given}
    if "seed" in request:
        request["seed"] = drawn_seed(request["seed"])
    usual = {"frame_rate": pipeline.default_request().get("frame_rate", 24.0)}
    for name, convert in CONVERTED.items():
        if name in given:
            request |= convert({**usual, **given})
    for stream in ("video", "audio"):
        if (params := guidance_of(given, stream, pipeline)) is not None:
            request[f"{stream}_guider_params"] = params
    return request


def drawn_seed(seed: int) -> int:
    """The seed, a random one for -1."""
    return random.SystemRandom().randrange(2**31) if seed == -1 else seed


def _images(given: Mapping[str, Any]) -> dict[str, Any]:
    option = o.OPTIONS["images"]
    unpacked = [split_values(option, packed, (str, int, float, int)) for packed in given["images"]]
    return {"images": tuple(ImageCondition(*values) for values in unpacked)}


def _sigmas(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"sigmas": tuple(split_values(o.OPTIONS["sigmas"], given["sigmas"], (float,)))}


def _references(given: Mapping[str, Any]) -> dict[str, Any]:
    option = o.OPTIONS["video_conditioning"]
    unpacked = [split_values(option, packed, (str, float)) for packed in given["video_conditioning"]]
    return {"video_conditioning": tuple((path, *(strength or (1.0,))) for path, *strength in unpacked)}


def _attention_mask(given: Mapping[str, Any]) -> dict[str, Any]:
    option = o.OPTIONS["conditioning_attention_mask"]
    path, *strength = split_values(option, given["conditioning_attention_mask"], (str, float))
    if strength and "conditioning_attention_strength" in given:
        raise typer.BadParameter("the strength is given twice", param_hint=option.name)
    return {"conditioning_attention_mask": path} | (
        {"conditioning_attention_strength": strength[0]} if strength else {}
    )


def _duration(given: Mapping[str, Any]) -> dict[str, Any]:
    if "num_frames" in given or "auto_duration" in given:
        raise typer.BadParameter("the length is given twice", param_hint="--duration")
    if not given["duration"] > 0:
        raise ConfigError(f"duration is {given['duration']}, expected more than 0 seconds")
    frames = round(given["duration"] * given["frame_rate"])
    return {"num_frames": max(round((frames - 1) / 8), 0) * 8 + 1}


def _auto_duration(given: Mapping[str, Any]) -> dict[str, Any]:
    if "num_frames" in given:
        raise typer.BadParameter("the length is given twice", param_hint="--auto-duration")
    return {"num_frames": AutoDuration(*split_values(o.OPTIONS["auto_duration"], given["auto_duration"], (float,)))}


CONVERTED: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "images": _images,
    "sigmas": _sigmas,
    "video_conditioning": _references,
    "conditioning_attention_mask": _attention_mask,
    "duration": _duration,
    "auto_duration": _auto_duration,
    "keep_video": lambda given: {"regenerate_video": False},
    "keep_audio": lambda given: {"regenerate_audio": False},
}


def guidance_of(given: Mapping[str, Any], stream: str, pipeline: Pipeline) -> MultiModalGuiderParams | None:
    """A stream's guidance where the line changes some of it; the rest is as it would be."""
    prefix = f"{stream}_"
    changes = {name.removeprefix(prefix): given[name] for name in o.GUIDANCE[stream] if name in given}
    if "stg_blocks" in changes:
        changes["stg_blocks"] = tuple(split_values(o.OPTIONS[f"{prefix}stg_blocks"], changes["stg_blocks"], (int,)))
    if not changes:
        return None
    return replace(pipeline.guidance(stream), **changes)


def task_named(command: str) -> Task:
    """The task of a sub-command or one of its other names."""
    return BY_NAME[command]
