"""Cheaper attention: changes of clips of the bundled model, operations left out of a pass of the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from statistics import fmean
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
from ltx_pipelines.planning.plan import BlockCache, SparseAttention
from ltx_pipelines.planning.work import Call, CallCounter, tokens_of

PROMPTS = ("a red ball bounces on a blue floor", "a green square slides to the right")
STEPS = 30
SPARSE = tuple(
    SparseAttention(stride, 16, steps, layers)
    for stride, steps, layers in ((1, 0, 0), (4, 0, 0), (4, 1, 1), (4, 6, 1), (16, 6, 1), (16, 15, 1))
)
CACHES = tuple(BlockCache(threshold, steps) for steps in (1, 6) for threshold in (0.05, 0.1, 0.2))
MODELS = ("ltx-2-19b", "ltx-2.3-22b")
CLIPS = ((1088, 1920, 121), (2176, 3840, 257))
STRIDES = (4, 8, 16, 64)


def run(options: Options) -> list[Table]:
    return [errors(options), operations(options)]


# Errors ---------------------------------------------------------------------------------------------------------------


def errors(options: Options) -> Table:
    """Against the clip of the same seed with nothing left out; another seed's clip is the most it can be."""
    columns = ("left out", "operations", "latent error", "dB of frames", "sound error")
    table = Table(f"On the bundled model, {STEPS} steps, means over prompts", columns)
    pipeline = TI2VidOneStagePipeline.from_pretrained("tiny", device=str(options.device), dtype="float32")
    steps, prompts = (3, PROMPTS[:1]) if options.quick else (STEPS, PROMPTS)
    arms: dict[str, dict[str, Any]] = {label(one): {"sparse_attention": one} for one in SPARSE if one.steps < steps}
    arms |= {label(one): {"first_block_cache": one} for one in CACHES if one.steps < steps}
    arms["nothing, but another seed"] = {"seed": 11}
    exact = [Made.of(pipeline, prompt, steps) for prompt in prompts]
    whole = exact[0].flops
    for name, more in arms.items():
        made = [Made.of(pipeline, prompt, steps, **more) for prompt in prompts]
        pairs = list(zip(made, exact, strict=True))
        video, audio = (fmean(one.difference(want, stream) for one, want in pairs) for stream in ("video", "audio"))
        decibels = fmean(one.decibels(want) for one, want in pairs)
        share = fmean(one.flops for one in made) / whole
        table.rows.append([name, f"{share:.3f}", f"{video:.1e}", f"{decibels:.1f}", f"{audio:.1e}"])
    table.notes.append("latent and sound error: root mean square of the difference over the spread of the latent")
    return table


@dataclass(frozen=True)
class Made:
    """A clip and the operations of its stage."""

    latents: Mapping[str, Tensor]
    frames: Tensor
    flops: float

    @classmethod
    def of(cls, pipeline: TI2VidOneStagePipeline, prompt: str, steps: int, **more: Any) -> Made:
        said: list[str] = []
        made = pipeline(prompt, num_inference_steps=steps, callback=lambda event: said.append(event.note), **more)
        assert made.video is not None
        phases = cost_of(made.plan, pipeline.ledger).phases
        flops = next(phase.work.flops for phase in phases if phase.name == "stage 1")
        reused, calls = next(((int(note.split()[0]), int(note.split()[2])) for note in said if note), (0, 1))
        config = TransformerConfig.from_metadata(pipeline.ledger.config)
        tokens = {name: tokens_of(made.plan.stages[0], name, pipeline.ledger) for name in config.streams}
        left_out = 1 - first_block_share(CallCounter(config, tokens, pipeline.ledger.text_tokens, torch.float32))
        return cls(made.latents, made.video.tensor(), flops * (1 - left_out * reused / calls))

    def difference(self, want: Made, stream: str) -> float:
        latent = want.latents[stream]
        return float((self.latents[stream] - latent).square().mean().sqrt() / latent.std())

    def decibels(self, want: Made) -> float:
        return float(-10 * (self.frames - want.frames).square().mean().clamp(min=1e-12).log10())


def label(one: SparseAttention | BlockCache) -> str:
    kind = "sparse" if isinstance(one, SparseAttention) else "first block"
    return " ".join((kind, *map(str, astuple(one))))


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
            alone = first_block_share(counter)
            table.rows.append(["", "", "first block", "", f"{alone * dense / 1e15:.2f}", f"{alone:.3f}"])
    return table


def first_block_share(counter: CallCounter) -> float:
    """Operations of a call that runs the first block alone, over those of all."""
    first = replace(counter, config=replace(counter.config, num_layers=1))
    return first.works(call(first, sparse=False))[0].flops / counter.works(call(counter, sparse=False))[0].flops


def call(counter: CallCounter, sparse: bool) -> Call:
    """One plain pass of both streams."""
    texts = {name: text for name, text in vars(counter.contexts()).items() if text is not None}
    return Call((GuidancePass("cond", texts),), tuple(counter.config.streams), sparse)
