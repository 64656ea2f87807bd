"""Cost of a plan, before any weight is read: peak memory and operations of each phase, and whether memory suffices.

Networks are run on the meta device (`ltx_core.model.common.meter`), the transformer as `ltx_pipelines.planning.work`
says. Weight bytes come from the headers of the files.

The relative cost is a plan's operations over those of a known clip: 512 x 768, 121 frames, one pass of LTX-2.3 for each
of eight distilled steps, which is 1.6e15 operations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.audio_vae import AudioDecoder
from ltx_core.model.common.memory import own_pages
from ltx_core.model.common.meter import Work, measure, without_data
from ltx_core.model.upsampler.model import LatentUpsampler
from ltx_core.model.video_vae.diffusion.tiling import whole_decode_work
from ltx_core.model.video_vae.frames import SAFE_CELL_BYTES, decode_tiles, streamed_work
from ltx_core.model.video_vae.video_vae import VideoDecoder
from ltx_core.parallel.ranks import shares
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx_pipelines.planning.layout import runs
from ltx_pipelines.planning.plan import Plan, StagePlan
from ltx_pipelines.planning.work import tiled_work, tokens_of, whole_work
from ltx_pipelines.utils.model_ledger import ModelLedger

UNIT = 8 * 0.2e15  # operations of the clip that relative cost 1 stands for
NO_WORK = Work()
STREAMED_BLOCKS = 2  # blocks on the device at once when weights are streamed
# What a CPU takes besides tensors, each measured by itself:
CPU_RUNTIME = 28 * 2**20  # bytes: code of the libraries, and what they keep; 22 to 37, by how their files are read
WRITER_RUNTIME = 17 * 2**20  # bytes: the same of what decodes and encodes frames
NARROW_KERNELS = 20 * 2**20  # bytes of what oneDNN compiles and lays out for bfloat16
HOLES = 1.6  # times what is alive, of a heap in which large tensors lie
ENCODED_FRAMES, ENCODED_BYTES = 20, 4.5  # that x264 looks at together, and what it keeps of a pixel of each
LAST_FRAMES = 4  # reach it when nothing is decoded any more
PLANE_BYTES = 30  # of a pixel of the frame that is turned into planes
AROUND_SOUND = 2.0  # seconds decoded around a piece of a long clip's sound, at most


@dataclass(frozen=True)
class Phase:
    """One phase of a plan. ``weights`` is what its networks hold, in bytes, by network."""

    name: str
    weights: Mapping[str, int]
    work: Work = NO_WORK

    @property
    def peak(self) -> int:
        """Bytes when only this phase's networks are in memory."""
        return sum(self.weights.values()) + self.work.activations


@dataclass(frozen=True)
class Cost:
    """The phases of a plan in order, and the policy they would run under."""

    phases: tuple[Phase, ...]
    policy: str
    runtime: int = 0  # bytes that do not depend on the plan

    @property
    def flops(self) -> float:
        return sum(phase.work.flops for phase in self.phases)

    @property
    def relative(self) -> float:
        """In clips of 512 x 768 and 121 frames on a distilled model, first stage only."""
        return self.flops / UNIT

    @property
    def peak(self) -> int:
        """Bytes of the dearest phase; where networks stay, with those of the phases before it."""
        held: dict[str, int] = {}
        peaks = [phase.peak for phase in self.phases]
        if self.policy == "resident":
            for number, phase in enumerate(self.phases):
                held |= phase.weights
                peaks[number] = sum(held.values()) + phase.work.activations
        return self.runtime + max(peaks)


def cost_of(plan: Plan, ledger: ModelLedger) -> Cost:
    """The cost of a plan on the networks of a ledger. Reads headers only."""
    phases = [Phase("text", text_weights(ledger))] if plan.prompts else []
    if encoders := plan.encoders():
        phases.append(Phase("conditions", {name: component_bytes(ledger, name) for name in encoders}))
    for index, stage in enumerate(plan.stages, 1):
        phases += upsampling(plan, index - 1, ledger)
        if not stage.steps:
            continue
        work = work_of(stage, ledger)
        sent = sum(one.sent for one in work)
        total = Work(sum(one.flops for one in work), max(one.activations for one in work), sent)
        phases.append(Phase(f"stage {index}", transformer_weights(ledger, stage), total))
    if "audio" in plan.decoded:
        names = ("audio_decoder", "vocoder")
        sound = sound_work(decoded_seconds(plan), ledger)
        phases.append(Phase("sound", {name: component_bytes(ledger, name) for name in names}, sound))
    if "video" in plan.decoded:
        weights = {"video_decoder": component_bytes(ledger, "video_decoder")}
        phases.append(Phase("video", weights, with_writer(plan, decoder_work(plan, ledger), ledger)))
    return Cost(tuple(phases), ledger.policy, cpu_runtime(ledger))


