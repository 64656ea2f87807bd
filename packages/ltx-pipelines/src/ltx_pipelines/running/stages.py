"""The stages of a plan: how their streams begin, their steps as events, and what they hand on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ltx_core.components.diffusion_steps import EulerAncestralDiffusionStep, EulerCfgPpDiffusionStep
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderFactory
from ltx_core.components.noisers import GaussianNoiser, plain_noise, seeded_generator
from ltx_core.components.windows import token_span
from ltx_core.conditioning.tools import LatentTools, latent_tools
from ltx_core.errors import ConfigError
from ltx_core.model.common.tiling import TileCountConfig
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.sampling.denoisers import GuidedDenoiser, Results, Transformer
from ltx_core.sampling.loop import denoise
from ltx_core.sampling.modality import States
from ltx_core.sampling.modality_tiling import TiledTransformer, VideoModalityTilingHelper
from ltx_core.sampling.release import ReleasingSampler
from ltx_core.sampling.res2s import Res2sSampler
from ltx_core.sampling.samplers import EulerSampler, GradientEstimatingSampler, HeunSampler, Sampler, StochasticSampler
from ltx_core.sampling.stage import StreamStart, begin_streams, finish_streams
from ltx_core.types import Audio, VideoLatentShape
from ltx_pipelines.ltx_video.run import LTXVideoRun
from ltx_pipelines.planning.plan import CarriedKeyframes, ImageCondition, Plan, SamplerPlan, StagePlan
from ltx_pipelines.running.cheaper import denoiser_of, network_of, reuse_note
from ltx_pipelines.running.conditions import (
    conditioning_items,
    encode_picture,
    encode_still,
    reference_latent,
    source_latent,
)
from ltx_pipelines.running.decoding import cut_frames, decode_frames
from ltx_pipelines.running.finite import Watch, finite_frames
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.long import LongState, PieceFrames
from ltx_pipelines.running.stage_inputs import (
    KEYFRAMES,
    StageInputs,
    StageResult,
    StageRun,
    join_tiles,
    references_of,
    tile_inputs,
    tile_stages,
)
from ltx_pipelines.running.texts import Contexts
from ltx_pipelines.utils.model_ledger import ModelLedger

Phase = Literal["text", "conditions", "upsample", "denoise", "decode", "window", "done"]


@dataclass(frozen=True)
class WindowMedia:
    """Media that a window adds to a long clip. ``frames`` can be read once, before the next event is asked for."""

    frames: PieceFrames
    sound: Audio | None
    latents: Mapping[str, Tensor]  # what both were decoded from
    state: LongState


@dataclass(frozen=True)
class Event:
    """Something happened. ``step`` counts finished steps of the stage; it is 0 when a phase begins.

    In a long clip ``stage`` counts windows, and two events of phase "window" follow each: ``media`` brings what can be
    delivered, then ``state`` what the rest follows from.
    """

    phase: Phase
    stage: int = 0
    step: int = 0
    total: int = 0
    sigma: float = 0.0
    states: States = field(default_factory=dict)  # token states: at the start of a stage, and after each step
    results: Results = field(default_factory=dict)  # the predictions of a step
    tools: Mapping[str, LatentTools[Any]] = field(default_factory=dict)  # from tokens to latents
    generation: Generation | None = None
    media: WindowMedia | None = None
    state: LongState | None = None
    note: str = ""  # a line for the user

    def preview(self) -> Tensor | None:
        """The video's x0 prediction of this step as a latent ``[1, C, F, h, w]``, what a preview is drawn from."""
        if "video" not in self.results:
            return None
        tools, state = self.tools["video"], self.states["video"]
        predicted = replace(state, latent=self.results["video"].denoised)
        return tools.unpatchify(tools.clear_conditioning(predicted)).latent


def run_stage(
    stage: StagePlan, index: int, inputs: StageInputs, run: Run | LTXVideoRun
) -> Generator[Event, None, StageResult]:
    """Condition, noise and denoise a stage, an event per step; returns its latents and the keyframes it carries on."""
    yield Event("conditions", index)
    begun = run.begin(stage, inputs)
    states = begun.states
    if stage.steps:
        states = yield from denoise_stage(stage, index, begun, run)
    final = finish_streams(begun.tools, states)
    result = {name: state.latent for name, state in final.items()}
    if keyframes := keyframes_to_carry(stage, final, inputs):
        result[KEYFRAMES] = torch.cat([keyframes[frame] for frame in stage.keyframe_frames], dim=2)
    return result


