"""The queue: every job in one SQLite file, written so that a process may die at any moment.

A job is ``queued``, then ``in_progress`` while a worker has it, then ``completed``, ``failed`` or ``cancelled``. Only
the transitions below exist, each one transaction; a job that has ended never changes again but for being deleted.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("completed", "failed", "cancelled")
SERVER_DIED = "the server went down with it"  # last words of a worker that could tell nobody
MAX_ATTEMPTS = 2  # a job that takes its worker down this often is failed

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued',
    request TEXT NOT NULL,
    model TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    cancel INTEGER NOT NULL DEFAULT 0,
    phase TEXT NOT NULL DEFAULT '',
    progress REAL NOT NULL DEFAULT 0,
    facts TEXT NOT NULL DEFAULT '{}',
    error TEXT,
    remix_of TEXT,
    favourite INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
"""


@dataclass(frozen=True)
class Job:
    """One clip that was asked for. Times are seconds since the epoch; ``progress`` runs from 0 to 1."""

    number: int
    id: str
    status: Status
    request: Mapping[str, Any]
    model: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    worker: str | None
    cancel: bool
    phase: str
    progress: float
    facts: Mapping[str, Any]  # what the plan and the run say: size, frames, seed, file, expected seconds
    error: str | None
    remix_of: str | None
    favourite: bool

    @property
    def ended(self) -> bool:
        return self.status in ENDED


COLUMNS = ", ".join(field.name for field in fields(Job))


def _job(row: Sequence[Any]) -> Job:
    values = dict(zip((field.name for field in fields(Job)), row, strict=True))
    values |= {name: json.loads(values[name]) for name in ("request", "facts")}
    values |= {name: bool(values[name]) for name in ("cancel", "favourite")}
    return Job(**values)


