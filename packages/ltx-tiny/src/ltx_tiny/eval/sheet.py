"""Contact sheets: for each clip a row of frames over the spectrogram of its sound, and the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ltx_tiny.eval.detectors import log_mel
from ltx_tiny.eval.hearing import RATE

PAPER, INK = (250, 249, 246), (40, 40, 44)
HEAT = np.array([(10, 8, 24), (64, 18, 92), (150, 38, 100), (226, 86, 62), (252, 170, 60), (252, 244, 190)], np.float32)
LOUDEST, QUIETEST = 0.5, -8.0  # natural logarithm of mel magnitudes at the ends of the colours
MARGIN, GAP = 8, 2  # pixels around a clip, between its frames


@dataclass(frozen=True)
class Clip:
    """One entry of a sheet: video uint8 ``[F, H, W, 3]`` and audio ``[2, S]`` in [-1, 1]."""

    title: str
    video: NDArray[np.uint8]
    audio: NDArray[np.float32]
    rate: int = RATE


def draw_sheet(clips: Sequence[Clip], frames: int = 8, side: int = 128, across: int = 1) -> Image.Image:
    """Draw clips in ``across`` columns, each with so many frames ``side`` pixels high."""
    blocks = [_block(clip, frames, side) for clip in clips]
    wide = max(block.width for block in blocks)
    tall = max(block.height for block in blocks)
    down = -(-len(blocks) // across)
    sheet = Image.new("RGB", (MARGIN + across * (wide + MARGIN), MARGIN + down * (tall + MARGIN)), PAPER)
    for i, block in enumerate(blocks):
        sheet.paste(block, (MARGIN + i % across * (wide + MARGIN), MARGIN + i // across * (tall + MARGIN)))
    return sheet


def write_sheet(path: Path, clips: Sequence[Clip], frames: int = 8, side: int = 128, across: int = 1) -> None:
    """Draw clips as in ``draw_sheet`` and write them as a picture file."""
    draw_sheet(clips, frames, side, across).save(path)


def spectrogram(audio: NDArray[np.float32], rate: int, width: int, height: int) -> NDArray[np.uint8]:
    """Left and right, one above the other, low notes at the bottom of each: ``[height, width, 3]``."""
    mel = log_mel(audio, rate)  # [2, T, 64]
    heat = np.clip((mel - QUIETEST) / (LOUDEST - QUIETEST), 0.0, 1.0)
    picture = np.concatenate([channel.T[::-1] for channel in heat])
    place = picture * (len(HEAT) - 1)
    low = np.minimum(place.astype(int), len(HEAT) - 2)
    colour = HEAT[low] + (HEAT[low + 1] - HEAT[low]) * (place - low)[..., None]
    return np.asarray(Image.fromarray(colour.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR))


def _block(clip: Clip, frames: int, side: int) -> Image.Image:
    wide = round(side * clip.video.shape[2] / clip.video.shape[1])
    width = frames * (wide + GAP) - GAP
    font = ImageFont.load_default(13)
    lines = _wrap(clip.title, font, width)
    head = 18 * len(lines) + 2
    block = Image.new("RGB", (width, head + side + GAP + side // 2), PAPER)
    pen = ImageDraw.Draw(block)
    for i, line in enumerate(lines):
        pen.text((0, 18 * i), line, INK, font=font)
    for column, frame in enumerate(np.linspace(0, len(clip.video) - 1, frames).round().astype(int)):
        picture = Image.fromarray(clip.video[frame]).resize((wide, side), Image.Resampling.LANCZOS)
        block.paste(picture, (column * (wide + GAP), head))
    heat = spectrogram(clip.audio, clip.rate, width, side // 2)
    block.paste(Image.fromarray(heat), (0, head + side + GAP))
    return block


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
