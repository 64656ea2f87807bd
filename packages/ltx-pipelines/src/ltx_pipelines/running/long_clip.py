"""The windows of a long clip, one after another: each goes on from the one before and adds its media."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ltx_core.model.audio_vae.audio_vae import decode_audio
from ltx_core.types import Audio
from ltx_pipelines.ltx_video.run import LTXVideoRun
from ltx_pipelines.planning.layout import runs
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.running.finite import finite_sound
from ltx_pipelines.running.generation import Frames, Generation
from ltx_pipelines.running.long import (
    LongState,
    PieceFrames,
    after,
    anchor_image,
    continuation,
    first_kept,
    join,
    latents_of,
    piece_of_sound,
    pieces,
    prompt_of,
    to_decode,
)
from ltx_pipelines.running.stage_inputs import StageInputs
from ltx_pipelines.running.stages import Event, Run, WindowMedia, run_of, run_stage
from ltx_pipelines.running.texts import Contexts
from ltx_pipelines.utils.model_ledger import ModelLedger

DECODING_SEED_OFFSET = 20000  # of what a decoder draws for a window


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
        state = join(plan, number, state, result)
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
    negative = None if plan.negative_prompt is None else contexts[plan.negative_prompt]
    return run_of(plan.with_(seed=plan.seed + number), ledger, (contexts[prompt_of(plan, number)], negative))


def window_media(plan: Plan, number: int, state: LongState, run: Run | LTXVideoRun) -> WindowMedia:
    """The media that can be delivered after a window."""
    piece, latents = pieces(plan.stages[0])[number], to_decode(plan, number, state)
    frames = PieceFrames(run.frames(latents["video"]), piece, run.deliver)
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
        starts = first_kept(plan.stages[0], event.stage)
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
        yield from PieceFrames(run.frames(latent), piece, run.deliver)
