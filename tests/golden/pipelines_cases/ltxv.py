"""LTX-Video 0.9.x: one pass, and two passes with the upsampler between them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain, count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.networks import Contexts
from ltx_pipelines.ltx_video.pipeline import LTXVideoPipeline
from ltx_pipelines.ltx_video.run import LTXVideoRun, SeededNoise
from ltx_pipelines.ltx_video.settings import LTXVConfig, Sampling
from ltx_pipelines.planning.plan import BackendName, ImageCondition, ModelFiles, Plan
from ltx_pipelines.running import engine, stages
from ltx_pipelines.running.stages import Event
from ltx_pipelines.utils.media_io import write_png, write_video
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


class RecordedNoise:
    """Draws made before, given again in their order, whatever they are for."""

    def __init__(self, draws: Iterator[Tensor]) -> None:
        self.draws = draws

    def draw(self, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        noise = next(self.draws)
        assert tuple(noise.shape) == tuple(shape), f"recorded {use} noise is {list(noise.shape)}, not {list(shape)}"
        return noise.to(like)

    def get_state(self) -> None:
        return None

    def set_state(self, state: None) -> None:
        """What is recorded goes on where it is."""


class RecordedEncoder:
    """Latents made before, given again in their order, whatever is encoded."""

    def __init__(self, latents: Iterator[Tensor]) -> None:
        self.latents = latents

    def sample(self, video: Tensor, noise: Any) -> Tensor:
        return next(self.latents)


class RecordedRun(LTXVideoRun):
    """A run with the noise of a case."""

    case: Case

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.noise = RecordedNoise(numbered(self.case, "in.noise."))  # type: ignore[assignment]


def media_file(folder: Path, name: str, frames: int) -> str:
    """A grey picture or clip in the place of a case's tensor: what the encoder says of it is recorded."""
    grey = torch.full((frames, 32, 32, 3), 0.5)
    path = folder / f"{name}.{'png' if frames == 1 else 'mp4'}"
    if frames == 1:
        write_png(path, (grey[0] * 255).to(torch.uint8))
    else:
        write_video(path, iter([grey]), 24.0)
    return str(path)


def request_of(case: Case, folder: Path) -> dict[str, Any]:
    args = case.args
    images = [
        ImageCondition(
            media_file(folder, f"condition{index}", case.tensors[item["media"]].shape[2]),
            item.get("frame", 0),
            item.get("strength", 1.0),
        )
        for index, item in enumerate(args.get("conditioning_items") or ())
    ]
    started = args.get("media_items") or args.get("latents")
    source = {"input_media_path": media_file(folder, "source", args["num_frames"])} if started else {}
    sizes = {name: args[name] for name in ("height", "width", "num_frames", "frame_rate", "seed")}
    noise = {"image_cond_noise_scale": args.get("image_cond_noise_scale", 0.0)}
    return {"prompt": "positive", "negative_prompt": "negative", "images": images, **sizes, **noise, **source}


def give_inputs(case: Case, ledger: ModelLedger) -> None:
    """The recorded texts, and an encoder that gives the recorded latents."""
    given = case.inputs
    for name in ("prompt", "negative_prompt"):
        if f"{name}_embeds" in given:
            contexts = Contexts(given[f"{name}_embeds"], mask=given[f"{name}_attention_mask"])
            ledger.texts.remember("positive" if name == "prompt" else "negative", contexts)
    latents = numbered(case, "in.encoded.")
    if case.args.get("latents"):
        latents = chain([case.tensors[case.args["latents"]]], latents)
    encoder, network = RecordedEncoder(latents), ledger.network

    def found(component: str, in_float32: bool = False) -> Any:
        return encoder if component == "video_encoder" else network(component, in_float32)

    ledger.network = found  # type: ignore[method-assign]


def seen(event: Event, fps: float) -> dict[str, Tensor]:
    """What a case may hold about the state after a step."""
    state, name = event.states["video"], f"pass{event.stage + 1}"
    if event.step:
        last = {f"out.{name}.latent_tokens": state.latent} if event.step == event.total else {}
        return {f"mid.{name}.tokens_after_step.{event.step - 1}": state.latent, **last}
    coords = state.positions * torch.tensor([fps, 1.0, 1.0])[:, None]
    masks = {f"mid.{name}.conditioning_mask": 1 - state.denoise_mask[..., 0]}
    return {f"mid.{name}.initial_tokens": state.latent, f"mid.{name}.pixel_coords": coords, **masks}


def run(case: Case, backend: BackendName = "torch") -> dict[str, Tensor]:
    pipeline = LTXVideoPipeline(open_ledger(case, backend))
    pipeline.config = config_of(case)
    give_inputs(case, pipeline.ledger)
    results: dict[str, Tensor] = {}
    kind = type("Recorded", (RecordedRun,), {"case": case})
    with tempfile.TemporaryDirectory() as folder, patch.object(stages, "LTXVideoRun", kind):
        plan = pipeline.plan(**request_of(case, Path(folder)))
        check_levels(case, plan)
        for event in engine.generate(plan, pipeline.ledger):
            if event.phase == "denoise":
                results |= seen(event, plan.shape.fps)
            if event.generation is not None:
                assert event.generation.video is not None
                frames = torch.cat(list(event.generation.video))  # [F, H, W, 3]
    assert [1, 3, *frames.shape[:3]] == case.header["run"]["frames_shape"]
    results["out.frames"] = frames[case.header["run"]["frames_saved"]].permute(3, 0, 1, 2)[None]
    check_seed(case)
    return {name: value for name, value in results.items() if name in case.tensors}


def check_levels(case: Case, plan: Plan) -> None:
    for index, stage in enumerate(plan.stages):
        levels, recorded = torch.tensor(stage.sigmas[:-1]), case.inputs[f"timesteps.{index}"]
        assert torch.allclose(levels, recorded, atol=1e-6), f"timesteps are {levels}, expected {recorded}"


def check_seed(case: Case) -> None:
    """All draws but the last (the decoder's) and those of stochastic sampling follow from the seed."""
    noise, recorded = SeededNoise(case.args["seed"]), list(numbered(case, "in.noise."))
    if not case.args.get("stochastic_sampling"):
        for draw in recorded[:-1]:
            assert torch.equal(noise.draw("initial", tuple(draw.shape), draw), draw)


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("ltxv_pipeline", "LTXVideoPipeline"): run,
    ("ltxv_pipeline", "LTXMultiScalePipeline"): run,
}
