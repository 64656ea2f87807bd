"""Workers for tests of the executor, in a module that is quick to import: a cluster does so in every process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError


class Squares:
    """A worker that refuses odd jobs and is killed at some: where a file of that name is, which goes, and at one."""

    def __init__(self, marks: Path, always: int) -> None:
        self.marks, self.always = marks, always

    def __call__(self, job: int, tell: Callable[[str], None]) -> tuple[int, int]:
        mark = self.marks / str(job)
        if job == self.always or mark.exists():
            mark.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if job % 2:
            raise ConfigError(f"{job} is odd")
        return job**2, os.getpid()


def unable() -> Any:
    raise RuntimeError("no weights on this machine")


def faulty() -> Callable[[int, Callable[[str], None]], None]:
    def work(job: int, tell: Callable[[str], None]) -> None:
        raise ZeroDivisionError("a mistake in the program")

    return work
