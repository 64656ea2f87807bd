"""Fingerprints of files: a short text that two files share only when they are the same.

A fingerprint is ``<bytes>-<digest>``. The digest is BLAKE2b over the size, the first MiB (which holds a safetensors
header: every name, shape and offset) and 64 evenly spread pieces of 4 KiB. It costs 1.3 MB of reading whatever the size
of the file, and covers small files whole. Two trained models of one architecture differ in every piece. Nothing but
regular files is opened, so a device or a pipe costs nothing and says nothing.
"""

from __future__ import annotations

import hashlib
import stat
from functools import lru_cache
from pathlib import Path

from ltx_core.errors import ConfigError

HEAD, PIECE, PIECES = 2**20, 4096, 64  # bytes, bytes, number
MODEL_SUFFIXES = (".safetensors", ".json", ".model")
MOST_FILES = 1024  # of a model's folder


def is_regular(path: str | Path) -> bool:
    """Whether a path names a regular file that can be looked at, through links; never opens it."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def exists(path: str | Path) -> bool:
    """Whether a path names anything; false for one that no file system keeps."""
    try:
        Path(path).stat()
    except (OSError, ValueError):
        return False
    return True


def fingerprint(path: str | Path) -> str:
    """The fingerprint of a file, or of the weights, tokenizer and config in a folder.

    Raises `ConfigError` for what is neither, or cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder(path)
        if not is_regular(path):
            raise ConfigError(f"{path} is no regular file")
        status = path.stat()
        return _file(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _folder(path: Path) -> str:
    inside = sorted(file for file in path.iterdir() if file.suffix in MODEL_SUFFIXES and is_regular(file))
    if len(inside) > MOST_FILES:
        raise ConfigError(f"{path} holds {len(inside)} files of a model, expected at most {MOST_FILES}")
    sizes = sum(file.stat().st_size for file in inside)
    prints = "".join(f"{file.name}={fingerprint(file)};" for file in inside)
    return f"{sizes}-{hashlib.blake2b(prints.encode(), digest_size=16).hexdigest()}"


@lru_cache(maxsize=256)
def _file(path: Path, size: int, modified: int) -> str:
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(HEAD))
        rest = max(size - HEAD, 0)
        if rest <= PIECE * PIECES:
            digest.update(file.read(rest))
        else:
            for index in range(PIECES):
                file.seek(HEAD + (rest - PIECE) * index // (PIECES - 1))
                digest.update(file.read(PIECE))
    return f"{size}-{digest.hexdigest()}"
