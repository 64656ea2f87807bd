"""OpenEXR pictures: read any that libav decodes, write half-float RGB scanline files with ZIP compression.

File layout (OpenEXR technical introduction): magic, version, attributes, a table of chunk offsets, then chunks of 16
scanlines. A scanline holds its channels one after another in alphabetical order.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_media.color import HDRColorSpace
from ltx_media.containers import open_container
from ltx_media.files import media_errors, replacing

MAGIC, VERSION = 20000630, 2
HALF, ZIP_COMPRESSION, ROWS_PER_CHUNK = 1, 3, 16
REC709_CHROMATICITIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
AP1_CHROMATICITIES = (0.713, 0.293, 0.165, 0.830, 0.128, 0.044, 0.32168, 0.33767)
COLOR_SPACES = {
    HDRColorSpace.SRGB_LINEAR: ("sRGB", REC709_CHROMATICITIES),
    HDRColorSpace.ACESCG: ("ACEScg", AP1_CHROMATICITIES),
    HDRColorSpace.ACESCCT: ("ACEScct", AP1_CHROMATICITIES),
}


def is_exr(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".exr"


def exr_frames(folder: str | Path) -> list[Path]:
    """The EXR files of a folder by name; empty if ``folder`` is not one."""
    folder = Path(folder)
    return sorted(path for path in folder.iterdir() if is_exr(path)) if folder.is_dir() else []


def read_exr(path: str | Path) -> Tensor:
    """The values as stored, float32 ``[h, w, 3]``; a single channel is repeated, alpha is dropped."""
    with media_errors(path, "read image"), open_container(path) as source:
        frame = next(source.decode(video=0), None)
        if frame is None:
            raise MediaError(f"{path}: cannot read image: it holds no picture")
    if not any(part in frame.format.name for part in ("f16", "f32")):
        raise MediaError(f"{path}: its pixels decode as {frame.format.name}, expected floating point")
    planes = [_plane(frame, index) for index in range(len(frame.planes))]
    if len(planes) < 3:
        return planes[0][..., None].expand(-1, -1, 3)
    green, blue, red = planes[:3]
    return torch.stack((red, green, blue), -1)


def write_exr(path: str | Path, image: Tensor, color_space: HDRColorSpace) -> None:
    """Write ``[h, w, 3]`` as half floats, tagged with its colour space and chromaticities."""
    height, width, _ = image.shape
    with np.errstate(over="ignore"):
        half = image.float().cpu().numpy().astype("<f2")
    rows = np.ascontiguousarray(half[:, :, ::-1].transpose(0, 2, 1))  # [h, (B, G, R), w]
    chunks = []
    for y in range(0, height, ROWS_PER_CHUNK):
        raw = rows[y : y + ROWS_PER_CHUNK].tobytes()
        packed = zlib.compress(_predict(raw), 4)
        data = packed if len(packed) < len(raw) else raw
        chunks.append(struct.pack("<ii", y, len(data)) + data)
    header = _header(height, width, color_space)
    offsets = len(header) + 8 * len(chunks) + np.cumsum([0, *map(len, chunks)], dtype=np.int64)[:-1]
    with replacing(path) as temporary, media_errors(path, "write image"):
        temporary.write_bytes(b"".join((header, offsets.astype("<u8").tobytes(), *chunks)))


def _plane(frame: av.VideoFrame, index: int) -> Tensor:
    """One channel ``[h, w]``; rows lie in memory with padding at their ends."""
    dtype = np.dtype("<f2" if "f16" in frame.format.name else "<f4")
    plane = frame.planes[index]
    rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)
    return torch.from_numpy(rows[: frame.height, : frame.width].astype(np.float32))


def _header(height: int, width: int, color_space: HDRColorSpace) -> bytes:
    name, chromaticities = COLOR_SPACES[color_space]
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channels = b"".join(channel + b"\0" + struct.pack("<iB3xii", HALF, 0, 1, 1) for channel in (b"B", b"G", b"R"))
    attributes = (
        ("channels", "chlist", channels + b"\0"),
        ("chromaticities", "chromaticities", struct.pack("<8f", *chromaticities)),
        ("colorSpace", "string", name.encode()),
        ("compression", "compression", bytes([ZIP_COMPRESSION])),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    )
    parts = [struct.pack("<ii", MAGIC, VERSION)]
    for key, kind, value in attributes:
        parts.append(key.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value)
    return b"".join(parts) + b"\0"


def _predict(raw: bytes) -> bytes:
    """Even bytes, then odd bytes, each replaced by its difference from the one before plus 128."""
    data = np.frombuffer(raw, np.uint8)
    split = np.concatenate((data[0::2], data[1::2]))
    split[1:] = split[1:] - split[:-1] + np.uint8(128)
    return split.tobytes()
