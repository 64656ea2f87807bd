"""Work of the transformer in a stage: operations and live bytes of its calls, counted on the meta device.

A stage is run over single tokens to see which calls its sampler and its guidance make. Blocks differ only in what
passes perturb there and in whether they have sound, so a network of few blocks, one of each kind, is counted once for
every kind of call; each further block of a kind costs what one more of it adds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch

from ltx_core.guidance.perturbations import Perturbation, PerturbationConfig, PerturbationType
from ltx_core.model.common.meter import Work, measure, without_data
from ltx_core.model.transformer.attention import attention
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.model.transformer.sparse import BlockPattern
from ltx_core.networks import Contexts
from ltx_core.parallel.mesh import Devices, PaperDevices
from ltx_core.sampling.cheaper import mixing
from ltx_core.sampling.denoisers import (
    DenoiseCall,
    DenoisedLatentResult,
    GuidancePass,
    GuidedDenoiser,
    Results,
    RunMemory,
    run_passes,
)
from ltx_core.sampling.loop import denoise
from ltx_core.sampling.modality import States
from ltx_core.sampling.samplers import EulerSampler, Sampler
from ltx_core.sampling.velocity import VelocityDenoiser
from ltx_core.types import AudioLatentShape, LatentState, VideoLatentShape
from ltx_pipelines.planning.plan import (
    AudioReferenceCondition,
    CarriedKeyframes,
    ImageCondition,
    KeyframeSlots,
    ReferenceCondition,
    SparseAttention,
    StagePlan,
)
from ltx_pipelines.running.cheaper import block_pattern
from ltx_pipelines.running.stage_inputs import tile_stages
from ltx_pipelines.running.stages import guided_denoiser, sampler_of
from ltx_pipelines.utils.media_io import read_audio
from ltx_pipelines.utils.model_ledger import ModelLedger

NO_TRANSFORMER: Any = None
KEPT_CHANGES = 3  # of each pass of a first-block cache: by the first block, once more to compare, and by the others
CANVASES = 4  # of a stage in tiles, beside one for each pass: noisy, clean, x0 and the next noisy tokens


def tiled_work(stage: StagePlan, ledger: ModelLedger) -> Iterator[Work]:
    """All transformer evaluations of each tile of a stage, the canvas that they are blended on held beside them."""
    factors = ledger.scale_factors
    latent = VideoLatentShape.from_pixel_shape(stage.shape, ledger.latent_channels, factors)
    canvas = (stage.passes() + CANVASES) * latent.token_count * latent.channels * torch.float32.itemsize
    for shape, count in Counter(tile.shape for _, tile in tile_stages(stage, factors)).items():
        (one,) = whole_work(replace(stage, shape=shape), ledger)
        yield Work(one.flops * count, one.activations + canvas, one.sent * count)


def whole_work(stage: StagePlan, ledger: ModelLedger) -> Iterator[Work]:
    """All transformer calls of one run of a stage."""
    config = TransformerConfig.from_metadata(ledger.config).with_streams(*stage.streams)
    tokens = {name: tokens_of(stage, name, ledger) for name in stage.streams}
    batch = None if stage.velocity_guidance else stage.max_batch_size
    placed = (ledger.dtype, batch, ledger.policy != "streamed")
    counter = CallCounter(config, tokens, ledger.text_tokens, *placed, devices=ledger.devices, passes=stage.passes())
    if (sparse := stage.sparse_attention) is not None:
        keys = round(sparse_pattern(stage, sparse, ledger).kept * tokens["video"])
        counter = replace(counter, keys=keys, dense_blocks=sparse.layers)
    counted = [(*counter.works(call), times) for call, times in calls_of(stage, counter.contexts(), counter.contexts())]
    flops = sum(later * times for _, later, times in counted)
    texts = max(first.flops - later for first, later, _ in counted)
    kept = KEPT_CHANGES * stage.passes() * counter.token_bytes if stage.first_block_cache is not None else 0
    sent = sum((first.sent + ledger.gathered_bytes()) * times for first, _, times in counted)
    yield Work(flops + texts, max(first.activations for first, _, _ in counted) + kept, sent)


def sparse_pattern(stage: StagePlan, sparse: SparseAttention, ledger: ModelLedger) -> BlockPattern:
    """The blocks of a stage's picture, and which they see."""
    latent = VideoLatentShape.from_pixel_shape(stage.shape, ledger.latent_channels, ledger.scale_factors)
    return block_pattern(sparse, latent, tokens_of(stage, "video", ledger), ledger, "cpu")


