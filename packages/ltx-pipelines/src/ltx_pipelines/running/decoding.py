"""From latents to frames and sound: decoded as they are read, cut to what is delivered, the source's own put back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.model.audio_vae.audio_vae import decode_audio
from ltx_core.model.video_vae.video_vae import DecodeConditioning
from ltx_core.networks import VideoDecoder
from ltx_core.types import Audio, VideoPixelShape
from ltx_media.color import ACESCCT, LOGC3, HDRColorSpace, from_working_codes
from ltx_pipelines.planning.plan import HDRName, TransferName
from ltx_pipelines.running.finite import finite_sound
from ltx_pipelines.running.generation import Frames, Generation
from ltx_pipelines.running.kept import kept_frames, kept_sound
from ltx_pipelines.running.preview import fitting
from ltx_pipelines.utils.model_ledger import ModelLedger


class Decoding(Protocol):
    """A run whose latents can be decoded."""

    ledger: ModelLedger
    noise: Any  # what the decoder draws from; its state can be kept and set

    def decode(self, latent: Tensor) -> Iterator[Tensor]:
        """Chunks of the frames that are delivered."""
        ...


def decode_latents(generation: Generation, run: Decoding) -> Generation:
    """The generation with sound, and with frames that are decoded as they are read; what is kept is the source's."""
    plan, made = generation.plan, decode_streams(generation, run)
    video, audio = made.video, made.audio
    if plan.new_span("video") is not None:
        factor = run.ledger.scale_factors.time
        video = Frames(lambda: kept_frames(plan, (frame for chunk in made.video or () for frame in chunk), factor))
    if plan.new_span("audio") is not None:
        audio = kept_sound(plan, made.audio)
    return replace(generation, video=video, audio=audio)


def decode_streams(generation: Generation, run: Decoding) -> Generation:
    """The generation with what its latents decode to, cut to the delivered shape; nothing of a source is put back."""
    state = run.noise.get_state()

    def frames() -> Iterator[Tensor]:
        run.noise.set_state(state)
        return run.decode(generation.latents["video"])

    video = Frames(frames) if "video" in generation.plan.decoded else None
    return replace(generation, video=video, audio=decode_sound(generation, run.ledger))


def decode_frames(
    latent: Tensor,
    ledger: ModelLedger,
    generator: torch.Generator,
    hdr: HDRName | None = None,
    most: int | None = None,
    transfer: TransferName | None = None,
) -> Iterator[Tensor]:
    """Chunks ``[f, H, W, 3]`` in [0, 1], or in an HDR colour space; the decoder is loaded for the first of them.

    ``most`` is how many latent cells of the picture are decoded at once.
    """
    decoder = video_decoder(latent, ledger, hdr is not None, most)
    conditioning = DecodeConditioning(noise=generator)
    if hdr is None:
        yield from fitting(latent, decoder.decode_frames(latent, conditioning, most), ledger)
        return
    for codes in decoder.decode_frames(latent.float(), conditioning, most):
        yield from_working_codes(codes, LOGC3 if transfer == "logc3" else ACESCCT, HDRColorSpace(hdr))


def video_decoder(
    latent: Tensor, ledger: ModelLedger, in_float32: bool = False, most: int | None = None
) -> VideoDecoder:
    """The decoder of ``latent``, ``most`` of its cells at once; where a run has several devices, all together."""
    decoder: VideoDecoder = ledger.network("video_decoder", in_float32=in_float32)
    return decoder if ledger.devices is None else ledger.devices.decoder(decoder, latent, most)


def cut_frames(chunks: Iterator[Tensor], shape: VideoPixelShape, every: int = 1) -> Iterator[Tensor]:
    """One of ``every`` few frames, in chunks, without what was added at the end, the bottom and the right."""
    left, seen = shape.frames, 0
    for chunk in chunks:
        kept = chunk[-seen % every :: every]
        seen += len(chunk)
        if left > 0 and len(kept):
            yield kept[:left, : shape.height, : shape.width]
        left -= len(kept)


def decode_sound(generation: Generation, ledger: ModelLedger) -> Audio | None:
    """The sound of the stage the plan says, cut to the picture's length."""
    plan = generation.plan
    if "audio" not in plan.decoded:
        return None
    latents = generation.stages[0 if plan.audio == "first" else -1]
    with torch.no_grad():
        audio = finite_sound(decode_audio(latents["audio"], ledger.network("audio_decoder"), ledger.network("vocoder")))
    if plan.stages[-1].delivered is None:
        return audio
    return replace(audio, waveform=audio.waveform[..., : round(plan.shape.duration * audio.sampling_rate)])
