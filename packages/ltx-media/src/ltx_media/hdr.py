"""HDR clips out: EXR files as the colour space has them, and beside them a master in HEVC and HLG that players show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ltx_core.types import Audio
from ltx_media.color import HDRColorSpace, rec709_light
from ltx_media.exr import write_exr
from ltx_media.preview import numbered_files
from ltx_media.writer import HLG, write_video

WRITERS = 4  # threads that pack EXR files


def write_exr_files(folder: str | Path, frames: Iterable[Tensor], color_space: HDRColorSpace) -> int:
    """Write chunks ``[F, H, W, 3]`` as ``frame_00000.exr`` ... in a folder; returns their number."""
    with numbered_files(folder, ".exr") as name:
        return sum(len(chunk) for chunk in _stored(frames, name, color_space))


def write_hdr(
    path: str | Path,
    folder: str | Path,
    frames: Iterable[Tensor],
    fps: float | Fraction,
    audio: Audio | None,
    color_space: HDRColorSpace,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a master to an MP4 (BT.2020, HLG, 10 bits) and its EXR files to a folder; returns the number of frames.

    ``frames`` yields chunks ``[F, H, W, 3]`` in ``color_space``. Raises ``MediaError`` as `write_video` does.
    """
    with numbered_files(folder, ".exr") as name:
        light = (rec709_light(chunk, color_space) for chunk in _stored(frames, name, color_space))
        return write_video(path, light, fps, audio, HLG, metadata)


def _stored(frames: Iterable[Tensor], name: Callable[[int], Path], color_space: HDRColorSpace) -> Iterator[Tensor]:
    """The chunks, each handed on while its frames are being written."""
    count = 0
    with ThreadPoolExecutor(WRITERS, "ltx-exr") as pool:
        for chunk in frames:
            written = [pool.submit(write_exr, name(count + at), frame, color_space) for at, frame in enumerate(chunk)]
            count += len(chunk)
            yield chunk
            for one in written:
                one.result()