# Which calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of the transformer: its passes, and the streams that are predicted anew."""

    passes: tuple[GuidancePass, ...]
    active: tuple[str, ...]
    sparse: bool = False  # the picture's self-attention


@dataclass
class Recorder:
    """Takes a denoiser's place in a run, predicts nothing, and counts the calls that would be made."""

    denoiser: GuidedDenoiser | VelocityDenoiser
    sparse: SparseAttention | None
    calls: dict[Any, tuple[Call, int]] = field(default_factory=dict)

    def __call__(self, transformer: Any, states: States, call: DenoiseCall) -> Results:
        active, passes = self.denoiser.needs(tuple(states), call)
        if active:
            texts = [(*map(id, each.contexts.values()), each.perturbations) for each in passes]
            sparse = self.sparse is not None and call.step_index >= self.sparse.steps
            key = (*texts, *active, sparse)
            made, times = self.calls.get(key, (Call(tuple(passes), tuple(active), sparse), 0))
            self.calls[key] = made, times + 1
        nothing = torch.zeros(1, 1, 1)
        return {name: DenoisedLatentResult(nothing, nothing, velocity=nothing) for name in states}


def calls_of(stage: StagePlan, positive: Contexts, negative: Contexts) -> list[tuple[Call, int]]:
    """The different calls of a run of a stage, and how often each is made."""
    sampler: Sampler
    denoiser: GuidedDenoiser | VelocityDenoiser
    if guidance := stage.velocity_guidance:
        denoiser, sampler = VelocityDenoiser(positive, negative, guidance), EulerSampler()
    else:
        denoiser, sampler = guided_denoiser(stage, positive, negative), sampler_of(stage.sampler)
    recorder = Recorder(denoiser, stage.sparse_attention)
    one = torch.zeros(1, 1, 1)
    token = LatentState(one, torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 2), one)
    for _ in denoise(
        NO_TRANSFORMER, recorder, dict.fromkeys(stage.streams, token), torch.tensor(stage.sigmas), sampler
    ):
        pass
    return list(recorder.calls.values())


# What a call takes ------------------------------------------------------------------------------------------------


class BlockKind(NamedTuple):
    """Operations that a block leaves out in each pass, whether its self-attention is sparse, whether it has sound."""

    left_out: tuple[tuple[PerturbationType, ...], ...]
    sparse: bool
    has_audio: bool


class Counted(NamedTuple):
    """A call the first time, its operations once its texts are known, and the bytes of what is kept of them."""

    work: Work
    later: float
    kept: int


