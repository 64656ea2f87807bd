"""What a plan will cost, before any weight is read: peak memory and floating-point operations of each phase.

Networks are run on the meta device (`ltx_core.model.common.meter`); blocks of a transformer are alike, so two stand for
all. Weight bytes come from the headers of the files.

The relative cost is a plan's operations over those of a known clip: 512 x 768, 121 frames, one pass of LTX-2.3 for each
of eight distilled steps, which is 1.6e15 operations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ltx_core.model.common.meter import Work, measure, without_data
from ltx_core.model.common.tiling import TileCountConfig, product
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.upsampler.model import LatentUpsampler
from ltx_core.model.video_vae.diffusion.tiling import whole_decode_work
from ltx_core.model.video_vae.frames import STREAMING_FRAMES, decode_parts
from ltx_core.model.video_vae.video_vae import VideoDecoder
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.tokenizer import MAX_LENGTH
from ltx_core.types import AudioLatentShape, VideoLatentShape
from ltx_pipelines.planning.plan import (
    AudioReferenceCondition,
    CarriedKeyframes,
    ImageCondition,
    KeyframeSlots,
    Plan,
    ReferenceCondition,
    StagePlan,
)
from ltx_pipelines.planning.windows import runs
from ltx_pipelines.utils.media_io import read_audio
from ltx_pipelines.utils.model_ledger import ModelLedger

UNIT = 8 * 0.2e15  # operations of the clip that relative cost 1 stands for
EVALUATIONS = {"heun": 2, "res_2s": 2}  # transformer evaluations per step; others need one
NO_WORK = Work()
CANVASES = 4  # of a stage in tiles, beside one for each pass: noisy, clean, x0 and the next noisy tokens
STREAMED_BLOCKS = 2  # blocks on the device at once when weights are streamed


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

    @property
    def flops(self) -> float:
        return sum(phase.work.flops for phase in self.phases)

    @property
    def relative(self) -> float:
        """In clips of 512 x 768 and 121 frames on a distilled model, first stage only."""
        return self.flops / UNIT

    @property
    def peak(self) -> int:
        """Bytes: all networks at once where they stay, the dearest phase where they take turns."""
        if self.policy == "resident":
            weights = {name: size for phase in self.phases for name, size in phase.weights.items()}
            return sum(weights.values()) + max(phase.work.activations for phase in self.phases)
        return max(phase.peak for phase in self.phases)


def cost_of(plan: Plan, ledger: ModelLedger) -> Cost:
    """The cost of a plan on the networks of a ledger. Reads headers only."""
    phases = [Phase("text", text_weights(ledger))]
    if encoders := plan.encoders():
        phases.append(Phase("conditions", {name: component_bytes(ledger, name) for name in encoders}))
    for index, stage in enumerate(plan.stages, 1):
        phases += upsampling(plan, index - 1, ledger)
        if not stage.steps:
            continue
        work = [one for run in runs(stage) for one in (tiled_work if run.tiles else whole_work)(run, ledger)]
        total = Work(sum(one.flops for one in work), max(one.activations for one in work))
        phases.append(Phase(f"stage {index}", transformer_weights(ledger, stage), total))
    if "video" in plan.decoded:
        weights = {"video_decoder": component_bytes(ledger, "video_decoder")}
        phases.append(Phase("video", weights, decoder_work(plan, ledger)))
    if "audio" in plan.decoded:
        names = ("audio_decoder", "vocoder")
        phases.append(Phase("sound", {name: component_bytes(ledger, name) for name in names}))
    return Cost(tuple(phases), ledger.policy)


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
    work = measure(network, lambda: network(given))
    return [Phase("upsample", {"latent_upsampler": Path(path).stat().st_size}, work)]


# Weights ----------------------------------------------------------------------------------------------------------


def component_bytes(ledger: ModelLedger, component: str) -> int:
    """What a network holds in memory, by the headers of its files; 0 for one the files lack."""
    if not ledger.holds(component):
        return 0
    dtype = torch.float32 if component == "vocoder" else kept_dtype(ledger)
    weights = ledger.source(component).weights(component, dtype)
    kinds = [(torch.Size(shape).numel(), floating) for shape, floating in weights.kinds().values()]
    return sum(count * (dtype.itemsize if floating else 8) for count, floating in kinds)


def kept_dtype(ledger: ModelLedger) -> torch.dtype:
    """What weight matrices are kept in, all but a hundredth of a network."""
    return ledger.precision.stored or ledger.dtype


def transformer_weights(ledger: ModelLedger, stage: StagePlan) -> dict[str, int]:
    """Bytes of the transformer: of the stage's streams, quantised as the ledger says, streamed as it says."""
    total = ledger.transformer_bytes(tuple(stage.streams))
    if ledger.policy == "streamed":
        blocks = ledger.config["transformer"].get("num_layers", 1)
        total = total * min(STREAMED_BLOCKS, blocks) // blocks
    return {"transformer": total}


