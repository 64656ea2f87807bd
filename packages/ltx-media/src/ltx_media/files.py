"""Files that appear whole or not at all, and what goes wrong with them in one line each.

What libav, Pillow and the file system raise becomes a ``MediaError``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from ltx_core.errors import LtxError, MediaError
from ltx_core.fingerprint import is_regular

LONGEST = 255  # bytes of a file's name
MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"  # folders are shared between machines
LEFT = re.compile(rf".+\.(?:partial|writing)-(\d+)-{MACHINE}(?:\.[^.]*)?")


@contextmanager
def temporary_beside(path: str | Path, label: str) -> Iterator[Path]:
    """A name in the folder of ``path`` for a file that is removed on the way out; parent folders are made.

    The name is ``<stem>.<label>-<process>-<machine><suffix>``: after a crash it tells what it was going to be. What
    processes of this machine that are gone have left there is removed.
    """
    path = Path(path)
    check_length(path)
    with media_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path.parent)
    ending = f".{label}-{os.getpid()}-{MACHINE}{path.suffix}"
    stem = os.fsencode(path.stem)[: LONGEST - len(os.fsencode(ending))]
    temporary = path.with_name(stem.decode("utf-8", "ignore") + ending)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def check_length(path: Path) -> None:
    """Refuse a name that no file system keeps. Raises ``MediaError``."""
    if len(os.fsencode(path.name)) > LONGEST:
        raise MediaError(f"{path.name[:40]}...: the name has {len(os.fsencode(path.name))} bytes, at most {LONGEST}")


def remove_left(folder: Path) -> None:
    """Remove what killed processes of this machine have left half-written in a folder."""
    for path in folder.iterdir():
        left = LEFT.fullmatch(path.name)
        if left is not None and not _is_running(int(left[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name that becomes ``path`` when the block succeeds and vanishes when it does not."""
    with temporary_beside(path, "writing") as temporary:
        yield temporary
        with media_errors(path, "write"):
            temporary.replace(path)


@contextmanager
def media_errors(path: str | Path, action: str) -> Iterator[None]:
    """Raise ``MediaError("<path>: cannot <action>: <cause>")`` for anything the media libraries refuse.

    Errors of ours pass as they are.
    """
    try:
        yield
    except LtxError:
        raise
    except (av.FFmpegError, OSError, EOFError, SyntaxError, ValueError) as error:
        raise MediaError(f"{path}: cannot {action}: {_cause(error)}") from error


def check_exists(path: str | Path, action: str) -> None:
    """Raise ``MediaError`` for a missing file without importing what would read it."""
    with media_errors(path, action):
        Path(path).stat()


def check_regular(path: str | Path) -> None:
    """Raise ``MediaError`` for what is there and no regular file, without opening it; ``OSError`` for a missing one."""
    if not is_regular(path):
        Path(path).stat()
        raise MediaError(f"{path} is no regular file")


def _cause(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
