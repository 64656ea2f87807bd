"""One picture of a sample: a row of its frames over the spectrogram of its sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.types import Audio

COLUMNS, THUMB_WIDTH = 8, 160  # frames in a row, pixels
SPECTROGRAM_HEIGHT = 128  # pixels
FFT, HOP = 1024, 256  # samples
RANGE = 80.0  # dB under the loudest that are black
#: Dark violet over red to pale yellow.
COLOURS = torch.tensor([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=torch.float32)


def sample_sheet(frames: Tensor | None, sound: Audio | None) -> Tensor:
    """uint8 ``[H, W, 3]`` of uint8 frames ``[F, H, W, 3]`` and a sound; either may be None."""
    width = COLUMNS * THUMB_WIDTH
    rows = []
    if frames is not None:
        rows.append(frame_row(frames, width))
    if sound is not None:
        rows.append(spectrogram(sound, width))
    return torch.cat(rows)


def frame_row(frames: Tensor, width: int) -> Tensor:
    """At most `COLUMNS` frames, evenly spaced from the first to the last, side by side."""
    count = min(COLUMNS, len(frames))
    chosen = torch.linspace(0, len(frames) - 1, count).round().long()
    height = max(round(frames.shape[1] * THUMB_WIDTH / frames.shape[2]), 1)
    planes = frames[chosen].permute(0, 3, 1, 2).float()
    smaller = F.interpolate(planes, (height, THUMB_WIDTH), mode="bilinear", antialias=True, align_corners=False)
    row = smaller.permute(2, 0, 3, 1).flatten(1, 2)  # [h, count * w, 3]
    return F.pad(row, (0, 0, 0, width - row.shape[1])).round().clamp(0, 255).to(torch.uint8)


def spectrogram(sound: Audio, width: int) -> Tensor:
    """Loudness over time (right) and frequency (up), both linear, uint8 ``[SPECTROGRAM_HEIGHT, width, 3]``."""
    wave = sound.waveform.detach().float().cpu().reshape(-1, sound.waveform.shape[-1]).mean(dim=0)
    wave = F.pad(wave, (0, max(FFT - len(wave), 0)))
    spectrum = torch.stft(wave, FFT, HOP, window=torch.hann_window(FFT), return_complex=True).abs()
    level = 20 * torch.log10(spectrum.clamp(min=1e-7))
    loudest = float(level.max().clamp(min=-60.0))
    shade = ((level - loudest) / RANGE + 1).clamp(0, 1).flip(0)
    shade = F.interpolate(shade[None, None], (SPECTROGRAM_HEIGHT, width), mode="bilinear", align_corners=False)[0, 0]
    position = shade * (len(COLOURS) - 1)
    low = position.floor().long().clamp(max=len(COLOURS) - 2)
    weight = (position - low)[..., None]
    return torch.lerp(COLOURS[low], COLOURS[low + 1], weight).round().to(torch.uint8)
