"""A running `ltx serve`, for tests of the whole service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")
MAIN = "from ltx_pipelines.cli import main; main()"


def start(data: Path, *options: str, main: str = MAIN, port: int = 0) -> tuple[str, subprocess.Popen[str]]:
    """A server that has begun to listen, and its address."""
    line = [sys.executable, "-c", main, "serve", "--port", str(port), "--data", str(data), "--no-browser", *options]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    return process.stdout.readline().split(" at ")[1].split()[0], process


@contextmanager
def served(data: Path, *options: str, main: str = MAIN) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server that answers, for as long as the block."""
    address, process = start(data, *options, main=main)
    try:
        wait_for(lambda: answers(f"{address}/healthz"), 60)
        yield address, process
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether there is a good answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, key: str = "", **request: Any) -> dict[str, Any]:
    """Put a clip into the queue."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    asked = urllib.request.Request(f"{address}/v1/videos", json.dumps(request).encode(), headers)
    with urllib.request.urlopen(asked, timeout=90) as answer:
        answered: dict[str, Any] = json.load(answer)
    return answered


def wait_for(what: Callable[[], Found], seconds: float) -> Found:
    """What comes to be true within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing came in {seconds} s")


def processes_of(*words: str) -> list[int]:
    """Processes whose command line holds all these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in command for word in words):
            found.append(int(folder.name))
    return found


def resident_bytes(process: int) -> int:
    """Memory of a process that is its own or shared."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
