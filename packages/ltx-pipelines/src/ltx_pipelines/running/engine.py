"""The one engine: runs any plan and yields what happens, so that progress, previews and cancelling need no hooks.

::

    prompts -> contexts -> stage 1 { encode conditions, noise, denoise } -> enlarge -> stage 2 { ... } -> decode

A stage with windows does that for each of them and joins the results (`ltx_pipelines.running.stage_inputs`). The
windows of a long clip go on from each other (`ltx_pipelines.running.long`).
The last event carries a `Generation`, whose frames are decoded as they are pulled. Closing the iterator between two
events cancels the run; nothing outlives it but the networks the ledger keeps.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
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
from ltx_core.model.audio_vae.audio_vae import decode_audio
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
from ltx_pipelines.planning.windows import runs
from ltx_pipelines.running.apart import join_tiles, references_of, tile_inputs, tile_stages
from ltx_pipelines.running.cheaper import denoiser_of, network_of, reused
from ltx_pipelines.running.conditions import (
    conditioning_items,
    encode_picture,
    encode_still,
    reference_latent,
    source_latent,
)
from ltx_pipelines.running.decoding import cut_frames, decode_frames, decode_latents
from ltx_pipelines.running.finite import Watch, finite_frames, finite_sound
from ltx_pipelines.running.generation import Frames, Generation
from ltx_pipelines.running.long import (
    LongState,
    PieceFrames,
    after,
    anchor_image,
    continuation,
    decoded,
    joined,
    kept_from,
    latents_of,
    piece_of_sound,
    pieces,
    prompt_of,
)
from ltx_pipelines.running.stage_inputs import (
    KEYFRAMES,
    StageInputs,
    StageResult,
    StageRun,
    carry_over,
    join_windows,
    window_inputs,
)
from ltx_pipelines.running.texts import Contexts, read_contexts
from ltx_pipelines.utils.model_ledger import ModelLedger

Phase = Literal["text", "conditions", "upsample", "denoise", "decode", "window", "done"]
DECODING_SEED_OFFSET = 20000  # of what a decoder draws for a window


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


def generate(plan: Plan, ledger: ModelLedger, decode: bool = True, resume: Generation | None = None) -> Iterator[Event]:
    """Run ``plan`` on the networks of ``ledger``.

    ``decode`` False leaves the latents undecoded. ``resume`` gives the first stages already done; what follows is the
    same as in one go.
    """
    if plan.long is not None:
        yield from generate_long(plan, ledger, decode)
        return
    done: list[StageResult] = []
    if resume is not None and resume.rng_state is not None:
        # Copies, since sums of float32 follow the alignment of memory, which that of a mapped file may not have. Their
        # precision is the session's, which may have been chosen anew.
        device, dtype = ledger.device, ledger.dtype
        done = [{name: one.to(device, dtype, copy=True) for name, one in stage.items()} for stage in resume.stages]
    yield Event("text")
    if not ledger.texts.know(plan.prompts) and len(done) < len(plan.stages):
        ledger.expect_transformer(tuple(plan.stages[len(done)].streams))
    positive, *negative = contexts_of(plan, ledger)
    kind = LTXVideoRun if plan.ltx_video is not None else Run
    run = kind(plan, ledger, (positive, negative[0] if negative else None))
    if resume is not None and resume.rng_state is not None:
        run.noise.set_state(resume.rng_state)
    upsampled = None
    for index, stage in list(enumerate(plan.stages))[len(done) :]:
        inputs = StageInputs()
        if index:
            larger, rate = plan.growth(index)
            if larger or rate > 1:
                yield Event("upsample", index)
            inputs = carry_over(plan, index, done[index - 1], ledger)
            upsampled = inputs.latents["video"] if larger else upsampled
        if stage.apart:
            done.append((yield from run_apart(stage, index, inputs, run)))
            continue
        results = []
        for number, part in enumerate(runs(stage)):
            window = stage.windows[number] if stage.windows else None
            begins = window_inputs(inputs, window, ledger.scale_factors.time) if window else inputs
            results.append((yield from run_stage(part, index, begins, run)))
        done.append(join_windows(stage, results, inputs) if stage.windows else results[0])
    run.watch.check(plan, ledger)
    generation = Generation(plan, tuple(done), upsampled, run.noise.get_state())
    if decode:
        yield Event("decode", len(plan.stages) - 1)
        generation = decode_latents(generation, run)
    yield Event("done", len(plan.stages) - 1, generation=generation)


def contexts_of(plan: Plan, ledger: ModelLedger) -> list[Contexts]:
    """What the transformer reads: of the prompt, and of what guidance pushes away from where that is used."""
    if plan.text_embeddings is not None:
        return [read_contexts(plan.text_embeddings, ledger.device, ledger.dtype)]
    return ledger.texts.contexts(plan.prompts)


def generate_windows(plan: Plan, ledger: ModelLedger, state: LongState | None = None) -> Iterator[Event]:
    """Run the windows of a long clip, from ``state`` on; memory does not grow with their number."""
    state, stage = state or LongState(), plan.stages[0]
    yield Event("text")
    if not ledger.texts.know(plan.prompts):
        ledger.expect_transformer(tuple(stage.streams))
    contexts = dict(zip(plan.prompts, ledger.texts.contexts(plan.prompts), strict=True))
    parts = runs(stage)
    for number in range(state.done, len(parts)):
        run = window_run(plan, number, ledger, contexts)
        if state.anchor is None and (anchor := anchor_image(plan)) is not None:
            state = replace(state, anchor=run.encode_image(anchor, stage))
        inputs = StageInputs(start=continuation(plan, number, state))
        result = yield from run_stage(parts[number], number, inputs, run)
        run.watch.check(plan, ledger)
        state = joined(plan, number, state, result)
        yield Event("decode", number)
        run = window_run(plan.with_(seed=plan.seed + DECODING_SEED_OFFSET), number, ledger, contexts)
        media = window_media(plan, number, state, run)
        yield Event("window", number, media=media)
        picture = media.frames.next_picture()
        encoded = None if picture is None else run.encode_frame(picture, stage)
        state = after(plan, number, media.state, encoded)
        yield Event("window", number, state=state)


def window_run(plan: Plan, number: int, ledger: ModelLedger, contexts: Mapping[str, Contexts]) -> Run | LTXVideoRun:
    """The run of a window: with the text of its scene, and noise of its own."""
    kind = LTXVideoRun if plan.ltx_video is not None else Run
    negative = None if plan.negative_prompt is None else contexts[plan.negative_prompt]
    return kind(plan.with_(seed=plan.seed + number), ledger, (contexts[prompt_of(plan, number)], negative))


def window_media(plan: Plan, number: int, state: LongState, run: Run | LTXVideoRun) -> WindowMedia:
    """The media that can be delivered after a window."""
    piece, latents = pieces(plan.stages[0])[number], decoded(plan, number, state)
    frames = PieceFrames(run.frames(latents["video"]), piece, run.delivered)
    if "audio" not in latents:
        return WindowMedia(frames, None, latents, state)
    with torch.no_grad():
        networks = run.ledger.network("audio_decoder"), run.ledger.network("vocoder")
        sound = finite_sound(decode_audio(latents["audio"], *networks))
    samples, state = piece_of_sound(plan, piece, state, sound)
    return WindowMedia(frames, Audio(samples, sound.sampling_rate), latents, state)


def generate_long(plan: Plan, ledger: ModelLedger, decode: bool) -> Iterator[Event]:
    """A long clip whose latents and sound are kept; its frames are decoded when they are read."""
    whole: dict[str, Tensor] = {}
    sounds: list[Audio] = []
    parts: list[Tensor] = []
    for event in generate_windows(plan, ledger):
        yield event
        if (media := event.media) is None:
            continue
        parts.append(media.latents["video"])
        sounds += [media.sound] if media.sound is not None else []
        starts = kept_from(plan.stages[0], event.stage)
        for (name, latent), start in zip(latents_of(media.state).items(), starts, strict=False):
            whole[name] = torch.cat((whole[name][:, :, :start], latent), dim=2) if name in whole else latent
    generation = Generation(plan, (whole,))
    if decode:
        sound = Audio(torch.cat([one.waveform for one in sounds], 1), sounds[0].sampling_rate) if sounds else None
        generation = replace(generation, video=Frames(lambda: long_frames(plan, ledger, parts)), audio=sound)
    yield Event("done", len(parts) - 1, generation=generation)


def long_frames(plan: Plan, ledger: ModelLedger, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """The frames of a long clip from the latents of its pieces."""
    contexts = dict(zip(plan.prompts, ledger.texts.contexts(plan.prompts), strict=True))
    for number, (piece, latent) in enumerate(zip(pieces(plan.stages[0]), parts, strict=True)):
        run = window_run(plan.with_(seed=plan.seed + DECODING_SEED_OFFSET), number, ledger, contexts)
        yield from PieceFrames(run.frames(latent), piece, run.delivered)


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
        note = reused(network) if step.index + 1 == step.total else ""
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

    def delivered(self, chunk: Tensor) -> Tensor:
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
