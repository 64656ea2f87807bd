"""A sample beside what it was given and what it should have become: one page to look at, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ltx_core.model.audio_vae.mel import resample, to_stereo
from ltx_core.types import Audio, SpatioTemporalScaleFactors
from ltx_media.contact_sheet import PAGE, contact_sheet_of, draw_contact_sheet
from ltx_media.files import media_errors, replacing
from ltx_media.metrics import psnr

LISTENING_RATE = 16000  # Hz
WINDOW, HOP = 512, 160  # samples: an onset every 10 ms
SHOWN = 4  # frames of each clip: one row
SMOOTHING = 5  # hops over which an onset is spread


@dataclass(frozen=True)
class Clip:
    """Pictures uint8 ``[F, H, W, 3]``, sound, or both."""

    title: str
    frames: Tensor | None = None
    sound: Audio | None = None

    @property
    def is_empty(self) -> bool:
        return self.frames is None and self.sound is None


def write_comparison(path: Path, clips: Sequence[Clip], fps: float) -> None:
    """Write a PNG with the sheets of several clips below one another. Raises ``MediaError``."""
    sheets = [
        draw_contact_sheet(
            contact_sheet_of(() if clip.frames is None else [clip.frames], fps, clip.sound, clip.title, SHOWN), SHOWN
        )
        for clip in clips
        if not clip.is_empty
    ]
    page = Image.new("RGB", (PAGE, sum(sheet.height for sheet in sheets)))
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    with replacing(path) as temporary, media_errors(path, "write contact sheet"):
        page.save(temporary, format="PNG", compress_level=1)  # spectrograms hardly shrink


def agreement(
    made: Clip,
    truth: Clip,
    given: Tensor | None,
    factors: SpatioTemporalScaleFactors,
    keyframes: Sequence[int] = (),
) -> dict[str, float]:
    """``psnr`` of the pictures where they were not given, and ``onsets``, the agreement of the sounds.

    ``given`` ``[F, H, W]`` is true in the latent cells that were given. ``psnr_keyframes`` is that at the frames of
    pictures that were to be met.
    """
    figures = {}
    if made.frames is not None and truth.frames is not None:
        count = min(len(made.frames), len(truth.frames))
        pair = [clip[:count].float() / 255 for clip in (made.frames, truth.frames)]
        free = torch.ones(pair[0].shape[:3], dtype=torch.bool)
        if given is not None:
            free = ~pixels_of(given, factors)[:count]
        if bool(free.any()):
            figures["psnr"] = psnr(pair[0][free], pair[1][free])
        if keyframes:
            figures["psnr_keyframes"] = psnr(pair[0][list(keyframes)], pair[1][list(keyframes)])
    if made.sound is not None and truth.sound is not None:
        figures["onsets"] = onset_correlation(made.sound, truth.sound)
    return figures


def pixels_of(cells: Tensor, factors: SpatioTemporalScaleFactors) -> Tensor:
    """A mask over latent cells ``[F, H, W]`` as one over pixels; the first latent frame is one picture."""
    frames = torch.cat((cells[:1], cells[1:].repeat_interleave(factors.time, 0)))
    return frames.repeat_interleave(factors.height, 1).repeat_interleave(factors.width, 2)


def onset_correlation(first: Audio, second: Audio) -> float:
    """Correlation of the onset strengths of two sounds; 1 when their beginnings fall together exactly.

    0 where one of the two has no onset.
    """
    strengths = [onset_strength(sound) for sound in (first, second)]
    count = min(len(strength) for strength in strengths)
    a, b = (strength[:count] - strength[:count].mean() for strength in strengths)
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0


def onset_strength(sound: Audio) -> Tensor:
    """By how much a sound grows louder, summed over its frequencies, every 10 ms: float32 ``[n]``."""
    waveform = sound.waveform if sound.waveform.ndim == 2 else sound.waveform[0]
    mono = resample(to_stereo(waveform[None].float())[0].mean(dim=0), sound.sampling_rate, LISTENING_RATE)
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(mono, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True).abs()
    rise = (spectrum + 1e-3).log().diff(dim=1).clamp(min=0).sum(dim=0)
    spread = torch.hann_window(SMOOTHING + 2)[1:-1]
    return torch.nn.functional.conv1d(rise[None, None], spread[None, None], padding=SMOOTHING // 2)[0, 0]
