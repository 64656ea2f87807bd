"""Small pictures of a clip that is made: its first frame, and frames over its whole length."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

SHEET_FRAMES = 12


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