def run_apart(
    stage: StagePlan, index: int, inputs: StageInputs, run: Run | LTXVideoRun
) -> Generator[Event, None, StageResult]:
    """Make each tile of a stage as a clip of its own, and join them."""
    references = {one: reference_latent(one, stage.shape, run.ledger, run.plan) for one in references_of(stage)}
    inputs, results = replace(inputs, references=references), []
    parts = tile_stages(stage, run.ledger.scale_factors)
    for number, (box, part) in enumerate(parts):
        alone = Run(run.plan.with_(seed=run.plan.seed + number), run.ledger, run.contexts)
        alone.watch = run.watch
        results.append((yield from run_stage(part, index, tile_inputs(inputs, box), alone)))
    return join_tiles([box for box, _ in parts], results, inputs.latents["video"])


def denoise_stage(
    stage: StagePlan, index: int, begun: StageRun, run: Run | LTXVideoRun
) -> Generator[Event, None, States]:
    """Take a stage along its sigmas, in tiles where it is cut into some; returns the states after the last step."""
    states, sigmas = begun.states, torch.tensor(stage.sigmas, dtype=torch.float32)
    run.watch.see(states, stage, f"that stage {index + 1} begins with")
    yield Event("denoise", index, 0, stage.steps, stage.sigmas[0], states)
    network = network_of(stage, run.ledger)
    model: Transformer = run.model(stage, network)
    if run.ledger.devices is not None:
        model = run.ledger.devices.spread(cast(LTXModel | X0Model, model), stage.passes())
    if stage.tiles is not None:
        model = TiledTransformer(model, VideoModalityTilingHelper(TileCountConfig(*stage.tiles), begun.tools["video"]))
    for step in denoise(model, denoiser_of(stage, begun, run.ledger), states, sigmas, begun.sampler):
        states = step.states
        run.watch.see(states, stage, f"after step {step.index + 1} of {step.total} of stage {index + 1}")
        note = reuse_note(network) if step.index + 1 == step.total else ""
        place = (index, step.index + 1, step.total, step.sigma)
        yield Event("denoise", *place, states, step.results, begun.tools, note=note)
    return states


class Run:
    """State that the stages of a plan share, and their start."""

    def __init__(self, plan: Plan, ledger: ModelLedger, contexts: tuple[Contexts, Contexts | None]) -> None:
        self.plan, self.ledger = plan, ledger
        self.contexts = contexts  # of the prompt, of what guidance pushes away from
        self.noise = seeded_generator(ledger.device, plan.seed)
        self.watch = Watch()

    def begin(self, stage: StagePlan, inputs: StageInputs) -> StageRun:
        """Encode what the streams of a stage start from and are conditioned on, and add noise: video first."""
        ledger, tools = self.ledger, tools_of(stage, self.ledger)
        starts = {name: self._start(stage, name, stream_tools, inputs) for name, stream_tools in tools.items()}
        states = begin_streams(starts, GaussianNoiser(self.noise), ledger.device, ledger.dtype)
        denoiser = guided_denoiser(stage, *self.contexts, keep_text=ledger.policy != "streamed")
        sampler = sampler_of(stage.sampler)
        falling = {name: state for name, state in states.items() if state.release is not None and not state.frozen}
        if falling:
            noise = {name: plain_noise(state.latent, self.noise) for name, state in falling.items()}
            sampler = ReleasingSampler(sampler, noise)
        return StageRun(tools, states, denoiser, sampler)

    def model(self, stage: StagePlan, network: Transformer) -> X0Model:
        """The transformer, which predicts x0."""
        return X0Model(network, stage.max_batch_size)

    def decode(self, latent: Tensor) -> Iterator[Tensor]:
        """Chunks of the frames that are delivered ``[f, H, W, 3]``, in [0, 1] unless they are HDR."""
        factors = self.ledger.scale_factors
        frames = VideoLatentShape.from_pixel_shape(self.plan.decoded_shape(factors), scale_factors=factors).frames
        return cut_frames(self.frames(latent[:, :, :frames]), self.plan.shape, self.plan.stages[-1].every)

    def frames(self, latent: Tensor) -> Iterator[Tensor]:
        """Chunks of all frames of a latent ``[f, H, W, 3]`` in [0, 1], whole."""
        most = self.plan.stages[-1].decoded_cells
        return finite_frames(decode_frames(latent, self.ledger, self.noise, self.plan.hdr, most, self.plan.transfer))

    def deliver(self, chunk: Tensor) -> Tensor:
        """The part of frames that is delivered."""
        return chunk[:, : self.plan.shape.height, : self.plan.shape.width]

    def encode_frame(self, frame: Tensor, stage: StagePlan) -> Tensor:
        """A whole frame ``[H, W, 3]`` in [0, 1] as a latent of its own ``[1, C, 1, h, w]``."""
        return encode_picture(frame, self.ledger)

    def encode_image(self, image: ImageCondition, stage: StagePlan) -> Tensor:
        """A still as a latent of its own."""
        return encode_still(image, stage.shape, self.ledger, self.plan)

    def _start(self, stage: StagePlan, name: str, tools: LatentTools[Any], inputs: StageInputs) -> StreamStart:
        stream, latent = stage.streams[name], None
        if stream.start == "previous":
            latent = inputs.latents[name]
        elif stream.start == "source":
            latent = source_latent(self.plan, name, stage.shape, self.ledger)
        items = conditioning_items(self.plan, stage, name, self.ledger, inputs)
        return StreamStart(tools, latent, items, stream.noise_scale, stream.frozen)


