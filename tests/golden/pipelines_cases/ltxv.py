"""LTX-Video 0.9.x: one pass, and two passes with the upsampler between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.types import VideoLatentShape
from ltx_pipelines.ltx_video.noise import GeneratorNoise, RecordedNoise
from ltx_pipelines.ltx_video.pipeline import Encode, LTXVEvent, LTXVInputs, pipeline_for
from ltx_pipelines.ltx_video.sampler import LTXVContexts
from ltx_pipelines.ltx_video.schedule import SchedulerConfig, pass_levels
from ltx_pipelines.ltx_video.settings import LTXVConfig, Sampling
from ltx_pipelines.ltx_video.tokens import LTXVCondition
from ltx_pipelines.planning.plan import BackendName, ModelFiles
from ltx_pipelines.utils.model_ledger import ModelLedger
from tests.golden.case import Case
from tests.golden.operations import Operation

CONFIG_KEYS = {field.name for field in fields(LTXVConfig)} - {"passes"}
SAMPLING_KEYS = {field.name for field in fields(Sampling)}


def numbered(case: Case, prefix: str) -> Iterator[Tensor]:
    """Tensors ``<prefix>0``, ``<prefix>1``, ..."""
    for index in count():
        if (name := f"{prefix}{index}") not in case.tensors:
            return
        yield case.tensors[name]


def open_ledger(case: Case, backend: BackendName) -> ModelLedger:
    folder = case.directory / case.header["checkpoint"]
    by_component: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        by_component |= dict.fromkeys(Checkpoint.open(file).components, file)
    upsampler = by_component.get("latent_upsampler")
    files = ModelFiles(str(by_component["transformer"]), spatial_upsampler=upsampler and str(upsampler))
    return ModelLedger(files, case.header["dtype"], device="cpu", policy="resident", backend=backend)


def config_of(case: Case) -> LTXVConfig:
    keys = {key: value for key, value in case.args.items() if key in CONFIG_KEYS | SAMPLING_KEYS}
    if strategy := case.args.get("skip_layer_strategy"):
        keys["stg_mode"] = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", strategy).lower()
    if two := case.args.get("multi_scale"):
        keys |= {"pipeline_type": "multi-scale", **two}
    return LTXVConfig.from_mapping(keys)


def inputs_of(case: Case) -> LTXVInputs:
    args, given = case.args, case.inputs
    conditions = [
        LTXVCondition(case.tensors[item["media"]].float(), item.get("frame", 0), item.get("strength", 1.0))
        for item in args.get("conditioning_items") or ()
    ]
    return LTXVInputs(
        contexts=LTXVContexts(
            given["prompt_embeds"],
            given["prompt_attention_mask"],
            given.get("negative_prompt_embeds"),
            given.get("negative_prompt_attention_mask"),
        ),
        height=args["height"],
        width=args["width"],
        num_frames=args["num_frames"],
        frame_rate=args["frame_rate"],
        conditions=tuple(conditions),
        media=case.tensors[args["media_items"]].float() if args.get("media_items") else None,
        latents=case.tensors[args["latents"]] if args.get("latents") else None,
        image_cond_noise_scale=args.get("image_cond_noise_scale", 0.0),
    )


def recorded_encoder(case: Case) -> Encode:
    latents = numbered(case, "in.encoded.")
    return lambda pixels: next(latents)


def seen(event: LTXVEvent) -> dict[str, Tensor]:
    """What a case may hold about the state after a step."""
    assert event.state is not None
    tokens, strengths = event.state.tokens, event.state.strengths
    name = f"pass{event.stage + 1}"
    if event.step:
        last = {f"out.{name}.latent_tokens": tokens} if event.step == event.total else {}
        return {f"mid.{name}.tokens_after_step.{event.step - 1}": tokens, **last}
    masks = {} if strengths is None else {f"mid.{name}.conditioning_mask": strengths}
    return {f"mid.{name}.initial_tokens": tokens, f"mid.{name}.pixel_coords": event.state.pixel_coords, **masks}


def run(case: Case, backend: BackendName = "torch") -> dict[str, Tensor]:
    config, ledger, inputs = config_of(case), open_ledger(case, backend), inputs_of(case)
    pipeline, noise = pipeline_for(ledger, config), RecordedNoise(numbered(case, "in.noise."))
    results: dict[str, Tensor] = {}
    last = None
    for last in pipeline.stream(inputs, noise, recorded_encoder(case)):
        if last.phase == "denoise":
            results |= seen(last)
            check_levels(case, last, pipeline.config, ledger)
    assert last is not None
    frames = torch.cat(list(pipeline.decode(last.latent, inputs, noise)))  # [F, H, W, 3]
    shape = [1, 3, *frames.shape[:3]]
    assert shape == case.header["run"]["frames_shape"]
    results["out.frames"] = frames[case.header["run"]["frames_saved"]].permute(3, 0, 1, 2)[None]
    check_seed(case)
    return {name: value for name, value in results.items() if name in case.tensors}


def check_levels(case: Case, event: LTXVEvent, config: LTXVConfig, ledger: ModelLedger) -> None:
    recorded = case.inputs[f"timesteps.{event.stage}"]
    scheduler = SchedulerConfig.chosen(config.sampler, ledger.config)
    cells = VideoLatentShape(*event.latent.shape).token_count
    levels = pass_levels(config.passes[event.stage], scheduler, cells)
    assert torch.allclose(levels, recorded, atol=1e-6), f"timesteps are {levels}, expected {recorded}"


def check_seed(case: Case) -> None:
    """All draws but the last (the decoder's) and those of stochastic sampling follow from the seed."""
    noise, recorded = GeneratorNoise(case.args["seed"]), list(numbered(case, "in.noise."))
    if not case.args.get("stochastic_sampling"):
        for draw in recorded[:-1]:
            assert torch.equal(noise.draw("initial", tuple(draw.shape), draw), draw)


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("ltxv_pipeline", "LTXVideoPipeline"): run,
    ("ltxv_pipeline", "LTXMultiScalePipeline"): run,
}