def cpu_runtime(ledger: ModelLedger) -> int:
    """Bytes that a CPU takes whatever is made on it; 0 for an accelerator, whose own memory this is not."""
    if not on_cpu(ledger):
        return 0
    return CPU_RUNTIME + (NARROW_KERNELS if ledger.dtype == torch.bfloat16 else 0)


def on_cpu(ledger: ModelLedger) -> bool:
    """Whether torch computes in the memory of this process."""
    return ledger.device.type == "cpu" and ledger.backend == "torch"


def with_writer(plan: Plan, work: Work, ledger: ModelLedger) -> Work:
    """The work of a decoder with the frames that the encoder holds, where that is the memory it decodes in."""
    if not on_cpu(ledger):
        return work
    decoding = work.activations if own_pages() else int(HOLES * work.activations)
    return Work(work.flops, decoding + writer_bytes(plan.shape))


def writer_bytes(shape: VideoPixelShape) -> int:
    """Bytes of the encoder, of the frames in it while others are decoded, and of the one on its way there."""
    frames = min(max(shape.frames - LAST_FRAMES, 0), ENCODED_FRAMES)
    return WRITER_RUNTIME + int((ENCODED_BYTES * frames + PLANE_BYTES) * shape.height * shape.width)


def decoded_seconds(plan: Plan) -> float:
    """Seconds of sound that are decoded at once: all of it, of a long clip those of a window with what is around it."""
    if plan.long is None:
        return plan.shape.duration
    return min(plan.shape.duration, (plan.stages[0].windows[0].last + 1) / plan.shape.fps + AROUND_SOUND)


def work_of(stage: StagePlan, ledger: ModelLedger) -> list[Work]:
    """The work of every run of a stage; windows with as many tokens are measured once."""
    work: list[Work] = []
    known: dict[tuple[Any, ...], list[Work]] = {}
    for run in runs(stage):
        alike = (run.shape, *(tokens_of(run, name, ledger) for name in run.streams))
        if alike not in known:
            known[alike] = list((tiled_work if run.tiles else whole_work)(run, ledger))
        work += known[alike]
    return work


def upsampling(plan: Plan, index: int, ledger: ModelLedger) -> list[Phase]:
    """The latent upsampler before stage ``index`` (from 0), in space or in time."""
    larger, rate = plan.growth(index)
    path = plan.models.spatial_upsampler if larger else plan.models.temporal_upsampler if rate > 1 else None
    if path is None:
        return []
    config = ledger.open(path).network_config("latent_upsampler")
    latent = VideoLatentShape.from_pixel_shape(
        plan.stages[index - 1].shape, ledger.latent_channels, ledger.scale_factors
    )
    with without_data():
        network, given = LatentUpsampler(config).to(ledger.dtype), torch.empty(latent, dtype=ledger.dtype)
    work = measure(network, lambda: network(given), on_cpu(ledger))
    return [Phase("upsample", {"latent_upsampler": Path(path).stat().st_size}, work)]


# Weights ----------------------------------------------------------------------------------------------------------


def component_bytes(ledger: ModelLedger, component: str) -> int:
    """Memory of a network's weights, by the headers of its files; 0 for one the files lack."""
    if not ledger.holds(component):
        return 0
    dtype = torch.float32 if component == "vocoder" else kept_dtype(ledger)
    weights = ledger.source(component).weights(component, dtype)
    kinds = [(torch.Size(shape).numel(), floating) for shape, floating in weights.kinds().values()]
    return sum(count * (dtype.itemsize if floating else 8) for count, floating in kinds)


def kept_dtype(ledger: ModelLedger) -> torch.dtype:
    """The type of all weight matrices but a hundredth of a network."""
    return ledger.precision.stored or ledger.dtype