def text_weights(ledger: ModelLedger) -> dict[str, int]:
    """Bytes of the language model and what stands between it and the transformer."""
    language_model = ledger.weight_bytes().get("text_encoder", 0)
    if ledger.streams_texts and ledger.backend == "torch" and language_model and not ledger.is_ltx_video:
        language_model = streamed_text_bytes(ledger)
    return {"text_encoder": language_model, "embeddings": component_bytes(ledger, "embeddings")}


def streamed_text_bytes(ledger: ModelLedger) -> int:
    """Bytes of the layers of a streamed language model that are on the device at once; its table where that is it."""
    itemsize, sizes = kept_dtype(ledger).itemsize, Counter[str]()
    for name, source in GemmaAssets.open(ledger.text_encoder_path()).language_model().items():
        part, _, inner = name.partition(".")
        sizes[part + inner.partition(".")[0] if part == "layers" else part] += math.prod(source.info.shape) * itemsize
    table = sizes.pop("embed_tokens", 0) if ledger.device.type == "cpu" else 0
    return STREAMED_BLOCKS * max(sizes.values()) + table


# Work -------------------------------------------------------------------------------------------------------------


def tiled_work(stage: StagePlan, ledger: ModelLedger) -> Iterator[Work]:
    """All transformer evaluations of each tile of a stage, the canvas that they are blended on held beside them."""
    assert stage.tiles is not None
    factors = ledger.scale_factors
    latent = VideoLatentShape.from_pixel_shape(stage.shape, ledger.latent_channels, factors)
    axes = TileCountConfig(*stage.tiles).split((latent.frames, latent.height, latent.width))
    canvas = (stage.passes() + CANVASES) * latent.token_count * latent.channels * torch.float32.itemsize
    sizes = Counter(tuple(part.length for part in box) for box in product(*axes))
    for (frames, height, width), count in sizes.items():
        pixels = latent._replace(frames=frames, height=height, width=width).upscale(factors)
        sides = {"frames": pixels.frames, "height": pixels.height, "width": pixels.width}
        (one,) = whole_work(replace(stage, shape=stage.shape._replace(**sides)), ledger)
        yield Work(one.flops * count, one.activations + canvas)


def whole_work(stage: StagePlan, ledger: ModelLedger) -> Iterator[Work]:
    """All transformer evaluations of one run of a stage."""
    config = TransformerConfig.from_metadata(ledger.config).with_streams(*stage.streams)
    tokens = {name: tokens_of(stage, name, ledger) for name in stage.streams}
    batch = min(stage.passes(), stage.max_batch_size)
    text = ledger.text_tokens
    one, two = (measure_forward(replace(config, num_layers=n), tokens, 1, ledger.dtype, text) for n in (1, 2))
    per_pass = one.flops + (config.num_layers - 1) * (two.flops - one.flops)
    passes = sum(passes_of_step(stage, sigma) for sigma in stage.sigmas[:-1])
    yield Work(per_pass * passes * EVALUATIONS.get(stage.sampler.kind, 1), two.activations * batch)


