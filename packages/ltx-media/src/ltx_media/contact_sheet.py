"""A clip on one page: frames in a grid over the spectrogram of its sound, on one time axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_core.types import Audio
from ltx_media.audio import stereo_track
from ltx_media.files import media_errors, replacing
from ltx_media.preview import single_frames

PAGE, MARGIN, GAP, CAPTION = 1600, 40, 12, 26  # pixels
SPECTROGRAM_HEIGHT, AXIS_HEIGHT = 180, 30
BACKGROUND, INK, FAINT, ACCENT = (16, 16, 20), (235, 235, 240), (140, 140, 150), (255, 184, 108)
LOWEST_HZ, RANGE_DB = 50.0, 80.0
# Black over violet and orange to pale yellow, evenly rising in lightness.
SPECTRUM = ((16, 16, 20), (47, 20, 82), (112, 31, 107), (178, 50, 90), (229, 92, 48), (249, 160, 40), (252, 243, 190))
FREQUENCY_MARKS = ((100, "100 Hz"), (1000, "1 kHz"), (10000, "10 kHz"))


@dataclass(frozen=True)
class ContactSheet:
    """Contents of the page."""

    frames: list[Tensor]  # uint8 [H, W, 3], picked evenly
    times: list[float]  # seconds, of the picked frames
    duration: float  # seconds
    title: str
    facts: str
    audio: Audio | None


def write_contact_sheet(
    path: str | Path, frames: Iterable[Tensor], fps: float | Fraction, audio: Audio | None = None, title: str = ""
) -> None:
    """Write a PNG with eight frames of a clip over its spectrogram; ``frames`` as in ``write_video`` (SDR).

    A sound alone has no frames. Raises ``MediaError``.
    """
    sheet = contact_sheet_of(frames, fps, audio, title)
    if not sheet.frames and audio is None:
        raise MediaError(f"{path}: there are no frames to show")
    with replacing(path) as temporary, media_errors(path, "write contact sheet"):
        draw_contact_sheet(sheet).save(temporary, format="PNG")


def contact_sheet_of(
    frames: Iterable[Tensor], fps: float | Fraction, audio: Audio | None = None, title: str = "", count: int = 8
) -> ContactSheet:
    """The page of a clip, or of a sound alone."""
    every = list(single_frames(frames))
    picks = sorted({round(index) for index in np.linspace(0, len(every) - 1, min(count, len(every)))})
    duration = len(every) / float(fps) if every or audio is None else audio.duration
    facts = f"{duration:.2f} s"
    if every:
        height, width, _ = every[0].shape
        facts = f"{width} x {height}   {float(fps):.5g} fps   {len(every)} frame{'s' * (len(every) > 1)}   {facts}"
    return ContactSheet(
        frames=[every[index].cpu() for index in picks],
        times=[index / float(fps) for index in picks],
        duration=duration,
        title=title,
        facts=facts,
        audio=audio,
    )


def write_rows(path: str | Path, rows: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Write a PNG with a row of frames, uint8 ``[H, W, 3]``, under each label. Raises ``MediaError``."""
    columns = max(len(frames) for _, frames in rows)
    cell = (PAGE - 2 * MARGIN - (columns - 1) * GAP) // columns
    heights = [round(cell * frames[0].shape[0] / frames[0].shape[1]) for _, frames in rows]
    page = Image.new("RGB", (PAGE, 2 * MARGIN + sum(heights) + len(rows) * (CAPTION + GAP) - GAP), BACKGROUND)
    draw, top = ImageDraw.Draw(page), MARGIN
    for (label, frames), height in zip(rows, heights, strict=True):
        draw.text((MARGIN, top), label, INK, _font(17))
        for index, frame in enumerate(frames):
            picture = Image.fromarray(np.ascontiguousarray(frame.cpu().numpy()))
            picture = picture.resize((cell, height), Image.Resampling.LANCZOS)
            page.paste(picture, (MARGIN + index * (cell + GAP), top + CAPTION))
        top += height + CAPTION + GAP
    with replacing(path) as temporary, media_errors(path, "write sheet"):
        page.save(temporary, format="PNG")


