"""Files of jobs: under one folder, by generated names only. No name from a client is ever opened."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ltx_core.errors import MediaError
from ltx_media.files import replacing
from ltx_studio.store import Store

JOB_ID = re.compile(r"video_[0-9a-f]{32}")
UPLOAD = re.compile(r"upload_[0-9a-f]{32}\.(png|jpg|webp|mp4|webm|mov|mkv|wav|mp3|flac|ogg)")
UPLOAD_STAYS = 3600.0  # seconds that a file which no job needs yet is spared
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
    (0, b"\xff\xf3", "mp3"),
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
        """Path for a file that begins with ``head``. Raises `MediaError` for a kind that is not taken."""
        suffix = next((kind for at, magic, kind in SIGNATURES if head[at : at + len(magic)] == magic), None)
        if suffix is None:
            raise MediaError(
                "the upload is no picture, clip or sound of a kind that is taken (png, jpg, webp, mp4, wav …)"
            )
        folder = self.folder / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"upload_{secrets.token_hex(16)}.{suffix}"

    def find(self, name: str) -> Path:
        """The file of an upload's name or of a clip's id. Raises `MediaError`."""
        return self.clip(name) if JOB_ID.fullmatch(name) else self.upload(name)

    def keep_text(self, text: str) -> Path:
        """A file beside the uploads that holds a text, named by it."""
        name = f"upload_{blake2b(text.encode(), digest_size=16).hexdigest()}.txt"
        path = self.folder / "uploads" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path

    def remove_job(self, job_id: str) -> None:
        """Everything a job has made."""
        shutil.rmtree(self.job(job_id), ignore_errors=True)

    def sweep(self, store: Store) -> None:
        """Remove what is left of jobs that were deleted, or came to nothing, while their server went down."""
        for folder in (self.folder / "jobs").glob("video_*"):
            job = store.get(folder.name)
            if job is None or (job.ended and job.status != "completed"):
                shutil.rmtree(folder, ignore_errors=True)

    def used_bytes(self) -> int:
        """Bytes that clips and uploads take."""
        return size_of(self.folder / "jobs") + size_of(self.folder / "uploads")

    def clean(self, store: Store, quota: int) -> int:
        """Make the folder fit ``quota`` bytes as far as it can; what is left over.

        The oldest go first: clips that are no favourites, and uploads that no other job needs.
        """
        used = self.used_bytes()
        for path in self._removable(store) if used > quota else ():
            size = size_of(path)
            if path.is_file():
                path.unlink(missing_ok=True)
            elif store.delete(path.name):
                self.remove_job(path.name)
            else:
                continue
            used -= size
            if used <= quota:
                break
        return max(used - quota, 0)

    def _removable(self, store: Store) -> list[Path]:
        """Files that may go, the oldest first."""
        jobs = store.list(limit=1_000_000)
        found = [(job.ended_at or 0.0, self.job(job.id)) for job in jobs if job.ended and not job.favourite]
        needed = json.dumps([job.request for job in jobs if not job.ended or job.favourite])
        uploads = ((path.stat().st_mtime, path) for path in (self.folder / "uploads").glob("upload_*"))
        found += [
            (sent, path) for sent, path in uploads if sent < time.time() - UPLOAD_STAYS and path.name not in needed
        ]
        return [path for _, path in sorted(found)]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder; what goes while they are counted counts nothing."""
    try:
        if path.is_dir():
            return sum(map(size_of, path.iterdir()))
        return path.stat().st_size
    except FileNotFoundError:
        return 0
