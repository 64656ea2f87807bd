"""Small pictures: of a clip that is made its first frame and frames over its length, of one in the making previews."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

SHEET_FRAMES = 12
PREVIEW_SIDE = 160  # pixels of a frame of a preview, at most


def frames_of(clip: Path, count: int) -> list[Image.Image]:
    """``count`` frames of a clip, evenly spread."""
    from ltx_media.video import probe_video, read_frames

    info = probe_video(clip)
    total = max(info.frames, 1)
    wanted = sorted({round(index * (total - 1) / max(count - 1, 1)) for index in range(count)})
    found, at = [], 0
    for chunk in read_frames(clip):
        for frame in chunk if chunk.ndim == 4 else chunk[None]:
            if at in wanted:
                found.append(Image.fromarray(frame.numpy()))
            at += 1
    return found


def preview_strip(frames: Tensor) -> str:
    """Frames ``[f, H, W, 3]``, uint8, side by side in a small JPEG, as a data URL."""
    _, height, width, _ = frames.shape
    strip = Image.fromarray(frames.transpose(0, 1).reshape(height, -1, 3).numpy())
    scale = min(1, PREVIEW_SIDE / max(height, width))
    if scale < 1:
        strip = strip.resize((len(frames) * max(round(width * scale), 1), max(round(height * scale), 1)))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_thumbnail(clip: Path, path: Path) -> None:
    """The first frame, at most 512 pixels wide."""
    _write(frames_of(clip, 1)[0], path, (512, 512))


def write_spritesheet(clip: Path, path: Path) -> None:
    """Frames over the whole clip, in rows of four."""
    frames = frames_of(clip, SHEET_FRAMES)
    for frame in frames:
        frame.thumbnail((256, 256))
    width, height = frames[0].size
    sheet = Image.new("RGB", (4 * width, -(-len(frames) // 4) * height))
    for index, frame in enumerate(frames):
        sheet.paste(frame, (index % 4 * width, index // 4 * height))
    _write(sheet, path, sheet.size)


def _write(image: Image.Image, path: Path, limit: tuple[int, int]) -> None:
    from ltx_media.files import replacing

    image.thumbnail(limit)
    with replacing(path) as temporary:
        image.save(temporary, {".webp": "WEBP", ".jpg": "JPEG"}[path.suffix])