def draw_contact_sheet(sheet: ContactSheet, least: int = 1) -> Image.Image:
    """The page: title and facts, the grid of frames, then the spectrogram with a mark at each frame's time.

    Fewer frames than ``least`` are as small as ``least`` of them would be.
    """
    height, width = sheet.frames[0].shape[:2] if sheet.frames else (1, 1)
    columns = max(_columns(len(sheet.frames), width / height), least)
    cell = (PAGE - 2 * MARGIN - (columns - 1) * GAP) // columns
    cell_height = round(cell * height / width)
    rows = -(-len(sheet.frames) // columns)
    grid_top = MARGIN + 56
    sound_top = grid_top + rows * (cell_height + CAPTION + GAP) + GAP
    sound_height = SPECTROGRAM_HEIGHT + AXIS_HEIGHT if sheet.audio else 0
    page = Image.new("RGB", (PAGE, sound_top + sound_height + MARGIN - GAP), BACKGROUND)
    draw = ImageDraw.Draw(page)
    _draw_heading(draw, sheet)
    for index, (frame, time) in enumerate(zip(sheet.frames, sheet.times, strict=True)):
        left = MARGIN + index % columns * (cell + GAP)
        top = grid_top + index // columns * (cell_height + CAPTION + GAP)
        picture = Image.fromarray(np.ascontiguousarray(frame.numpy()))
        page.paste(picture.resize((cell, cell_height), Image.Resampling.LANCZOS), (left, top))
        draw.text((left, top + cell_height + 5), f"{time:.2f} s", FAINT, _font(15))
    if sheet.audio:
        _draw_sound(page, draw, sheet, sheet.audio, sound_top)
    return page


def _columns(count: int, aspect: float) -> int:
    """As many columns as make two rows, one of up to four, but frames no smaller than tall ones need."""
    wanted = math.ceil(count / 2) if count > 4 else count
    return max(min(wanted, count, 4 if aspect >= 1 else 8), 1)


def _draw_heading(draw: ImageDraw.ImageDraw, sheet: ContactSheet) -> None:
    facts_width = draw.textlength(sheet.facts, _font(17))
    draw.text((PAGE - MARGIN - facts_width, MARGIN + 7), sheet.facts, FAINT, _font(17))
    room, title = PAGE - 2 * MARGIN - facts_width - 40, " ".join(sheet.title.split())
    if draw.textlength(title, _font(24)) > room:
        while title and draw.textlength(title + "…", _font(24)) > room:
            title = title[:-1]
        title = title.rstrip() + "…"
    draw.text((MARGIN, MARGIN), title, INK, _font(24))


def _draw_sound(page: Image.Image, draw: ImageDraw.ImageDraw, sheet: ContactSheet, audio: Audio, top: int) -> None:
    width, bottom = PAGE - 2 * MARGIN, top + SPECTROGRAM_HEIGHT
    levels = spectrogram(audio, sheet.duration, SPECTROGRAM_HEIGHT, width)
    page.paste(Image.fromarray(_colorize(levels)), (MARGIN, top))
    highest = audio.sampling_rate / 2
    for frequency, label in FREQUENCY_MARKS:
        if frequency < highest:
            y = bottom - SPECTROGRAM_HEIGHT * math.log(frequency / LOWEST_HZ) / math.log(highest / LOWEST_HZ)
            draw.line((MARGIN, y, MARGIN + 6, y), INK)
            draw.text((MARGIN + 10, y - 8), label, INK, _font(13), stroke_width=2, stroke_fill=BACKGROUND)
    for time in sheet.times:
        x = MARGIN + min(time / sheet.duration * width, width - 1)
        draw.polygon(((x - 5, top - 9), (x + 5, top - 9), (x, top - 2)), ACCENT)
    for time in _ticks(sheet.duration):
        x = MARGIN + time / sheet.duration * width
        draw.line((x, bottom, x, bottom + 5), FAINT)
        draw.text((x + 4, bottom + 4), f"{time:g} s", FAINT, _font(13))


def spectrogram(audio: Audio, duration: float, height: int, width: int) -> Tensor:
    """Loudness of the first ``duration`` seconds as float32 ``[height, width]`` in [0, 1], high frequencies on top.

    Both channels together; frequencies are spaced logarithmically from 50 Hz to half the rate; 80 dB below the peak
    is 0.
    """
    rate = audio.sampling_rate
    mono = stereo_track(audio, "contact sheet", Fraction(duration).limit_denominator(100_000)).mean(0)
    size = 2048 if rate > 30000 else 1024
    hop = max(min(mono.shape[0] // width, size // 4), 1)
    spectrum = torch.stft(
        mono, size, hop, window=torch.hann_window(size), pad_mode="constant", return_complex=True
    ).abs()
    grid_y = torch.linspace(math.log(rate / 2), math.log(LOWEST_HZ), height).exp() / (rate / 2) * 2 - 1
    grid_x = torch.linspace(-1, 1, width)
    grid = torch.stack((grid_x.expand(height, -1), grid_y[:, None].expand(-1, width)), -1)[None]
    decibels = 20 * torch.log10(spectrum.clamp(min=1e-6))
    sampled = torch.nn.functional.grid_sample(decibels[None, None], grid, align_corners=True)[0, 0]
    return ((sampled - max(float(decibels.max()), 0.0)) / RANGE_DB + 1).clamp(0, 1)


def _colorize(levels: Tensor) -> np.ndarray:
    positions = np.linspace(0, 1, len(SPECTRUM))
    channels = [np.interp(levels.numpy(), positions, [color[i] for color in SPECTRUM]) for i in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _ticks(duration: float) -> list[float]:
    step = next((step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10, 30) if duration / step <= 12), 60)
    return [round(index * step, 3) for index in range(int(duration / step) + 1) if duration - index * step > step / 4]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
