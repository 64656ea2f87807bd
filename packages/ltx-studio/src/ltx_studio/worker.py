"""A worker process: keeps the networks of one device, makes one clip after the other, tells each step on its output.

It sleeps on its standard input; a line there means that there may be work, its end that the server is gone. So an idle
worker uses no time, and one without a server ends after its clip.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx_core.errors import LtxError
from ltx_core.parallel.executor import Stopped
from ltx_studio.files import Files
from ltx_studio.making import failures_of_jobs, make_clip
from ltx_studio.store import SERVER_DIED, Job, Status, Store


def say(job_id: str, kind: str, **facts: Any) -> None:
    """One event as a line on standard output."""
    with contextlib.suppress(BrokenPipeError):  # the server is gone; the clip is finished all the same
        sys.stdout.write(json.dumps({"id": job_id, "event": kind, **facts}) + "\n")
        sys.stdout.flush()


class Worker:
    """Makes the jobs of a store with models that stay in memory between them."""

    def __init__(self, name: str, data: Path, model: str | None, device: str | None = None) -> None:
        self.name, self.store, self.files = name, Store(data), Files(data)
        self.defaults = {key: value for key, value in (("model", model), ("device", device)) if value is not None}
        self.ledgers: dict[str, Any] = {}
        self.parent = os.getppid()

    def run(self) -> None:
        """Work until the server is gone."""
        self.give_back()
        say("", "ready")
        for _ in sys.stdin:
            self.drain()

    def give_back(self) -> None:
        """Give back the job that a dead worker of this name left: no other of it lives."""
        for job in self.store.abandon(self.name, SERVER_DIED):
            if job.ended:
                self.files.remove_job(job.id)
            say(job.id, job.status, **({"error": job.error} if job.error else {}))

    def claim(self) -> Job | None:
        """The next job, as long as the server is there and has one."""
        job = self.store.claim(self.name) if os.getppid() == self.parent else None
        if job is not None:
            say(job.id, "started")
        return job

    def drain(self) -> None:
        """Make every queued job."""
        while (job := self.claim()) is not None:
            try:
                with failures_of_jobs():
                    outcome: Mapping[str, Any] | LtxError = self.make(job)
            except LtxError as error:
                outcome = error
            self.end(job, outcome)

    def make(self, job: Job) -> Mapping[str, Any]:
        """Run one job to its files; what is known of it afterwards."""

        def tell(kind: str, facts: Mapping[str, Any]) -> None:
            if self.store.is_cancelled(job.id):
                raise Stopped
            self.tell(job, kind, facts)

        return make_clip(job, self.files, self.defaults, self.ledgers, tell)

    def tell(self, job: Job, kind: str, facts: Mapping[str, Any]) -> None:
        """Keep what is known of a running job, and tell the server."""
        if kind == "planned":
            self.store.advance(job.id, "text", 0.0, facts)
            return
        if kind == "progress":
            self.store.advance(job.id, facts["phase"], facts["progress"])
            facts = {**facts, "progress": round(facts["progress"], 4)}
        say(job.id, kind, **facts)

    def end(self, job: Job, outcome: Mapping[str, Any] | LtxError) -> None:
        """End a job, once."""
        status: Status = "completed"
        if isinstance(outcome, LtxError):
            status = "cancelled" if isinstance(outcome, Stopped) else "failed"
            self.files.remove_job(job.id)
        error = str(outcome) if status == "failed" else None
        facts = None if isinstance(outcome, LtxError) else outcome
        if self.store.end(job.id, status, error, facts):
            say(job.id, status, **({"error": error} if error else {}))


def main(kind: type[Worker] = Worker) -> None:
    """``python -m ltx_studio.worker NAME DATA [MODEL] [DEVICE]``: one worker, held to be the only one of its name."""
    import fcntl

    name, data = sys.argv[1], Path(sys.argv[2])
    model, device = (*(argument or None for argument in sys.argv[3:5]), None, None)[:2]
    data.mkdir(parents=True, exist_ok=True)
    with (data / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker of a server that died may still finish its clip
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        kind(name, data, model, device).run()


if __name__ == "__main__":
    main()
