"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltx_media.errors import media_errors


@contextmanager
def temporary_beside(path: str | Path, label: str) -> Iterator[Path]:
    """A name in the folder of ``path`` for a file that is removed on the way out; parent folders are made.

    The name is ``<stem>.<label>-<process><suffix>``: after a crash it tells what it was going to be.
    """
    path = Path(path)
    with media_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{label}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name that becomes ``path`` when the block succeeds and vanishes when it does not."""
    with temporary_beside(path, "writing") as temporary:
        yield temporary
        with media_errors(path, "write"):
            temporary.replace(path)
