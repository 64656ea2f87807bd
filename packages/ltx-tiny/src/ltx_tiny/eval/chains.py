"""Questions without a prompt: picture and sound chains there and back, and fidelity to a given first frame."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ltx_tiny.eval.detectors import psnr
from ltx_tiny.eval.hearing import RATE
from ltx_tiny.eval.questions import Audio, Generate, Question, Video
from ltx_tiny.eval.report import finite
from ltx_tiny.world.render import render

if TYPE_CHECKING:
    from ltx_pipelines.utils.model_ledger import ModelLedger


@dataclass(frozen=True)
class Chains:
    """The picture and the sound chain of a model, as the eval calls them."""

    ledger: ModelLedger

    def video(self, video: Video) -> Video:
        """Encoded and decoded: uint8 ``[F, H, W, 3]``."""
        from ltx_pipelines.running.conditions import encode_video
        from ltx_pipelines.running.decoding import decode_frames

        pixels = torch.from_numpy(video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
        latent = encode_video(pixels, self.ledger)
        return as_video(decode_frames(latent, self.ledger, torch.Generator(self.ledger.device).manual_seed(0)))

    @torch.no_grad()
    def audio(self, audio: Audio) -> Audio:
        """Encoded, decoded and spoken by the vocoder: ``[2, S]`` at the eval's rate, as long as it was."""
        from ltx_core import types
        from ltx_core.model.audio_vae.audio_vae import decode_audio, encode_audio

        networks = [cast(Any, self.ledger.network(name)) for name in ("audio_encoder", "audio_decoder", "vocoder")]
        given = types.Audio(torch.from_numpy(audio), RATE).to(device=self.ledger.device)
        after = as_audio(decode_audio(encode_audio(given, networks[0]), *networks[1:]))
        return np.pad(after, ((0, 0), (0, max(audio.shape[1] - after.shape[1], 0))))[:, : audio.shape[1]]


def as_video(chunks: Iterable[Tensor]) -> Video:
    """Chunks of frames in [0, 1] as bytes ``[F, H, W, 3]``."""
    return torch.cat([(chunk.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu() for chunk in chunks]).numpy()


def as_audio(sound: Any) -> Audio:
    """The waveform of an `Audio` ``[2, S]`` at the eval's rate."""
    from ltx_core.model.audio_vae.mel import resample

    return resample(sound.waveform.float().cpu(), sound.sampling_rate, RATE).numpy().astype(np.float32)


@dataclass(frozen=True)
class FirstFrame:
    """A first frame against the picture that was given for it, and that picture through the chain alone."""

    psnr_db: float
    chain_db: float

    def to_json(self) -> dict[str, float | None]:
        return {"psnr_db": finite(self.psnr_db), "chain_db": finite(self.chain_db)}


def keep_first_frames(
    generate: Generate, asked: Iterable[Question], chains: Chains, size: tuple[int, int] = (256, 256)
) -> Iterator[FirstFrame]:
    """Answer questions with the first frame of their own scene given (``size`` is height, width), and compare it."""
    from ltx_pipelines.planning.plan import ImageCondition
    from ltx_pipelines.utils.media_io import write_png

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first.png"
        for question in asked:
            given = render(question.scene, 1, *size)[0]
            write_png(path, torch.from_numpy(given[0]))
            made, _ = generate(question.caption.text, question.seed, images=(ImageCondition(str(path)),))
            yield FirstFrame(psnr(given[0], made[0]), psnr(given, chains.video(given)))
