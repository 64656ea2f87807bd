"""Small looks at a clip: a moving preview (GIF or WebP), and a folder of PNG files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_media.containers import RECIPE_KEY
from ltx_media.files import media_errors, replacing, temporary_beside
from ltx_media.images import write_png
from ltx_media.pixels import to_bytes

PREVIEW_FPS = 15
PREVIEW_SIDE = 480


def write_preview(
    path: str | Path,
    frames: Iterable[Tensor],
    fps: float | Fraction,
    long_side: int = PREVIEW_SIDE,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an endless GIF or WebP, by suffix, of at most 15 frames a second; ``frames`` as in ``write_video`` (SDR).

    It lasts as long as the clip. ``metadata["recipe"]`` is what ``read_recipe`` returns. Raises ``MediaError``.
    """
    path = Path(path)
    kinds = {".gif": "GIF", ".webp": "WEBP"}
    if path.suffix.lower() not in kinds:
        raise MediaError(f"{path}: suffix is {path.suffix!r}, expected .gif or .webp")
    step = max(round(float(fps) / PREVIEW_FPS), 1)
    images, count = [], 0
    for count, frame in enumerate(single_frames(frames), 1):
        if (count - 1) % step == 0:
            images.append(_thumbnail(frame, long_side))
    if not images:
        raise MediaError(f"{path}: there are no frames to write")
    ends = [min((index + 1) * step, count) / float(fps) for index in range(len(images))]
    clock = [0, *(round(end * 100) * 10 for end in ends)]  # GIF counts hundredths of a second
    durations = [max(after - before, 10) for before, after in pairwise(clock)]
    options: dict[str, Any] = {"quality": 80, "method": 4}
    recipe = (metadata or {}).get(RECIPE_KEY, "").encode()
    if path.suffix.lower() == ".gif":
        images, options = _one_palette(images), {"disposal": 1, "optimize": False}
    if recipe:
        options["comment" if path.suffix.lower() == ".gif" else "xmp"] = recipe
    with replacing(path) as temporary, media_errors(path, "write preview"):
        images[0].save(
            temporary,
            format=kinds[path.suffix.lower()],
            save_all=True,
            append_images=images[1:],
            duration=durations,
            loop=0,
            **options,
        )


def write_png_sequence(folder: str | Path, frames: Iterable[Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Write ``frame_00000.png`` ... into ``folder``, which appears when all are there; returns their number.

    ``frames`` as in ``write_video`` (SDR); the first file carries ``metadata``. A folder that holds nothing but such
    files is replaced, any other that is not empty refused. Raises ``MediaError``.
    """
    count = 0
    with numbered_files(folder, ".png") as name:
        for count, frame in enumerate(single_frames(frames), 1):
            write_png(name(count - 1), frame, metadata if count == 1 else None)
    return count


@contextmanager
def numbered_files(folder: str | Path, suffix: str) -> Iterator[Callable[[int], Path]]:
    """The names of ``frame_00000`` ... in a folder that appears, in place of one of such files, when all are there."""
    folder = Path(folder)
    if folder.exists() and any(not path.match(f"frame_*{suffix}") for path in folder.iterdir()):
        raise MediaError(f"{folder}: it holds other files than frame_*{suffix}, expected an empty or new folder")
    with temporary_beside(folder, "writing") as temporary:
        try:
            yield lambda index: temporary / f"frame_{index:05d}{suffix}"
            if not temporary.is_dir():
                raise MediaError(f"{folder}: there are no frames to write")
            with media_errors(folder, "write images"):
                if folder.exists():
                    shutil.rmtree(folder)
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def single_frames(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Chunks ``[F, H, W, 3]`` or single frames ``[H, W, 3]``, uint8 or floats in [0, 1], as single uint8 frames."""
    for chunk in chunks:
        for frame in chunk if chunk.dim() == 4 else (chunk,):
            yield to_bytes(frame) if frame.is_floating_point() else frame


def _thumbnail(frame: Tensor, long_side: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(frame.cpu().numpy()))
    image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    return image


def _one_palette(images: list[Image.Image]) -> list[Image.Image]:
    """All pictures in 256 colours picked from up to 16 of them, so that colours do not flicker."""
    picks = images[:: -(-len(images) // 16)]
    width, height = images[0].size
    strip = Image.new("RGB", (width, height * len(picks)))
    for index, image in enumerate(picks):
        strip.paste(image, (0, index * height))
    palette = strip.quantize(256, method=Image.Quantize.MEDIANCUT)
    return [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
