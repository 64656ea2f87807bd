"""Many jobs on workers that keep what they load: one in this process, or as many as a Ray cluster holds.

A worker is made where it works, by a function that can be sent to other machines. It is called with a job, which can
be sent there too, and with a function that it may tell how far it is.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

from ltx_core.errors import ConfigError, LtxError, check_least

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")
Tell = Callable[[str], None]
Work = Callable[[Job, Tell], Result]
Run = Callable[[Iterable[Job | None]], Iterator[tuple[Job, Result | LtxError]]]
#: A worker's number, its job (None between two), how far it is; whether the job is to stop.
Seen = Callable[[int, Any, str], bool | None]

ATTEMPTS = 3  # workers that a job may take down, and workers in a row that may die before they are ready
LOOK = 1.0  # seconds between two looks at how far workers are
END = object()  # of jobs


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and how many workers to have there; by default one per GPU, else one per machine.

    ``address`` is Ray's: empty for that of ``RAY_ADDRESS`` or of this machine, else one that is started here.
    """

    address: str = ""
    workers: int = 0

    def __post_init__(self) -> None:
        check_least("workers", self.workers, 0)


@contextmanager
def workers(
    make: Callable[[], Work[Job, Result]], cluster: Cluster | None = None, seen: Seen | None = None
) -> Iterator[Run[Job, Result]]:
    """A function that runs jobs, as often as it is called, on workers that live inside this block.

    It gives every job with its result, or with the error that it ended in; on a cluster in the order in which they end.
    There a job may be None, which says that more may come later, and a job whose worker dies is given to another one.
    Raises what a worker raises besides `LtxError`, and `LtxError` where no worker can be started.
    """
    if cluster is None:
        work = make()
        yield lambda jobs: ((job, attempt(work, job, lambda words: None)) for job in jobs if job is not None)
    else:
        with connected(cluster.address):
            crew = Crew(make, cluster.workers, seen)
            try:
                yield crew.run
            finally:
                crew.end()


