"""Where results go: their names, and files that lie elsewhere, such as ``s3://bucket/clips/a.mp4``, by fsspec."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ltx_core.errors import ConfigError, MediaError

VIDEO, PREVIEW = (".mp4", ".mov", ".m4v", ".mkv", ".webm"), (".gif", ".webp")
SOUND, STILL = (".wav", ".flac", ".mp3"), (".png",)
HDR_VIDEO = (".mp4", ".mov", ".m4v")
LEFT_OUT = {  # of a clip with sound, by what it is written to
    ".gif": "a GIF has no sound, 256 colours, at most 15 frames a second and sides of 480 pixels",
    ".webp": "a WebP has no sound, at most 15 frames a second and sides of 480 pixels",
    ".png": "a PNG has no sound",
    "": "PNG files have no sound",
}


def check_output(path: Path, has_video: bool, overwrite: bool = False, hdr: bool = False, frames: int = 1) -> None:
    """Refuse a file name this result cannot be written to, and one that is taken unless ``overwrite``.

    One frame may be a PNG; as long as it is not known how many there are, they count as one.
    """
    small = () if hdr else (*PREVIEW, *(STILL if frames == 1 else ()))
    check_name(path, (*(HDR_VIDEO if hdr else VIDEO), *small, "") if has_video else SOUND)
    check_free(path, overwrite)
    if hdr and path.suffix:
        check_free(exr_folder(path), overwrite)


def exr_folder(path: Path) -> Path:
    """Folder of the EXR files of an HDR clip."""
    return path.with_name(f"{path.stem}_exr")


def check_beside(output: Path, contact_sheet: Path | None = None, crf: float | None = None, hdr: bool = False) -> None:
    """Refuse what cannot be written with, or beside, an output of this name."""
    if crf is not None and output.suffix.lower() not in VIDEO:
        raise ConfigError(f"crf is for {', '.join(VIDEO)}, not {output.name}; leave it out")
    if crf is not None and hdr:
        raise ConfigError("crf has no effect on an HDR clip, whose EXR files keep everything; leave it out")
    if contact_sheet is not None:
        check_name(contact_sheet, (".png",), "contact_sheet")
        if output.suffix.lower() not in VIDEO:
            raise ConfigError(f"a contact sheet needs {', '.join(VIDEO)} as output, not {output.name}; leave it out")


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a name that is taken; an empty folder is not."""
    if exists(str(path)) and not overwrite:
        raise taken(str(path))


def taken(name: str) -> MediaError:
    """The error that refuses a name that is taken."""
    return MediaError(f"{name} is there already; choose another name, or replace it with --overwrite")


def check_name(path: Path, suffixes: Sequence[str], what: str = "output") -> None:
    """Refuse a name with another suffix (the first is proposed; an empty one is a folder of pictures)."""
    if path.suffix.lower() not in suffixes:
        kinds = ", ".join(suffix or "a folder for pictures" for suffix in suffixes)
        valid = path.with_suffix(suffixes[0]).name
        raise MediaError(f"{what} is {path.name}, expected {kinds}; nearest valid: {valid}")
    from ltx_media.files import check_length

    check_length(path)
    if path.suffix and path.is_dir():
        raise MediaError(f"{what} is {path}, which is a folder, expected a file name")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise MediaError(f"{what} is {path}, but {parent} cannot be written to")


def latents_path(output: Path) -> Path:
    """File of the kept first stage of a clip."""
    return output.with_name(f"{output.stem}.stage1.safetensors")


def free_output(prompt: str, seed: int, suffix: str) -> str:
    """A file name from prompt and seed that is not taken."""
    stem = "-".join(re.findall(r"[a-z0-9]+", prompt.lower())[:6])[:48] or "clip"
    return str(free_path(Path(f"{stem}-{seed}{suffix}")))


def free_path(path: Path, *beside: str) -> Path:
    """The first of a.mp4, a-2.mp4 ... that is not taken, nor are its files with the suffixes ``beside``."""
    names = (path.with_name(f"{path.stem}{again}{path.suffix}") for again in ("", *(f"-{n}" for n in range(2, 10000))))
    return next(name for name in names if not any(name.with_suffix(one).exists() for one in (path.suffix, *beside)))


# Files that lie elsewhere ------------------------------------------------------------------------------------------


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