def transformer_weights(ledger: ModelLedger, stage: StagePlan) -> dict[str, int]:
    """Bytes of the transformer: of the stage's streams, quantised, streamed or spread as the ledger says."""
    blocks, spread = ledger.config["transformer"].get("num_layers", 1), ledger.spread_over
    if spread > 1:
        total = ledger.transformer_bytes()
        inside = total * ledger.share_of_blocks
        return {"transformer": int(total - inside + inside / spread + inside * min(STREAMED_BLOCKS, blocks) / blocks)}
    total = ledger.transformer_bytes(tuple(stage.streams))
    if ledger.policy == "streamed":
        total = total * min(STREAMED_BLOCKS, blocks) // blocks
    return {"transformer": total}


def text_weights(ledger: ModelLedger) -> dict[str, int]:
    """Bytes of the language model and what stands between it and the transformer."""
    language_model = ledger.weight_bytes().get("text_encoder", 0)
    moving = ledger.streams_texts or ledger.spread_over > 1
    if moving and ledger.backend == "torch" and language_model and not ledger.is_ltx_video:
        language_model = streamed_text_bytes(ledger)
    return {"text_encoder": language_model, "embeddings": component_bytes(ledger, "embeddings")}


def streamed_text_bytes(ledger: ModelLedger) -> int:
    """Bytes of a streamed language model on the device: two layers, its part of all, the table where that is it."""
    itemsize, sizes = kept_dtype(ledger).itemsize, Counter[str]()
    for name, source in GemmaAssets.open(ledger.text_encoder_path()).language_model().items():
        part, _, inner = name.partition(".")
        sizes[part + inner.partition(".")[0] if part == "layers" else part] += math.prod(source.info.shape) * itemsize
    table = sizes.pop("embed_tokens", 0) if ledger.device.type == "cpu" else 0
    held = sum(sizes.values()) // ledger.spread_over if ledger.spread_over > 1 else 0
    return STREAMED_BLOCKS * max(sizes.values()) + held + table


# Decoding ---------------------------------------------------------------------------------------------------------


