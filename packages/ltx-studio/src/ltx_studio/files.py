"""Where files of jobs lie: under one folder, by generated names only. No name from a client is ever opened."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import MediaError
from ltx_studio.store import Store

JOB_ID = re.compile(r"video_[0-9a-f]{32}")
UPLOAD = re.compile(r"upload_[0-9a-f]{32}\.(png|jpg|webp|mp4|webm|mov|mkv|wav|mp3|flac|ogg)")
#: First bytes -> suffix. What is not here is refused, whatever it is called.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpg"),
    (8, b"WEBP", "webp"),
    (8, b"WAVE", "wav"),
    (4, b"ftypqt", "mov"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
)


@dataclass(frozen=True)
class Files:
    """The data folder: ``jobs/<id>/`` for what was made, ``uploads/`` for what was sent."""

    folder: Path

    def job(self, job_id: str) -> Path:
        """A job's own folder. Raises `MediaError` for an id that is none."""
        if not JOB_ID.fullmatch(job_id):
            raise MediaError(f"{job_id[:40]!r} is no id of a job")
        return self.folder / "jobs" / job_id

    def upload(self, name: str) -> Path:
        """A file that was sent. Raises `MediaError` for a name that was not given out here, or is gone."""
        path = self.folder / "uploads" / name
        if not UPLOAD.fullmatch(name) or not path.is_file():
            raise MediaError(f"{name[:60]!r} is no upload, expected the name an upload was answered with")
        return path

    def clip(self, job_id: str) -> Path:
        """The clip a job has made. Raises `MediaError` where there is none."""
        found = next((path for path in sorted(self.job(job_id).glob("clip.*")) if path.name.count(".") == 1), None)
        if found is None:
            raise MediaError(f"{job_id} has no clip, expected one that is completed")
        return found

    def new_upload(self, head: bytes) -> Path:
        """Where to write a file that begins with ``head``. Raises `MediaError` for a kind that is not taken."""
        suffix = next((kind for at, magic, kind in SIGNATURES if head[at : at + len(magic)] == magic), None)
        if suffix is None:
            raise MediaError(
                "the upload is no picture, clip or sound of a kind that is taken (png, jpg, webp, mp4, wav …)"
            )
        folder = self.folder / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"upload_{secrets.token_hex(16)}.{suffix}"

    def resolve(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request with upload names, ``upload_….png``, turned into the files they stand for, at any depth."""
        return {name: self._resolved(value) for name, value in request.items()}

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("upload_"):
            return str(self.upload(value))
        if isinstance(value, str) and JOB_ID.fullmatch(value):
            return str(self.clip(value))
        if isinstance(value, Mapping):
            return {name: self._resolved(item) for name, item in value.items()}
        return [self._resolved(item) for item in value] if isinstance(value, list) else value

    def remove_job(self, job_id: str) -> None:
        """Everything a job has made."""
        shutil.rmtree(self.job(job_id), ignore_errors=True)

    def used_bytes(self) -> int:
        """What the folder holds."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def clean(self, store: Store, quota: int) -> list[str]:
        """Forget the oldest clips that are no favourites until the folder fits ``quota`` bytes; their ids."""
        gone: list[str] = []
        used = self.used_bytes()
        for job in store.list(limit=1_000_000, newest_first=False):
            if used <= quota:
                break
            if not job.ended or job.favourite:
                continue
            folder = self.job(job.id)
            used -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if store.delete(job.id):
                self.remove_job(job.id)
                gone.append(job.id)
        return gone
