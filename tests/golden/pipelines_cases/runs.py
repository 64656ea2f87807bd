"""Whole pipelines: every state a stage starts from, its steps, its result, frames and sound."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_pipelines.a2vid_two_stage import A2VidPipelineTwoStage
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.engine import Event
from ltx_pipelines.ic_lora import ICLoraPipeline
from ltx_pipelines.keyframe_interpolation import KeyframeInterpolationPipeline
from ltx_pipelines.pipeline import Pipeline
from ltx_pipelines.plan import ImageCondition, Lora
from ltx_pipelines.retake import RetakePipeline
from ltx_pipelines.t2a_one_stage import T2AOneStagePipeline
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.ti2vid_two_stages_hq import TI2VidTwoStagesHQPipeline
from ltx_pipelines.utils.model_files import find_model
from ltx_pipelines.utils.model_ledger import Contexts, ModelLedger
from tests.golden.case import TINY_CHECKPOINT, Case, assert_close

PIPELINES: dict[str, type[Pipeline]] = {
    pipeline.__name__: pipeline
    for pipeline in (
        A2VidPipelineTwoStage,
        DistilledPipeline,
        ICLoraPipeline,
        KeyframeInterpolationPipeline,
        RetakePipeline,
        T2AOneStagePipeline,
        TI2VidOneStagePipeline,
        TI2VidTwoStagesHQPipeline,
        TI2VidTwoStagesPipeline,
    )
}
MEDIA_ARGUMENTS = ("audio_path", "video_path", "conditioning_attention_mask")
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
def ledger_for(folder: Path, dtype: torch.dtype) -> ModelLedger:
    return ModelLedger(find_model(str(folder)).files, dtype=dtype, device="cpu", policy="resident")


def checkpoint_folder(case: Case) -> Path:
    """Beside the case, or the one that all tests share."""
    beside = case.directory / case.header.get("checkpoint", "tiny-checkpoint")
    return beside if beside.is_dir() else TINY_CHECKPOINT


def make_pipeline(case: Case, name: str) -> Pipeline:
    """The pipeline with the adapters the case names per stage."""
    folder = checkpoint_folder(case)
    ledger = ledger_for(folder, getattr(torch, case.header["dtype"]))
    stages = [
        tuple(Lora(str(folder / file), strength) for file, strength in case.header["loras"].get(f"stage{stage}") or ())
        for stage in (1, 2)
    ]
    kind = PIPELINES[name]
    if kind is TI2VidTwoStagesHQPipeline:
        strengths = (stages[0][-1].strength, stages[1][-1].strength)
        return TI2VidTwoStagesHQPipeline(ledger, stages[0][:-1], stages[1][-1:], strengths)
    if kind is ICLoraPipeline or kind is DistilledPipeline:
        return kind(ledger, stages[0])
    return kind(ledger, stages[0], stages[1][len(stages[0]) :])


def arguments(case: Case, pipeline: Pipeline) -> dict[str, Any]:
    """The case's arguments with media found beside it and guidance as values; the constructor's own left out."""
    inputs = case.directory / "inputs"
    args = dict(case.args)
    args["images"] = [
        ImageCondition(**{**image, "path": str(inputs / image["path"])})
        if isinstance(image, Mapping)
        else ImageCondition(str(inputs / image[0]), *image[1:])
        for image in args.get("images", ())
    ]
    if "video_conditioning" in args:
        args["video_conditioning"] = [(str(inputs / path), strength) for path, strength in args["video_conditioning"]]
    for name in MEDIA_ARGUMENTS:
        if isinstance(args.get(name), str):
            args[name] = str(inputs / args[name])
    if (mask := given_mask(case)) is not None:
        args["conditioning_attention_mask"] = mask
    for name in ("video_guider_params", "audio_guider_params"):
        if isinstance(args.get(name), Mapping):
            args[name] = MultiModalGuiderParams(**args[name])
    constructor = inspect.signature(type(pipeline).__init__).parameters
    return {
        name: value
        for name, value in args.items()
        if name not in constructor and value is not None and (name != "images" or value)
    }


def given_mask(case: Case) -> str | None:
    """A mask that the case holds as a tensor, in a file of its own."""
    named = case.args.get("conditioning_attention_mask")
    key = named if isinstance(named, str) and named in case.tensors else "in.conditioning_attention_mask"
    if key not in case.tensors:
        return None
    path = Path(tempfile.mkdtemp()) / "mask.safetensors"
    save_file({"mask": case.tensors[key].float().contiguous()}, path)
    return str(path)


def give_contexts(case: Case, ledger: ModelLedger) -> None:
    """The recorded texts, where the case brings its own."""
    texts = case.group("in.context.")
    if texts:
        prompts = {"positive": case.args["prompt"], "negative": case.args.get("negative_prompt")}
        for kind, prompt in prompts.items():
            if f"{kind}.video" in texts and prompt is not None:
                ledger.remember(prompt, Contexts(texts[f"{kind}.video"], texts[f"{kind}.audio"]))


def run(case: Case) -> dict[str, Tensor]:
    name, _, options = case.key[1].partition("(")
    pipeline = make_pipeline(case, name)
    if isinstance(pipeline, RetakePipeline):
        pipeline.distilled = "distilled=False" not in options and bool(case.args.get("distilled", True))
    give_contexts(case, pipeline.ledger)
    results: dict[str, Tensor] = {}
    for event in pipeline.stream(**arguments(case, pipeline)):
        results |= observed(event)
        if event.generation is not None:
            results |= outcome(case, event)
    results = {key: value for key, value in results.items() if key in case.tensors}
    if case.header["dtype"] == "bfloat16":
        check_bf16_limits(case, results)
    return results


def observed(event: Event) -> dict[str, Tensor]:
    """What a stage starts from, and its tokens before every later step."""
    stage, results = f"mid.stage{event.stage + 1}", {}
    for name, state in event.states.items():
        if event.step == 0:
            fields = ("clean_latent", "denoise_mask", "positions", "attention_mask", "keyframes_mask")
            results |= {f"{stage}.{name}.{field}": getattr(state, field) for field in fields}
            results[f"{stage}.{name}.noised_latent"] = state.latent
        else:
            results[f"{stage}.{name}.latent.{event.step}"] = state.latent
            results[f"{stage}.{name}.denoised.{event.step - 1}"] = event.results[name].denoised
    return {key: value for key, value in results.items() if value is not None}


def outcome(case: Case, event: Event) -> dict[str, Tensor]:
    generation = event.generation
    assert generation is not None
    results: dict[str, Tensor] = {}
    for index, latents in enumerate(generation.stages):
        results |= {f"out.stage{index + 1}.{name}_latent": latent for name, latent in latents.items()}
        results[f"in.stage{index + 1}.sigmas"] = torch.tensor(generation.plan.stages[index].sigmas)
    if generation.upsampled is not None:
        results["mid.upsampled_latent"] = generation.upsampled
    record = case.header["run"]
    if generation.video is not None:
        frames = torch.cat(list(generation.video))
        assert list(frames.shape) == record["frames_shape"]
        results["out.frames"] = frames[record["frames_saved"]]
    if generation.audio is not None:
        assert generation.audio.sampling_rate == record["audio_sampling_rate"]
        waveform = generation.audio.waveform
        results["out.audio"] = waveform[0] if waveform.ndim == 3 else waveform
    return results


def check_bf16_limits(case: Case, results: Mapping[str, Tensor]) -> None:
    """Hold the results of a bfloat16 run to their relative L2 errors as well."""
    for key, value in results.items():
        ends = [end for end in BF16_LIMITS if key.startswith("out.") and key.endswith(end)]
        if ends:
            want = case.tensors[key].double()
            error = float((value.double() - want).norm() / want.norm())
            limit = BF16_LIMITS[ends[0]]
            assert error <= limit, f"{case.name}: {key}: relative error {error:.4f}, at most {limit}"


def encode(case: Case) -> dict[str, Tensor]:
    """Prompts to contexts, one by one."""
    ledger = ledger_for(checkpoint_folder(case), torch.float32)
    for key, prompt in case.args.items():
        (contexts,) = ledger.contexts([prompt])
        for name, got in (("video", contexts.video), ("audio", contexts.audio)):
            assert_close(got, case.tensors[f"in.{key}.{name}"], case.rtol, case.atol, f"{case.name}: {key}.{name}")
    return {}


NAMES = (*PIPELINES, "RetakePipeline(distilled=True)", "RetakePipeline(distilled=False)")
OPERATIONS: dict[tuple[str, str], Any] = {("pipeline", name): run for name in NAMES}
OPERATIONS["prompt_encoder", "encode"] = encode
