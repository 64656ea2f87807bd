"""Keeps the workers alive: starts them, wakes them, passes on what they say, starts those again that die."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ltx_studio.files import Files
from ltx_studio.store import SERVER_DIED, Store

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "ltx_studio.worker")
FLEET = (sys.executable, "-m", "ltx_studio.fleet")  # of devices that are clusters, ``ray:WORKERS:ADDRESS``
LAST_WORDS = 5  # lines kept of what a worker says on its standard error
RESTART_AFTER = 0.5  # seconds


@dataclass
class Hub:
    """Passes events of jobs to whoever listens. A listener that does not keep up loses the oldest events."""

    listeners: dict[str, set[asyncio.Queue[dict[str, Any]]]] = field(default_factory=dict)

    def publish(self, event: dict[str, Any]) -> None:
        for queue in self.listeners.get(event["id"], set()) | self.listeners.get("*", set()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    @contextlib.contextmanager
    def listening(self, job_id: str) -> Any:
        """A queue of the events of one job, or of all with ``*``."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(64)
        self.listeners.setdefault(job_id, set()).add(queue)
        try:
            yield queue
        finally:
            self.listeners[job_id].discard(queue)
            if not self.listeners[job_id]:
                del self.listeners[job_id]


class Supervisor:
    """The worker processes of a server."""

    def __init__(self, store: Store, files: Files, hub: Hub, model: str | None, devices: list[str | None]) -> None:
        self.store, self.files, self.hub, self.model = store, files, hub, model
        self.devices = devices
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.closing = False

    def start(self) -> None:
        """Start every worker, and go on with what a server before has left."""
        names = {f"worker-{index}": device for index, device in enumerate(self.devices)}
        self.tasks = [asyncio.create_task(self._keep(name, device)) for name, device in names.items()]
        self.tasks.append(asyncio.create_task(self._inherit(self.store.workers() - names.keys())))

    def wake(self) -> None:
        """Say that there may be work."""
        for process in self.processes.values():
            if process.stdin is not None and process.returncode is None:
                with contextlib.suppress(ConnectionError, RuntimeError):
                    process.stdin.write(b"\n")

    async def stop(self) -> None:
        """End the workers; a clip that is being made is taken up by the next server."""
        self.closing = True
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _keep(self, name: str, device: str | None) -> None:
        failures = 0  # to start, in a row
        while not self.closing:
            command = FLEET if device is not None and device.startswith("ray:") else WORKER
            process = await asyncio.create_subprocess_exec(
                *(*command, name, str(self.files.folder), self.model or "", device or ""),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=2**22,
            )
            self.processes[name] = process
            words: deque[str] = deque(maxlen=LAST_WORDS)
            was_ready, _ = await asyncio.gather(self._listen(name, process), self._overhear(process, words))
            code = await process.wait()
            if self.closing:
                return
            last = " / ".join(words) or f"exit code {code}"
            logger.warning("%s ended (%s), it is started again", name, last)
            await self._abandon(name, last[-500:])
            failures = 0 if was_ready else failures + 1
            await asyncio.sleep(RESTART_AFTER * 2 ** min(failures, 6))

    async def _abandon(self, name: str, last_words: str) -> None:
        """Give back what a worker had, unless one of its name is alive: of a server before, it may finish its clip."""
        with (self.files.folder / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for job in await asyncio.to_thread(self.store.abandon, name, last_words):
                if job.ended:
                    self.files.remove_job(job.id)
                self.hub.publish({"id": job.id, "event": job.status, "error": job.error})

    async def _inherit(self, names: set[str]) -> None:
        """Give back what workers had that a server before has left, when they are gone, and that run no more."""
        while names := names & await asyncio.to_thread(self.store.workers):
            for name in names:
                await self._abandon(name, SERVER_DIED)
            self.wake()
            await asyncio.sleep(1)

    async def _listen(self, name: str, process: asyncio.subprocess.Process) -> bool:
        """Pass on what a worker says until it ends; whether it came to be ready."""
        assert process.stdout is not None
        was_ready = False
        async for line in process.stdout:
            with contextlib.suppress(ValueError, KeyError):
                event = json.loads(line)
                if event["event"] == "ready":
                    was_ready = True
                    self.wake()
                else:
                    self.hub.publish(event)
        return was_ready

    async def _overhear(self, process: asyncio.subprocess.Process, words: deque[str]) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            if text := line.decode(errors="replace").strip():
                words.append(text)
