"""Pictures to look at while something trains: sheets of frames, spectrograms and curves, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET_FRAMES = 4  # of every clip
PLOT_SIZE = (420, 220)
MARGIN = (52, 22, 12, 26)  # left, top, right, bottom of one plot
INK, LINE, PALE = (40, 40, 40), (30, 90, 200), (220, 220, 220)


def frames_sheet(path: Path, *clips: Tensor) -> None:
    """Clips ``[B, 3, F, H, W]`` in [-1, 1], one above the other: B columns of up to `SHEET_FRAMES` frames."""
    rows = []
    for clip in clips:
        frames = clip.shape[2]
        chosen = sorted({round(i * (frames - 1) / max(SHEET_FRAMES - 1, 1)) for i in range(SHEET_FRAMES)})
        rows.append(clip[:, :, chosen].permute(1, 3, 0, 2, 4).flatten(2))  # [3, H, B*f*W]
    save_image(path, torch.cat(rows, dim=1))


def spectrogram_sheet(path: Path, *mels: Tensor, low: float = -11.6, high: float = 3.0) -> None:
    """Log-mel pictures ``[B, 2, T, bins]``, one above the other, low tones at the bottom."""
    rows = []
    for mel in mels:
        picture = mel.float().permute(1, 3, 0, 2).flip(1)  # [2, bins, B, T]
        picture = torch.nn.functional.pad(picture, (0, 4), value=high).flatten(2)  # a gap between clips
        rows += [picture[0], picture[1]]
    grey = (torch.cat(rows) - low) / (high - low) * 2 - 1
    save_image(path, grey.repeat_interleave(2, dim=0)[None].expand(3, -1, -1))


def save_image(path: Path, image: Tensor) -> None:
    """``[3, H, W]`` in [-1, 1] to a file."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().contiguous()
    Image.fromarray(pixels.numpy()).save(path)


def draw_curves(path: Path, rows: Iterable[tuple[int, str, float]]) -> None:
    """One line plot per name of ``(step, name, value)`` rows; long curves are averaged to the plot's width."""
    from PIL import Image

    curves: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in rows:
        if math.isfinite(value):
            curves.setdefault(name, []).append((step, value))
    width, height = PLOT_SIZE
    down = max((len(curves) + 1) // 2, 1)
    sheet = Image.new("RGB", (2 * width, down * height), "white")
    for number, (name, points) in enumerate(curves.items()):
        sheet.paste(_plot(name, points), ((number % 2) * width, number // 2 * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _plot(name: str, points: Sequence[tuple[int, float]]) -> Image:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", PLOT_SIZE, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN
    wide, tall = PLOT_SIZE[0] - left - right, PLOT_SIZE[1] - top - bottom
    points = _thin(points, wide // 2)
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def at(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / max(last - first, 1e-9)
        up = (value - low) / max(high - low, 1e-12)
        return left + across * wide, top + (1 - up) * tall

    draw.rectangle((left, top, left + wide, top + tall), outline=PALE)
    draw.text((left, 5), f"{name}  last {values[-1]:.4g}", fill=INK)
    draw.text((4, top), f"{high:.3g}", fill=INK)
    draw.text((4, top + tall - 10), f"{low:.3g}", fill=INK)
    draw.text((left, top + tall + 6), str(first), fill=INK)
    draw.text((left + wide - 44, top + tall + 6), str(last), fill=INK)
    draw.line([at(step, value) for step, value in points] * (2 if len(points) == 1 else 1), fill=LINE, width=2)
    return image


def _thin(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Means of runs of points so that at most ``most`` remain."""
    run = -(-len(points) // most)
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
