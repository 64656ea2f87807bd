"""Many clients at once while processes are killed: every job ends once, whole. Slow clients hold nobody up."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from tests.studio_server import MAIN, answers, ask, processes_of, resident_bytes, served, start, wait_for

from ltx_studio.files import Files
from ltx_studio.store import ENDED, Store
from ltx_studio.supervisor import Hub, Supervisor

PROMPT = "a small red ball bounces on a blue background"
SMALLEST: dict[str, Any] = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 2}
FAKE_WORKER = """
import time
from ltx_media.files import replacing
from ltx_studio import worker

def make(self, job):
    folder = self.files.job(job.id)
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(1, 5):
        if self.store.is_cancelled(job.id):
            raise worker.Stopped
        time.sleep(0.01)
        self.store.advance(job.id, "denoise", step / 4)
        worker.say(job.id, "progress", phase="denoise", progress=step / 4, preview="x" * 5000)
    with replacing(folder / "clip.mp4") as temporary:
        temporary.write_text(job.id * 1000)
    return {"file": "clip.mp4"}

worker.Worker.make = make
worker.main()
"""
#: A server without networks: requests are not planned, and a worker writes its job's name.
FAKE_MAIN = f"""
import sys
import ltx_studio.planner, ltx_studio.supervisor
import ltx_studio.guard
ltx_studio.planner.Planner.check = lambda self, request: None
ltx_studio.guard.RateLimit.allows = lambda self, client: True
ltx_studio.supervisor.WORKER = (sys.executable, "-c", {FAKE_WORKER!r})
{MAIN}
"""
#: Notes each end of a job, to see that there is no second one.
NOTE_ENDS = """
CREATE TABLE ends (id TEXT, status TEXT);
CREATE TRIGGER note_ends AFTER UPDATE OF status ON jobs WHEN NEW.status IN ('completed', 'failed', 'cancelled')
BEGIN INSERT INTO ends VALUES (NEW.id, NEW.status); END;
"""


class Load:
    """A server that is killed and started again on one port while clients put jobs into its queue."""

    def __init__(self, data: Path, main: str) -> None:
        self.data, self.main = data, main
        self.address, self.server = start(data, main=main)
        self.port = int(self.address.rpartition(":")[2])
        wait_for(lambda: answers(f"{self.address}/healthz"), 60)
        with sqlite3.connect(data / "jobs.sqlite", timeout=30) as connection:
            connection.executescript(NOTE_ENDS)

    def client(self, jobs: int, pause: float) -> list[str]:
        """Ask for jobs until each was accepted; their ids."""
        accepted: list[str] = []
        while len(accepted) < jobs:
            try:
                accepted.append(ask(self.address, prompt=PROMPT, **SMALLEST, seed=len(accepted))["id"])
            except (OSError, HTTPException) as problem:  # the server is gone for a moment, or asks for patience
                assert getattr(problem, "code", 429) == 429, problem
                time.sleep(0.1)
            time.sleep(random.random() * pause)
        return accepted

    def kill_server(self) -> None:
        """Kill it at once, and start another on the same port."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()
        self.address, self.server = start(self.data, main=self.main, port=self.port)

    def kill_workers(self) -> None:
        for process in processes_of("ltx_studio", f"worker-0\0{self.data}"):
            os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(30)


@pytest.fixture
def load(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Load]:
    random.seed(0)
    running = Load(tmp_path, request.param)
    yield running
    running.close()


def run(load: Load, jobs: int, kills: int, pauses: tuple[float, float]) -> dict[str, str]:
    """20 clients ask for so many jobs each while worker and server are killed in turn; how every job ends."""
    with ThreadPoolExecutor(20) as pool:
        asking = [pool.submit(load.client, jobs, pauses[0]) for _ in range(20)]
        for number in range(kills):
            time.sleep(random.random() * pauses[1])
            load.kill_server() if number % 2 else load.kill_workers()
        accepted = [job for client in asking for job in client.result()]
    store = Store(load.data)
    wait_for(lambda: not {"queued", "in_progress"} & store.counts().keys(), 1200)
    assert len(accepted) == len(set(accepted)) == 20 * jobs
    return {job.id: job.status for job in store.list(limit=10_000)}


