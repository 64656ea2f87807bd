"""Files that lie elsewhere: names such as ``s3://bucket/clips/a.mp4``, by fsspec's file systems."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ltx_core.errors import ConfigError


def is_url(name: str) -> bool:
    return "://" in name


def change_path(name: str, by: Callable[[Path], Path]) -> str:
    """A path, or the path of a URL, changed."""
    scheme, mark, rest = name.rpartition("://")
    return f"{scheme}{mark}{by(Path(rest)).as_posix()}" if mark else str(by(Path(rest)))


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path it has there. Raises `ConfigError` for a kind nothing here knows."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url} cannot be used: {error}") from error


def exists(name: str) -> bool:
    """Whether a name is taken; an empty folder is not."""
    if is_url(name):
        files, path = file_system(name)
        return bool(files.exists(path))
    here = Path(name)
    return any(here.iterdir()) if here.is_dir() else here.exists()


@contextmanager
def local_copy(name: str) -> Iterator[Path]:
    """A file on this machine's disk, a copy of one that lies elsewhere."""
    if not is_url(name):
        yield Path(name)
        return
    files, path = file_system(name)
    with TemporaryDirectory(prefix="ltx-") as folder:
        copy = Path(folder, Path(path).name)
        files.get_file(path, str(copy))
        yield copy


def put(file: Path, url: str) -> None:
    """Copy a file to a URL, where it appears whole or not at all."""
    from ltx_media.files import MACHINE

    files, path = file_system(url)
    partial = f"{path}.partial-{os.getpid()}-{MACHINE}"
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    files.put_file(str(file), partial)
    files.mv(partial, path)