def passes_of_step(stage: StagePlan, sigma: float) -> float:
    """Transformer passes of a step, those that reuse the last result counted in."""
    skipped = min((params.skip_step for params in stage.guidance_at(sigma)), default=0)
    return max(stage.passes_at(sigma) / (skipped + 1), 1.0)


def tokens_of(stage: StagePlan, modality: str, ledger: ModelLedger) -> int:
    """Tokens of one stream, those its conditions append included."""
    if modality == "audio":
        return sum(audio_tokens(stage))
    latent = VideoLatentShape.from_pixel_shape(stage.shape, scale_factors=ledger.scale_factors)
    per_frame, total = latent.height * latent.width, latent.token_count
    for condition in stage.streams[modality].conditions:
        if isinstance(condition, ImageCondition):
            places = condition.places(stage.shape.frames, ledger.scale_factors.time)
            total += per_frame * sum(frame != 0 or condition.as_keyframe for frame in places)
        elif isinstance(condition, KeyframeSlots | CarriedKeyframes):
            total += per_frame * len(condition.pixel_frame_indices)
        elif isinstance(condition, ReferenceCondition):
            frames = (latent.frames - 1) // condition.temporal_scale_factor + 1
            total += frames * per_frame // condition.downscale_factor**2
    return total


def audio_tokens(stage: StagePlan) -> Iterator[int]:
    """Tokens of the sound, then of every reference."""
    own = AudioLatentShape.from_video_pixel_shape(stage.shape)
    yield own.token_count
    for condition in stage.streams["audio"].conditions:
        if isinstance(condition, AudioReferenceCondition):
            given = own if condition.path is None else AudioLatentShape.from_duration(1, duration_of(condition.path))
            yield given.token_count


def duration_of(path: str) -> float:
    """Seconds of sound in a file."""
    sound = read_audio(path)
    return 0.0 if sound is None else sound.duration


def measure_forward(
    config: TransformerConfig, tokens: Mapping[str, int], batch: int, dtype: torch.dtype, text_tokens: int = MAX_LENGTH
) -> Work:
    """One pass of a transformer, without its weights."""
    with without_data():
        network = LTXModel(config).to(dtype)
        shapes = {name: (tokens[name], text_tokens, batch) for name in config.streams}
        streams = {name: _empty_modality(config, name, *shape, dtype) for name, shape in shapes.items()}
    return measure(network, lambda: network(streams.get("video"), streams.get("audio"), None))


def _empty_modality(
    config: TransformerConfig, name: str, tokens: int, text_tokens: int, batch: int, dtype: torch.dtype
) -> Modality:
    stream = config.streams[name]
    width = config.caption_channels or stream.width
    axes = len(stream.max_pos)
    positions = (batch, axes, tokens, 2) if config.use_middle_indices_grid else (batch, axes, tokens)
    return Modality(
        latent=torch.empty(batch, tokens, stream.in_channels, dtype=dtype),
        timesteps=torch.empty(batch, 1, 1),
        sigma=torch.empty(batch),
        positions=torch.empty(positions),
        context=torch.empty(batch, text_tokens, width, dtype=dtype),
    )


def decoder_work(plan: Plan, ledger: ModelLedger) -> Work:
    """The video decoder: operations of the whole clip, memory of the pieces it is decoded in."""
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
    work = measure(decoder, lambda: decoder(whole))
    if not decoder.can_stream:
        return work
    start = whole[:, :, : min(STREAMING_FRAMES, latent.frames)]
    streamed = measure(decoder, lambda: list(decoder.decode_streaming(start))).activations
    return Work(work.flops, streamed // decode_parts(decoder, whole, ledger.free_bytes()))