def decoder_work(plan: Plan, ledger: ModelLedger) -> Work:
    """The video decoder: operations of the whole clip, or of a device's rows; memory of what it decodes at once."""
    checkpoint = ledger.source("video_decoder")
    latent = VideoLatentShape.from_pixel_shape(
        plan.decoded_shape(ledger.scale_factors), ledger.latent_channels, ledger.scale_factors
    )
    config = checkpoint.network_config("video_decoder")
    if config.diffusion_decoder is not None:
        cells = (latent.frames, latent.height, latent.width)
        return Work(*whole_decode_work(config.diffusion_decoder, cells, ledger.dtype.itemsize))
    with without_data():
        decoder = VideoDecoder(config).to(ledger.dtype)
        whole = torch.empty(latent, dtype=ledger.dtype)
    most = plan.stages[-1].decoded_cells
    together = ledger.devices is not None and ledger.devices.together(decoder, whole, most)
    if ledger.devices is not None and together:
        own = shares(latent.height, ledger.devices.size)[0]
        whole = whole[:, :, :, : max(own, 2)]  # a convolution has one of a neighbour's too
    work = measure(decoder, lambda: decoder(whole), on_cpu(ledger))
    if not decoder.can_stream:
        return work
    streamed = streamed_work(decoder, whole, on_cpu(ledger)).activations
    tiles = decode_tiles(decoder, whole, ledger.free_bytes(), most)
    if tiles is None or together:
        return Work(work.flops, streamed)
    _, rows, columns = ([one.length for one in axis] for axis in tiles.split(latent[2:]))
    area = latent.height * latent.width
    return Work(work.flops * sum(rows) * sum(columns) // area, streamed * max(rows) * max(columns) // area)


def sound_work(seconds: float, ledger: ModelLedger) -> Work:
    """The audio decoder, beside whose picture of the sound the vocoder takes little."""
    config = ledger.source("audio_decoder").network_config("audio_decoder")
    with without_data():
        decoder = AudioDecoder(config).to(ledger.dtype)
        latent = torch.empty(AudioLatentShape.from_duration(1, seconds), dtype=ledger.dtype)
    return measure(decoder, lambda: decoder(latent), on_cpu(ledger))


# Whether it fits --------------------------------------------------------------------------------------------------

SAFE_TOKEN_BYTES = 60  # a transformer's activations take less per token, pass, channel and byte of a value
SAFE_SECOND_BYTES = 64 * 2**20  # a second of sound takes less while it is decoded
SMALLEST = 64  # pixels of a side
TRIES = 3  # corrections of the size that is proposed


def check_memory(plan: Plan, ledger: ModelLedger) -> None:
    """Refuse a plan that needs more than the device has free, where networks compute and where they wait.

    Raises `ConfigError` with what is needed, what there is, and the largest size, length and policy that fit.
    """
    held = sum(ledger.weight_bytes().values()) if ledger.policy == "resident" and ledger.resident() else 0
    free = ledger.free_bytes() + held
    if bound_of(plan, ledger) < free:
        return
    cost = cost_of(plan, ledger)
    if cost.peak <= free:
        return
    fitting = "; ".join(fitting_changes(plan, ledger, cost, free)) or "no smaller one of this model fits"
    shape, needed = plan.shape, gigabytes(cost.peak)
    asked = f"{shape.width} x {shape.height} with {shape.frames} frames needs {needed} of memory"
    raise ConfigError(f"{asked}, {ledger.device} has {gigabytes(free)}: {fitting}; --force tries it anyway")


def bound_of(plan: Plan, ledger: ModelLedger) -> int:
    """Bytes that a plan surely does not exceed, from its shapes alone."""
    made = [run for stage in plan.stages for run in runs(stage)]
    tokens = max(run.passes() * sum(tokens_of(run, name, ledger) for name in run.streams) for run in made)
    section = ledger.config.get("transformer") or {}
    width = section.get("num_attention_heads", 32) * section.get("attention_head_dim", 128)
    shape, factors = plan.shape, ledger.scale_factors
    cells = (shape.height // factors.height + 1) * (shape.width // factors.width + 1)
    frames = cells * SAFE_CELL_BYTES + writer_bytes(shape)
    sound = int(SAFE_SECOND_BYTES * decoded_seconds(plan)) if "audio" in plan.decoded else 0
    work = tokens * width * ledger.dtype.itemsize * SAFE_TOKEN_BYTES + frames + sound
    return sum(ledger.weight_bytes().values()) + cpu_runtime(ledger) + work


def fitting_changes(plan: Plan, ledger: ModelLedger, cost: Cost, free: int) -> Iterator[str]:
    """Changes that would fit: another policy, fewer frames, a smaller picture; each alone."""
    blocks = (ledger.config.get("transformer") or {}).get("num_layers", 1)
    if replace(cost, policy="sequential").peak <= free < cost.peak:
        yield "--policy sequential fits"
    elif ledger.policy != "streamed" and _streamed(cost, blocks) <= free:
        yield "--policy streamed fits"
    factor, frames = ledger.scale_factors.time, plan.shape.frames
    share = free / cost.peak
    counts = [int((frames - 1) * share * 0.8**n) // factor * factor + 1 for n in range(TRIES)]
    for fewer in counts:
        if fewer < frames and cost_of(resize(plan, fewer, 1.0), ledger).peak <= free:
            yield f"{fewer} frames fit"
            break
    for smaller in (resize(plan, frames, share**0.5 * 0.85**n) for n in range(TRIES)):
        if min(smaller.shape.height, smaller.shape.width) >= SMALLEST and cost_of(smaller, ledger).peak <= free:
            yield f"{smaller.shape.width} x {smaller.shape.height} fits"
            break


def resize(plan: Plan, frames: int, side: float) -> Plan:
    """A plan of other sizes, to be costed and not run: every stage of the share of its sides and frames."""
    stages = []
    for stage in plan.stages:
        shape = stage.shape
        share = (frames - 1) / max(plan.shape.frames - 1, 1)
        count = max(round((shape.frames - 1) * share / 8), 1) * 8 + 1 if shape.frames > 1 else 1
        height, width = (max(int(one * side) // SMALLEST, 1) * SMALLEST for one in (shape.height, shape.width))
        stages.append(replace(stage, shape=shape._replace(frames=count, height=height, width=width), delivered=None))
    return plan.with_(stages=tuple(stages))


def _streamed(cost: Cost, blocks: int) -> int:
    """The peak with two blocks of the transformer on the device."""
    share = min(STREAMED_BLOCKS, blocks) / blocks
    return (
        max(phase.peak - int(phase.weights.get("transformer", 0) * (1 - share)) for phase in cost.phases) + cost.runtime
    )


def gigabytes(count: int) -> str:
    """Bytes in GB."""
    return f"{count / 1e9:.3g} GB"