@dataclass(frozen=True)
class CallCounter:
    """A transformer and the sizes of what it is given."""

    config: TransformerConfig
    tokens: Mapping[str, int]
    text_tokens: int
    dtype: torch.dtype
    max_batch_size: int | None = None
    keep_text: bool = True
    keys: int = 0  # that a token of the picture sees in a sparse call, in the mean
    dense_blocks: int = 0  # at either end, where it sees all
    devices: Devices | None = None  # that share a step
    passes: int = 1  # of a guided step

    @property
    def token_bytes(self) -> int:
        """Bytes of the tokens of all streams inside the transformer."""
        streams = self.config.streams
        return sum(self.tokens[name] * streams[name].width for name in streams) * self.dtype.itemsize

    def contexts(self) -> Contexts:
        """A text of every stream, on the meta device."""
        streams, config = self.config.streams, self.config
        with torch.device("meta"):
            texts = {
                name: torch.empty(1, self.text_tokens, config.caption_channels or stream.width, dtype=self.dtype)
                for name, stream in streams.items()
            }
        return Contexts(texts.get("video", next(iter(texts.values()))), texts.get("audio"))

    def works(self, call: Call) -> tuple[Work, float]:
        """Work of a call at first, and of later calls, when texts that stay the same at every step are known."""
        blocks = [self.kind(call, block) for block in range(self.config.num_layers)]
        kinds = [(kind, len(list(alike))) for kind, alike in groupby(blocks)]
        once = [kind for kind, _ in kinds]
        base = self.count(call, once)
        flops, later, most, text, sent = base.work.flops, base.later, base.work.activations, 0, base.work.sent
        for number, (kind, count) in enumerate(kinds):
            if count > 1:
                more = self.count(call, [*once[:number], kind, *once[number:]])
                flops += (count - 1) * (more.work.flops - base.work.flops)
                later += (count - 1) * (more.later - base.later)
                sent += (count - 1) * (more.work.sent - base.work.sent)
                most, text = max(most, more.work.activations), more.kept - base.kept
        rest = text * max(self.config.num_layers - len(kinds) - 1, 0)
        return Work(flops, most + rest, sent), later

    def kind(self, call: Call, block: int) -> BlockKind:
        """The kind of a block in a call."""
        is_inner = block in range(self.dense_blocks, self.config.num_layers - self.dense_blocks)
        has_audio = self.config.of_block(block).audio is not None
        return BlockKind(
            tuple(skipped_layers(each, block) for each in call.passes), call.sparse and is_inner, has_audio
        )

    def count(self, call: Call, blocks: Sequence[BlockKind]) -> Counted:
        """A call of a network of such blocks."""
        passes = [
            replace(each, perturbations=_perturbations([kind.left_out[number] for kind in blocks]))
            for number, each in enumerate(call.passes)
        ]
        audio_blocks = tuple(number for number, kind in enumerate(blocks) if kind.has_audio)
        with without_data():
            config = replace(self.config, num_layers=len(blocks), audio_blocks=audio_blocks)
            network = LTXModel(config).to(self.dtype)
            modalities = {name: self._modality(name, name in call.active) for name in self.config.streams}
        memory = RunMemory()
        forward: Any = partial(network, max_batch_size=self.max_batch_size)
        if self.devices is not None:
            paper = PaperDevices.of(self.devices)
            forward = paper.spread(X0Model(network, self.max_batch_size), self.passes)

        layers: Any = network.transformer_blocks
        sparse = [layer.attn1 for layer, kind in zip(layers, blocks, strict=True) if kind.sparse]

        def run() -> Work:
            with mixing(sparse, lambda q, k, v: attention(q, k[:, : self.keys], v[:, : self.keys])):
                return measure(network, lambda: run_passes(forward, modalities, passes, memory, self.keep_text))

        first = run()
        if self.devices is not None:
            first = replace(first, sent=paper.sent)
        kept = sum(part.nbytes for text in memory.texts.values() for parts in text.kept.values() for part in parts)
        return Counted(first, run().flops if kept else first.flops, kept)

    def _modality(self, name: str, enabled: bool) -> Modality:
        config, tokens = self.config, self.tokens[name]
        stream = config.streams[name]
        axes = len(stream.max_pos)
        return Modality(
            latent=torch.empty(1, tokens, stream.in_channels, dtype=self.dtype),
            timesteps=torch.empty(1, 1, 1),
            sigma=torch.empty(1),
            positions=torch.empty((1, axes, tokens, 2) if config.use_middle_indices_grid else (1, axes, tokens)),
            context=torch.empty(0),  # a pass brings its own
            enabled=enabled,
        )


def skipped_layers(each: GuidancePass, block: int) -> tuple[PerturbationType, ...]:
    """Layers that a pass leaves out in a block."""
    return tuple(kind for kind in PerturbationType if each.perturbations.holds(kind, block))


def _perturbations(blocks: Sequence[tuple[PerturbationType, ...]]) -> PerturbationConfig:
    """Perturbations that leave out, in each block, what is listed for it."""
    return PerturbationConfig(
        tuple(
            Perturbation(kind, tuple(number for number, left in enumerate(blocks) if kind in left))
            for kind in PerturbationType
            if any(kind in left for left in blocks)
        )
    )


# How many tokens --------------------------------------------------------------------------------------------------


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
