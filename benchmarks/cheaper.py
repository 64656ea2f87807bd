"""Cheaper attention: changes of clips of the bundled model, operations left out of a pass of the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Options, Table
from benchmarks.models import TEXT_TOKENS, published
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.sparse import BlockPattern
from ltx_core.sampling.denoisers import GuidancePass
from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx_pipelines import TI2VidOneStagePipeline
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import SparseAttention
from ltx_pipelines.planning.work import Call, CallCounter
from ltx_pipelines.running.generation import Generation

PROMPTS = ("a red ball bounces on a blue floor", "a green square slides to the right")
STEPS = 30
SPARSE = tuple(
    SparseAttention(stride, 16, steps, layers)
    for stride, steps, layers in ((1, 0, 0), (4, 0, 0), (4, 1, 1), (4, 6, 1), (16, 6, 1), (16, 15, 1))
)
MODELS = ("ltx-2-19b", "ltx-2.3-22b")
CLIPS = ((1088, 1920, 121), (2176, 3840, 257))
STRIDES = (4, 8, 16, 64)


def run(options: Options) -> list[Table]:
    return [errors(options), operations(options)]


# Errors ---------------------------------------------------------------------------------------------------------------


def errors(options: Options) -> Table:
    """Against the clip of the same seed with nothing left out; another seed's clip is the most it can be."""
    columns = ("left out", "operations", "latent error", "dB of frames", "sound error")
    table = Table("On the bundled model, means over prompts", columns)
    pipeline = TI2VidOneStagePipeline.from_pretrained("tiny", device=str(options.device), dtype="float32")
    steps, prompts = (3, PROMPTS[:1]) if options.quick else (STEPS, PROMPTS)
    arms: dict[str, dict[str, Any]] = {
        named(sparse): {"sparse_attention": sparse} for sparse in SPARSE if sparse.steps < steps
    }
    arms["nothing, but another seed"] = {"seed": 11}
    exact = [pipeline(prompt, num_inference_steps=steps) for prompt in prompts]
    frames = [decoded(one) for one in exact]
    whole = flops_of(pipeline, exact[0])
    for name, more in arms.items():
        made = [pipeline(prompt, num_inference_steps=steps, **more) for prompt in prompts]
        differences = [difference(*pair) for pair in zip(made, exact, strict=True)]
        noise = [decibels(decoded(one), want) for one, want in zip(made, frames, strict=True)]
        means = [mean([one[stream] for one in differences]) for stream in ("video", "audio")]
        share = flops_of(pipeline, made[0]) / whole
        table.rows.append([name, f"{share:.3f}", f"{means[0]:.1e}", f"{mean(noise):.1f}", f"{means[1]:.1e}"])
    table.notes.append("latent and sound error: root mean square of the difference over the spread of the latent")
    return table


def named(sparse: SparseAttention) -> str:
    return "sparse " + " ".join(map(str, astuple(sparse)))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def decoded(generation: Generation) -> Tensor:
    assert generation.video is not None
    return generation.video.tensor()


def difference(made: Generation, want: Generation) -> Mapping[str, float]:
    return {
        name: float((made.latents[name] - latent).square().mean().sqrt() / latent.std())
        for name, latent in want.latents.items()
    }


def decibels(made: Tensor, want: Tensor) -> float:
    return float(-10 * (made - want).square().mean().clamp(min=1e-12).log10())


def flops_of(pipeline: TI2VidOneStagePipeline, generation: Generation) -> float:
    """Of the stage, as its plan counts them."""
    phases = cost_of(generation.plan, pipeline.ledger).phases
    return next(phase.work.flops for phase in phases if phase.name == "stage 1")


# Operations -----------------------------------------------------------------------------------------------------------


def operations(options: Options) -> Table:
    """Of a pass whose first and last block attend to all, in blocks of 128 tokens."""
    columns = ("model, clip", "tokens", "stride", "pairs", "PFLOP", "of dense")
    table = Table("Operations of one pass of the published models, counted", columns)
    for model in MODELS[:1] if options.quick else MODELS:
        config = TransformerConfig.from_metadata({"transformer": published(model)})
        for height, width, frames in CLIPS[:1] if options.quick else CLIPS:
            shape = VideoPixelShape(1, frames, height, width, 24.0)
            latent = VideoLatentShape.from_pixel_shape(shape)
            tokens = {"video": latent.token_count, "audio": AudioLatentShape.from_video_pixel_shape(shape).frames}
            counter = CallCounter(config, tokens, TEXT_TOKENS, torch.bfloat16, dense_blocks=1)
            dense = counter.works(call(counter, sparse=False))[0].flops
            name = f"{model}, {width} x {height}, {frames} frames"
            table.rows.append([name, str(latent.token_count), "dense", "100 %", f"{dense / 1e15:.2f}", "1"])
            for stride in STRIDES:
                kept = BlockPattern.of(latent[2:], latent.token_count, SparseAttention(stride).block, stride).kept
                sparse = replace(counter, keys=round(kept * latent.token_count))
                flops = sparse.works(call(sparse, sparse=True))[0].flops
                table.rows.append(["", "", str(stride), f"{kept:.1%}", f"{flops / 1e15:.2f}", f"{flops / dense:.3f}"])
    return table


def call(counter: CallCounter, sparse: bool) -> Call:
    """One plain pass of both streams."""
    texts = {name: text for name, text in vars(counter.contexts()).items() if text is not None}
    return Call((GuidancePass("cond", texts),), tuple(counter.config.streams), sparse)
