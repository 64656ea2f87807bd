"""Starts a command once for each device, as torchrun would, and ends all when one ends badly."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import IO

from ltx_core.errors import LtxError

POLL = 0.05  # seconds
PORTS = range(20_000, 32_000)  # below what systems give away by themselves
GRACE = 5.0  # seconds between asking a process to end and ending it


def launch(command: Sequence[str], count: int) -> int:
    """Run ``command`` in ``count`` processes that find each other; the first one's exit code when all end well.

    The first has this process's terminal. When one fails the others are ended within seconds. Raises ``LtxError`` that
    says how it ended, and what it said last, unless it is the first, whose exit code is returned.
    """
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1)]
        port = free_port()
        processes = [
            subprocess.Popen([*command], env=environment(rank, count, port), stderr=said[rank - 1] if rank else None)
            for rank in range(count)
        ]
        try:
            return watch(processes, said)
        finally:
            end(processes)


def watch(processes: Sequence[subprocess.Popen[bytes]], said: Sequence[IO[bytes]]) -> int:
    """Wait until all have ended or one has failed."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            rank, code = failed[0], codes[failed[0]] or 1
            if rank or code < 0:
                ended = f"device {rank} ended {how(code)}"
                raise LtxError(ended + (last_line(said[rank - 1]) if rank else ""))
            return code
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_launched() -> bool:
    """Whether this is one of the processes of a run."""
    return "RANK" in os.environ


def world_size() -> int:
    """The number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def local_size() -> int:
    """Processes of the run on each machine, whose links are fast; many where nothing says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or sys.maxsize)


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables by which the processes of a run find each other."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {**os.environ, **{name: str(value) for name, value in own.items()}, "MASTER_ADDR": "127.0.0.1"}


def free_port() -> int:
    """A port that nobody listens on. Raises ``LtxError`` where there is none.

    Processes bind it seconds later, so it is none of those that systems give to connections meanwhile.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise LtxError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free")


def how(code: int) -> str:
    return f"with exit code {code}" if code > 0 else f"by signal {-code}"


def last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""
