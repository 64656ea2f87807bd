"""Opening files, and nothing but files: no protocol but ``file``, no format whose content names further places.

Files that were cut off are found by what their own headers say is missing at the end. The recipe of a result is kept
inside the file: a JSON object in the metadata of MP4, WAV and PNG files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av

from ltx_core.errors import MediaError
from ltx_core.textfiles import parse_json
from ltx_media.files import check_regular, media_errors

# Formats whose content names other files or hosts, and devices.
REFERRING = {
    *("concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp", "vobsub", "webm_dash_manifest"),
    *("alsa", "fbdev", "kmsgrab", "lavfi", "oss", "video4linux2,v4l2", "x11grab"),
}
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
RECIPE_KEY = "recipe"
CONTAINER_KEY = "comment"  # the tag without a limit of length that MP4, MOV and WAV share


def open_container(path: str | Path) -> av.container.InputContainer:
    """A regular file on this machine, open for reading; call it inside `media_errors`.

    Raises ``MediaError`` for devices, pipes and folders, before any of them is opened.
    """
    check_regular(path)
    formats = ",".join(sorted(av.formats_available - REFERRING))
    options = {"protocol_whitelist": "file", "format_whitelist": formats}
    return av.open(f"file:{path}", metadata_errors="ignore", options=options)


@contextmanager
def open_file(path: str | Path, action: str) -> Iterator[av.container.InputContainer]:
    """The file, open for reading. Raises ``MediaError`` for files that are cut off or of no known kind."""
    with media_errors(path, action):
        check_regular(path)
        if missing := missing_bytes(path):
            raise MediaError(f"{path}: cannot {action}: it is cut off, {missing} bytes are missing at its end")
        with open_container(path) as source:
            yield source


def origin(source: av.container.InputContainer) -> float:
    """Time 0 of a file on the clock of its streams, seconds."""
    return float((source.start_time or 0) / av.time_base)


def missing_bytes(path: str | Path) -> int:
    """Number of bytes an MP4, MOV, Matroska, WebM, AVI or WAV claims beyond the end of the file; 0 for other files."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        head = file.read(12)
        if head[4:8] in MP4_BOXES:
            end = _last_box(file, size)
        elif head[:4] in (b"RIFF", b"RIFX"):
            end = 8 + int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
            end = 0 if end >= 2**32 or end - size < 8 else end  # a writer that could not go back, or left padding out
        elif head[:4] == EBML:
            end = _segment(file)
        else:
            end = 0
    return max(end - size, 0)


def _last_box(file: BinaryIO, size: int) -> int:
    """End of the last top-level box of an MP4 or MOV; 0 where it reaches to the end of the file."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0: up to the end of the file
            return 0
        position += length
    return position


def _segment(file: BinaryIO) -> int:
    """End of the segment of a Matroska file, which follows its first element; 0 where its length is not known."""
    file.seek(4)
    length, width = _vint(file.read(8))
    position = 4 + width + length
    file.seek(position)
    if file.read(4) != SEGMENT:
        return 0
    length, width = _vint(file.read(8))
    unknown = length == 2 ** (7 * width) - 1
    return 0 if unknown else position + 4 + width + length


def _vint(data: bytes) -> tuple[int, int]:
    """A length of EBML and how many bytes it takes; 0 bytes where there is none."""
    if not data or not data[0]:
        return 0, 0
    width = 9 - data[0].bit_length()
    return int.from_bytes(data[:width], "big") & (2 ** (7 * width) - 1), width


def container_tags(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """``metadata`` under the tag names containers know."""
    return {CONTAINER_KEY if key == RECIPE_KEY else key: value for key, value in (metadata or {}).items()}


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe stored in a file that we wrote; ``None`` when the file carries none. Raises ``MediaError``."""
    with media_errors(path, "read recipe"):
        if Path(path).suffix.lower() in (".png", ".gif", ".webp"):
            from ltx_media.images import open_image  # takes torch

            with open_image(path) as image:
                held = getattr(image, "text", {}).get(RECIPE_KEY) or image.info.get("comment") or image.info.get("xmp")
                text = held.decode("utf-8", "replace") if isinstance(held, bytes) else held
        else:
            with open_container(path) as source:
                tags = {key.lower(): value for key, value in source.metadata.items()}
                text = next((tags[key] for key in (CONTAINER_KEY, "description") if key in tags), None)
    try:
        recipe = parse_json(text, str(path)) if text else None
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) else None