def attempt(work: Work[Job, Result], job: Job, tell: Tell) -> Result | LtxError:
    """The result of a job, or the error that it ended in."""
    try:
        return work(job, tell)
    except LtxError as error:
        return error


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connected to a cluster inside, unless this process is already. Raises `ConfigError` where that fails."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what it would print on standard output, which is ours
    check_installed()
    import ray

    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"at {address}" if address else "here"
        raise ConfigError(f"no Ray cluster can be used {where}: {error}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has put its own
    try:
        yield
    finally:
        ray.shutdown()


def check_installed() -> None:
    """Raises `ConfigError` where there is no Ray."""
    if find_spec("ray") is None:
        raise ConfigError('Ray is not installed: `pip install ".[ray]"` in a clone of LTX')


class Stopped(LtxError):
    """A job was stopped by who follows it."""

    def __init__(self, message: str = "it was stopped") -> None:
        super().__init__(message)


class Actor:
    """A worker on a cluster. One of its threads works, another answers how far that is."""

    def __init__(self, make: Callable[[], Work[Any, Any]]) -> None:
        self.work, self.words, self.number, self.stopped = make(), "", 0, 0

    def ready(self) -> str:
        return f"process {os.getpid()} on {socket.gethostname()}"

    def run(self, job: Any, number: int) -> Any:
        self.words, self.number = "", number
        return attempt(self.work, job, self.tell)

    def tell(self, words: str) -> None:
        self.words = words
        if self.stopped == self.number:
            raise Stopped

    def stop(self, number: int) -> None:
        self.stopped = number

    def said(self) -> str:
        return self.words


@dataclass
class Task:
    """A job, and how many workers died at it."""

    job: Any
    deaths: int = 0


@dataclass(frozen=True)
class Call:
    """The present work of a worker; with no task it is starting."""

    worker: int
    task: Task | None = None
    number: int = 0


class Crew:
    """The workers of one run on the cluster that this process is connected to. One that dies is replaced."""

    def __init__(self, make: Callable[[], Work[Any, Any]], workers: int, seen: Seen | None) -> None:
        import ray

        self.ray, self.make, self.seen = ray, make, seen
        count, each = plan_workers(workers)
        self.kind = ray.remote(Actor).options(max_concurrency=2, **each)
        self.actors: dict[int, Any] = {}
        self.calls: dict[Any, Call] = {}  # by the reference of what they will return
        self.waiting: deque[Task] = deque()
        self.free: list[int] = []
        self.given = 0
        self.failures = 0  # to start, in a row
        for worker in range(count):
            self._start(worker)

    def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Every job with what came of it."""
        ahead, looked = iter(jobs), time.monotonic()
        while self._give(ahead):
            if not self.calls:
                time.sleep(LOOK)
                continue
            ended, _ = self.ray.wait(list(self.calls), timeout=LOOK)
            yield from filter(None, map(self._end, ended))
            if self.seen and time.monotonic() - looked > LOOK:
                self._look(self.seen)
                looked = time.monotonic()

    def end(self) -> None:
        for actor in self.actors.values():
            self.ray.kill(actor)

    def _start(self, worker: int) -> None:
        self.actors[worker] = self.kind.remote(self.make)
        self.calls[self.actors[worker].ready.remote()] = Call(worker)

    def _give(self, ahead: Iterator[Any]) -> bool:
        """Give jobs to workers that have none; whether any is not done yet, or may come."""
        while self.free:
            if not self.waiting:
                if (job := next(ahead, END)) is END:
                    return any(call.task for call in self.calls.values())
                if job is None:
                    break
                self.waiting.append(Task(job))
            worker, task = self.free.pop(), self.waiting.popleft()
            self.given += 1
            self.calls[self.actors[worker].run.remote(task.job, self.given)] = Call(worker, task, self.given)
            self._show(worker, task.job, "")
        return True

    def _end(self, reference: Any) -> tuple[Any, Any] | None:
        """Outcome of a call; None where it ended no job."""
        call = self.calls.pop(reference)
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            return self._replace(call, str(error))
        self.failures = 0
        self.free.append(call.worker)
        self._show(call.worker, None, result if call.task is None else "")
        return None if call.task is None else (call.task.job, result)

    def _replace(self, call: Call, problem: str) -> tuple[Any, Any] | None:
        """Put a new worker in the place of a dead one and its job back, unless too many died at it."""
        lines = problem.strip().splitlines()
        self.ray.kill(self.actors[call.worker])  # it may only be out of reach
        self._start(call.worker)
        if call.task is None:
            self.failures += 1
            if self.failures == ATTEMPTS:
                raise LtxError(f"no worker can be started: {lines[-1]}")
            return None
        logger.warning("worker %d died and is replaced: %s", call.worker, lines[0])
        call.task.deaths += 1
        if call.task.deaths == ATTEMPTS:
            return call.task.job, LtxError(f"{ATTEMPTS} workers died at it: {lines[0]}")
        self.waiting.appendleft(call.task)
        return None

    def _look(self, seen: Seen) -> None:
        """Ask how far workers are; those that do not answer are left out."""
        busy = [call for call in self.calls.values() if call.task is not None]
        asked = {self.actors[call.worker].said.remote(): call for call in busy}
        for reference in self.ray.wait(list(asked), num_returns=len(asked), timeout=LOOK)[0] if asked else ():
            call = asked[reference]
            with suppress(self.ray.exceptions.RayError):
                words = self.ray.get(reference)
                if seen(call.worker, call.task and call.task.job, words):
                    self.actors[call.worker].stop.remote(call.number)

    def _show(self, worker: int, job: Any, words: str) -> None:
        if self.seen is not None:
            self.seen(worker, job, words)


def plan_workers(workers: int) -> tuple[int, dict[str, int]]:
    """Number of workers, and what each takes of its machine: a GPU where there are any, else its part of the cores."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if gpus := int(sum(one.get("GPU", 0) for one in machines)):
        return workers or gpus, {"num_cpus": 1, "num_gpus": 1}
    count = workers or max(len(machines), 1)
    cores = min((one["CPU"] for one in machines), default=1)
    return count, {"num_cpus": max(1, int(cores / math.ceil(count / max(len(machines), 1))))}
