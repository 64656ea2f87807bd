"""One line per failure: what libav, Pillow and the file system raise becomes a ``MediaError``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from ltx_core.errors import MediaError
from ltx_core.fingerprint import is_regular


@contextmanager
def media_errors(path: str | Path, action: str) -> Iterator[None]:
    """Raise ``MediaError("<path>: cannot <action>: <cause>")`` for anything the media libraries refuse."""
    try:
        yield
    except MediaError:
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
