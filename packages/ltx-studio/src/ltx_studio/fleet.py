"""In the place of a worker: has clips of the studio made on a Ray cluster, which needs no folder of the server's."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ltx_core.errors import LtxError
from ltx_core.parallel.executor import Cluster, Tell, workers
from ltx_media.files import replacing
from ltx_studio.files import Files
from ltx_studio.making import failures_of_jobs, make_clip
from ltx_studio.requests import with_files
from ltx_studio.store import Job
from ltx_studio.worker import Worker, main, say


@dataclass(frozen=True)
class Asked:
    """A job, and the files it names by their places in the data folder."""

    job: Job
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Made:
    """Facts about a clip, events of its making, and the files of its folder."""

    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    files: Mapping[str, bytes]


@dataclass
class ClipMaker:
    """Makes clips on a machine of the cluster, each in a data folder of its own, on networks that stay."""

    defaults: Mapping[str, Any]
    ledgers: dict[str, Any] = field(default_factory=dict)

    def __call__(self, asked: Asked, tell: Tell) -> Made:
        notes: list[str] = []
        known: dict[str, Any] = {}

        def told(kind: str, facts: Mapping[str, Any]) -> None:
            if kind == "note":
                notes.append(facts["text"])
                return
            known[kind] = facts
            tell(json.dumps(known))

        with TemporaryDirectory(prefix="ltx-") as folder, failures_of_jobs():
            for name, content in asked.files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            files = Files(Path(folder))
            facts = make_clip(asked.job, files, self.defaults, self.ledgers, told, keep_stage=False)
            made = {path.name: path.read_bytes() for path in files.job(asked.job.id).iterdir() if path.is_file()}
        return Made(facts, tuple(notes), made)


class Fleet(Worker):
    """Gives the jobs of a store to makers on a cluster and keeps what they make."""

    def __init__(self, name: str, data: Path, model: str | None, device: str | None = None) -> None:
        """``device`` is ``ray:WORKERS:ADDRESS``."""
        super().__init__(name, data, model)
        _, count, address = (device or "ray:0:").split(":", 2)
        self.cluster = Cluster(address, int(count))

    def run(self) -> None:
        """Work until the server is gone."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        self.give_back()
        with workers(partial(ClipMaker, self.defaults), self.cluster, self.seen) as run:
            say("", "ready")
            for asked, made in run(self.jobs()):
                self.end(asked.job, made if isinstance(made, LtxError) else self.keep(asked.job, made))

    def jobs(self) -> Iterator[Asked | None]:
        """The jobs, None where there is none now, until the server is gone."""
        while self.is_served():
            job = self.claim()
            try:
                asked = None if job is None else Asked(job, self.files_of(job))
            except LtxError as error:
                assert job is not None
                self.end(job, error)
                continue
            yield asked

    def is_served(self) -> bool:
        """Whether the server is there; what it has said is passed over, since jobs are looked for all the time."""
        while select.select([sys.stdin.fileno()], [], [], 0)[0]:
            if not os.read(sys.stdin.fileno(), 2**16):
                return False
        return True

    def files_of(self, job: Job) -> dict[str, bytes]:
        """The files a request names. Raises `MediaError` for one that is gone."""
        names = [key["image"] for scene in job.request.get("storyboard", ()) for key in scene["keyframes"]]

        def noted(_: str, name: str) -> str:
            names.append(name)
            return name

        with_files(job.request, noted)
        paths = [self.files.find(name) for name in names]
        return {str(path.relative_to(self.files.folder)): path.read_bytes() for path in paths}

    def seen(self, worker: int, asked: Asked | None, far: str) -> bool:
        """Keep and tell how far a job is; whether it is to stop."""
        if asked is None or not far:
            return False
        known = json.loads(far)
        progress = known.get("progress", {"phase": "text", "progress": 0.0})
        self.store.advance(asked.job.id, progress["phase"], progress["progress"], known.get("planned"))
        self.tell(asked.job, "progress", progress)
        return self.store.is_cancelled(asked.job.id)

    def keep(self, job: Job, made: Made) -> Mapping[str, Any]:
        """Write what was made, each file whole or not at all; what is known of the clip."""
        for note in made.notes:
            self.tell(job, "note", {"text": note})
        for name, content in made.files.items():
            with replacing(self.files.job(job.id) / name) as temporary:
                temporary.write_bytes(content)
        return made.facts


if __name__ == "__main__":
    main(Fleet)