def check(load: Load, ended: dict[str, str], accepted: int) -> None:
    """Each job ended once, its files are whole, nothing else is left, the database is sound."""
    with sqlite3.connect(load.data / "jobs.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        noted = connection.execute("SELECT id, status FROM ends").fetchall()
    assert len(ended) >= accepted and set(ended.values()) <= set(ENDED)
    assert sorted(noted) == sorted(ended.items()), "a job ended twice, or never"
    store = Store(load.data)
    for job in store.list(limit=10_000):
        if job.status == "failed":
            assert "died twice" in str(job.error)
    completed = {job for job, status in ended.items() if status == "completed"}
    assert {folder.name for folder in (load.data / "jobs").iterdir()} == completed
    assert len(completed) >= 0.9 * accepted


@pytest.mark.parametrize("load", [FAKE_MAIN], indirect=True)
def test_every_job_ends_once_whatever_is_killed(load: Load) -> None:
    ended = run(load, jobs=3, kills=4, pauses=(0.3, 0.6))
    check(load, ended, accepted=60)
    for job, status in ended.items():
        if status == "completed":
            files = list((load.data / "jobs" / job).iterdir())
            assert [file.name for file in files] == ["clip.mp4"] and files[0].read_text() == job * 1000
    for _ in range(2):  # the server's memory stays as it is
        before = resident_bytes(load.server.pid)
        for number in range(100):
            made = ask(load.address, prompt=PROMPT, seed=number)["id"]
            with urllib.request.urlopen(f"{load.address}/v1/videos?limit=100") as answer:
                assert json.load(answer)["data"][0]["id"] == made
    assert resident_bytes(load.server.pid) - before < 4 * 2**20


def test_what_a_worker_had_that_is_no_more_is_given_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = [store.add({"prompt": name}, "tiny") for name in ("given back", "cancelled")]
    assert [store.claim(f"worker-{number}").id for number in (7, 8)] == [job.id for job in left]
    store.cancel(left[1].id)
    with served(tmp_path, main=FAKE_MAIN):
        wait_for(lambda: all(store.get(job.id).ended for job in left), 30)
    assert [store.get(job.id).status for job in left] == ["completed", "cancelled"]


def test_a_worker_takes_up_what_one_of_its_name_had_and_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = (store.add({"prompt": name}, "tiny") for name in ("its own", "another's"))
    assert store.claim("worker-0").id == first.id and store.claim("worker-1").id == second.id
    line = [sys.executable, "-c", FAKE_WORKER, "worker-0", str(tmp_path)]
    subprocess.run(line, input="\n", text=True, check=True, stdout=subprocess.DEVNULL, timeout=60)  # woken at once
    assert (store.get(first.id).status, store.get(first.id).attempts) == ("completed", 2)
    assert (store.get(second.id).status, store.get(second.id).attempts) == ("in_progress", 1)


def test_a_living_workers_job_is_not_given_away(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = store.add({}, "tiny")
    store.claim("worker-0")
    supervisor = Supervisor(store, Files(tmp_path), Hub(), None, [])
    with (tmp_path / "worker-0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asyncio.run(supervisor._abandon("worker-0", "gone"))
        assert store.get(job.id).status == "in_progress"
    asyncio.run(supervisor._abandon("worker-0", "gone"))
    assert store.get(job.id).status == "queued"


@pytest.mark.slow
@pytest.mark.parametrize("load", [MAIN], indirect=True)
def test_every_clip_of_the_bundled_model_is_made_once(load: Load) -> None:
    from ltx_media.video import probe_video

    ended = run(load, jobs=10, kills=20, pauses=(1.0, 20.0))
    check(load, ended, accepted=200)
    for job, status in ended.items():
        if status == "completed":
            folder = load.data / "jobs" / job
            assert {file.name for file in folder.iterdir()} == {"clip.mp4", "spritesheet.jpg", "thumbnail.webp"}
            assert probe_video(folder / "clip.mp4").frames == 9
    for _ in range(2):  # a server just started imports what its first requests need
        before = resident_bytes(load.server.pid)
        assert len(load.client(20, 0.1)) == 20
        wait_for(lambda: not {"queued", "in_progress"} & Store(load.data).counts().keys(), 300)
    print(f"{len(ended)} jobs, {list(ended.values()).count('failed')} failed, {before / 1e6:.1f} MB")
    assert resident_bytes(load.server.pid) - before < 4 * 2**20


def test_slow_clients_hold_nobody_up(tmp_path: Path) -> None:
    with served(tmp_path, main=FAKE_MAIN) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(100)]
        stop = threading.Event()
        head = f"POST /v1/uploads HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 9999\r\n"
        form = 'Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="f"'
        begun = (head + form).encode()
        for number, connection in enumerate(slow):
            connection.sendall(begun if number % 2 else b"GET / HTT")

        def drip() -> None:
            while not stop.wait(1):
                for connection in slow:
                    connection.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            made = [ask(address, prompt=PROMPT, seed=number)["id"] for number in range(30)]
            store = Store(tmp_path)
            wait_for(lambda: all(store.get(job).ended for job in made), 30)
            for job in made:
                with urllib.request.urlopen(f"{address}/v1/videos/{job}/content", timeout=10) as answer:
                    assert answer.read() == (job * 1000).encode()
        finally:
            stop.set()
            dripping.join()
            for connection in slow:
                connection.close()