class Store:
    """Jobs in ``folder/jobs.sqlite``; each thread has a connection of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        with self._write() as connection:
            connection.executescript(SCHEMA)

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.folder / "jobs.sqlite", timeout=30, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
        return connection

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        if connection.in_transaction:
            connection.execute("COMMIT")

    # What clients do ------------------------------------------------------------------------------------------------

    def add(
        self, request: Mapping[str, Any], model: str, job_id: str | None = None, remix_of: str | None = None
    ) -> Job:
        """A new job at the end of the queue."""
        job_id = job_id or new_id()
        with self._write() as connection:
            connection.execute(
                "INSERT INTO jobs (id, request, model, created_at, remix_of) VALUES (?, ?, ?, ?, ?)",
                (job_id, json.dumps(request), model, time.time(), remix_of),
            )
        job = self.get(job_id)
        assert job is not None
        return job

    def get(self, job_id: str) -> Job | None:
        """The job of an id, None for one there is not."""
        row = self._connection().execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return _job(row) if row else None

    def list(
        self, after: str | None = None, limit: int = 20, newest_first: bool = True, status: Status | None = None
    ) -> tuple[Job, ...]:
        """Jobs in order of creation, from behind ``after`` on."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, values = [], []
        if after is not None:
            where.append(f"number {sign} (SELECT number FROM jobs WHERE id = ?)")
            values.append(after)
        if status is not None:
            where.append("status = ?")
            values.append(status)
        clause = f"WHERE {' AND '.join(where)}" if where else ""
        query = f"SELECT {COLUMNS} FROM jobs {clause} ORDER BY number {order} LIMIT ?"
        return tuple(_job(row) for row in self._connection().execute(query, (*values, limit)))

    def counts(self) -> dict[str, int]:
        """Number of jobs of each status."""
        return dict(self._connection().execute("SELECT status, COUNT(*) FROM jobs GROUP BY status"))

    def queued_before(self, job: Job) -> int:
        """Number of queued jobs before this one."""
        query = "SELECT COUNT(*) FROM jobs WHERE status = 'queued' AND number < ?"
        return int(self._connection().execute(query, (job.number,)).fetchone()[0])

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a queued job at once; ask the worker of a running one to stop."""
        with self._write() as connection:
            connection.execute("UPDATE jobs SET cancel = 1 WHERE id = ? AND status = 'in_progress'", (job_id,))
            connection.execute(
                "UPDATE jobs SET status = 'cancelled', ended_at = ? WHERE id = ? AND status = 'queued'",
                (time.time(), job_id),
            )
        return self.get(job_id)

    def favour(self, job_id: str, favourite: bool) -> Job | None:
        """Spare a clip from cleaning, or no longer."""
        with self._write() as connection:
            connection.execute("UPDATE jobs SET favourite = ? WHERE id = ?", (favourite, job_id))
        return self.get(job_id)

    def delete(self, job_id: str) -> bool:
        """Forget a job that has ended; false while it has not."""
        with self._write() as connection:
            ended = f"status IN ({', '.join('?' * len(ENDED))})"
            done = connection.execute(f"DELETE FROM jobs WHERE id = ? AND {ended}", (job_id, *ENDED))
        return done.rowcount == 1

    # What workers do ------------------------------------------------------------------------------------------------

    def claim(self, worker: str) -> Job | None:
        """The oldest queued job, now this worker's; None when there is none."""
        with self._write() as connection:
            row = connection.execute(
                "UPDATE jobs SET status = 'in_progress', worker = ?, attempts = attempts + 1, progress = 0, "
                "phase = '', started_at = ? WHERE number = (SELECT MIN(number) FROM jobs WHERE status = 'queued') "
                f"RETURNING {COLUMNS}",
                (worker, time.time()),
            ).fetchone()
        return _job(row) if row else None

    def is_cancelled(self, job_id: str) -> bool:
        """Whether the worker of a job was asked to stop."""
        row = self._connection().execute("SELECT cancel FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return row is None or bool(row[0])

    def workers(self) -> set[str]:
        """Those that have a job."""
        query = "SELECT DISTINCT worker FROM jobs WHERE status = 'in_progress'"
        return {name for (name,) in self._connection().execute(query)}

    def advance(self, job_id: str, phase: str, progress: float, facts: Mapping[str, Any] | None = None) -> None:
        """Note the progress of a running job; ``facts`` are added to what is known of it."""
        with self._write() as connection:
            connection.execute(
                "UPDATE jobs SET phase = ?, progress = ?, facts = json_patch(facts, ?) "
                "WHERE id = ? AND status = 'in_progress'",
                (phase, progress, json.dumps(facts or {}), job_id),
            )

    def end(
        self, job_id: str, status: Status, error: str | None = None, facts: Mapping[str, Any] | None = None
    ) -> bool:
        """End a running job, once; false when it had ended already."""
        with self._write() as connection:
            done = connection.execute(
                "UPDATE jobs SET status = ?, error = ?, ended_at = ?, facts = json_patch(facts, ?), "
                "progress = CASE ? WHEN 'completed' THEN 1 ELSE progress END WHERE id = ? AND status = 'in_progress'",
                (status, error, time.time(), json.dumps(facts or {}), status, job_id),
            )
        return done.rowcount == 1

    def abandon(self, worker: str, last_words: str) -> tuple[Job, ...]:
        """Put back a dead worker's job: cancelled if that was asked, failed at its second death, else queued again."""
        with self._write() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE status = 'in_progress' AND worker = ?", (worker,)
            ).fetchall()
            for job in map(_job, rows):
                if job.cancel:
                    change, error = "status = 'cancelled', ended_at = :now", None
                elif job.attempts >= MAX_ATTEMPTS:
                    change, error = "status = 'failed', ended_at = :now", f"its worker died twice: {last_words}"
                else:
                    change, error = "status = 'queued'", None
                connection.execute(
                    f"UPDATE jobs SET {change}, error = :error, worker = NULL WHERE id = :id",
                    {"now": time.time(), "error": error, "id": job.id},
                )
        found = [self.get(_job(row).id) for row in rows]
        return tuple(job for job in found if job is not None)


def new_id() -> str:
    """An id that cannot be guessed and is safe as a file name."""
    return f"video_{secrets.token_hex(16)}"