def run_of(plan: Plan, ledger: ModelLedger, contexts: tuple[Contexts, Contexts | None]) -> Run | LTXVideoRun:
    """The run of a plan, by the family of its model."""
    kind = LTXVideoRun if plan.ltx_video is not None else Run
    return kind(plan, ledger, contexts)


def tools_of(stage: StagePlan, ledger: ModelLedger) -> dict[str, LatentTools[Any]]:
    """The tools of each stream of a stage, video first. In a later window tokens of sound have their true times."""
    tools = latent_tools(stage.shape, stage.streams, ledger.scale_factors, ledger.latent_channels)
    window = stage.window
    if window is not None and window.tokens is not None and window.first:
        first, last = window.tokens
        zero = window.first / stage.shape.fps
        spans = tuple((start - zero, end - zero) for start, end in map(token_span, range(first, last)))
        audio: Any = tools["audio"]
        tools["audio"] = replace(audio, target_shape=audio.target_shape._replace(frames=last - first), spans=spans)
    return tools


def keyframes_to_carry(stage: StagePlan, final: States, inputs: StageInputs) -> dict[int, Tensor]:
    """The keyframes a stage was shown and those it made ``[1, C, 1, h, w]``, by pixel frame."""
    keyframes: dict[int, Tensor] = {}
    for condition in stage.keyframe_conditions:
        frames = condition.pixel_frame_indices
        if isinstance(condition, CarriedKeyframes):
            keyframes |= {frame: inputs.keyframes[frame] for frame in frames}
        elif (made := final["video"].generated_keyframes) is not None:
            keyframes |= dict(zip(frames, made.split(1, dim=2), strict=True))
    return keyframes


def guided_denoiser(
    stage: StagePlan, positive: Contexts, negative: Contexts | None, keep_text: bool = True
) -> GuidedDenoiser:
    """The stage's guidance with its texts; a frozen stream keeps its positive text in every pass."""
    texts = vars(positive)
    against: Mapping[str, Tensor] = {} if negative is None else vars(negative)
    guiders: dict[str, MultiModalGuider | MultiModalGuiderFactory] = {}
    for name, stream in stage.streams.items():
        if stream.guidance_by_sigma and not stream.frozen:
            guiders[name] = MultiModalGuiderFactory(dict(stream.guidance_by_sigma), against.get(name))
        elif stream.guidance is not None and not stream.frozen:
            guiders[name] = MultiModalGuider(stream.guidance, against.get(name))
    given = {name: texts[name] for name in stage.streams}
    return GuidedDenoiser(given, guiders, stage.sampler.kind == "euler_cfg_pp", keep_text)


def sampler_of(plan: SamplerPlan) -> Sampler:
    """The sampler a plan names."""
    params: dict[str, Any] = dict(plan.params)
    seed: dict[str, Any] = {} if plan.seed is None else {"noise_seed": plan.seed}
    match plan.kind:
        case "euler":
            return EulerSampler()
        case "heun":
            return HeunSampler()
        case "gradient_estimating":
            return GradientEstimatingSampler(**params)
        case "res_2s":
            return Res2sSampler(**params, **seed)
        case "euler_ancestral":
            return StochasticSampler(EulerAncestralDiffusionStep(**params), **seed)
        case "euler_cfg_pp":
            return StochasticSampler(EulerCfgPpDiffusionStep(**params), **seed)
    raise ConfigError(f"sampler {plan.kind} is for LTX-Video models alone")
