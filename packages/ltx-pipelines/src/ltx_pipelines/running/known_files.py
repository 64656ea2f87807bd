"""Last known paths of this user's files, by fingerprint: recipes inside clips name no folders.

One small file for each fingerprint, in the user's state folder; delete the folder to forget all. It says where to look,
and nothing about trust: a recipe from somebody else may hold any fingerprint.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ltx_core.errors import MediaError
from ltx_media.files import replacing

logger = logging.getLogger(__name__)

MOST_KNOWN = 2000
FINGERPRINT = re.compile(r"\d{1,20}-[0-9a-f]{32}")


def state_folder() -> Path:
    """Folder of the entries."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ltx" / "files"


def remember(files: Mapping[str, str]) -> None:
    """Keep where files lie, fingerprints by absolute path; the oldest of too many are forgotten."""
    folder = state_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, mark in files.items():
            if _read(folder / mark) == os.fsencode(path):
                (folder / mark).touch()
                continue
            with replacing(folder / mark) as temporary:
                temporary.write_bytes(os.fsencode(path))
        kept = sorted((entry.stat().st_mtime, entry) for entry in folder.iterdir())
        for _, entry in kept[:-MOST_KNOWN]:
            entry.unlink()
    except FileNotFoundError:  # another process has forgotten the same one
        return
    except (OSError, MediaError) as error:
        logger.warning("%s cannot be written, so a rerun finds files beside the clip only: %s", folder, error)


def last_known(mark: str) -> Path | None:
    """Last path of a file of this fingerprint; None where that is not known."""
    place = state_folder() / mark
    if not FINGERPRINT.fullmatch(mark) or (text := _read(place)) is None:
        return None
    path = Path(os.fsdecode(text))
    if not path.is_absolute() or b"\0" in text:
        logger.warning("%s is damaged and left out", place)
        return None
    return path


def _read(place: Path) -> bytes | None:
    try:
        return place.read_bytes()
    except OSError:
        return None
