"""One case after another in one process: a target reads a damaged file and must succeed or say in one line why not.

Anything else is a violation: another error, several lines, more memory than `MEMORY`, more time than `SECONDS`, a
socket. Targets run where a file lies; what they write, they write beside it.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import LtxError
from ltx_trainer.config_file import InvalidConfig

CASES = Path(__file__).parent / "cases"
MEMORY = 2 * 2**30  # bytes of address space that a case may add
SECONDS = 20  # of the processor
LONGEST_LINE = 4000
LISTENER = ("127.0.0.1", 47123)  # an address among what `mutate` writes

Mutator = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """What reads files: ``read`` gets the path of one, ``seeds`` are whole ones by name, ``mutate`` damages them."""

    name: str
    read: Callable[[Path], Any]
    seeds: Callable[[], dict[str, bytes]]
    mutate: Mutator

    def case(self, number: int) -> tuple[str, bytes]:
        """The name and content of the case of a number."""
        rng = random.Random(f"{self.name} {number}")
        seeds = self.seeds()
        name = rng.choice(sorted(seeds))
        return name, self.mutate(seeds[name], rng)


class Violation(AssertionError):
    """A case that got past."""


@contextmanager
def bounded() -> Iterator[None]:
    """Inside, memory and time are limited, and whoever opens a connection is caught."""

    def too_long(number: int, frame: Any) -> None:
        raise Violation(f"took more than {SECONDS} s of the processor")

    def connect(*arguments: Any) -> None:
        raise Violation(f"asked the network: {arguments[1:]}")

    before = resource.getrlimit(resource.RLIMIT_AS)
    sizes = Path("/proc/self/statm")
    used = int(sizes.read_text().split()[0]) * resource.getpagesize() if sizes.exists() else None
    alarm, real = signal.signal(signal.SIGPROF, too_long), socket.socket.connect
    if used is not None:  # where the system tells what a process has
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(30 * SECONDS, exit=True)
    socket.socket.connect = connect  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        socket.socket.connect = real  # type: ignore[method-assign]
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, alarm)
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(target: Target, path: Path) -> bool:
    """Let a target read a file; whether it succeeded. Raises `Violation`."""
    try:
        with bounded():
            target.read(path)
    except LtxError as error:
        line = str(error)
        try:
            line.encode()
        except UnicodeEncodeError as wrong:
            raise Violation(f"a line that cannot be printed: {line!r:.300}") from wrong
        lines = line.split("\n") if isinstance(error, InvalidConfig) else [line]  # a line for each problem
        if any("\n" in one for one in lines) or not line.strip() or len(line) > LONGEST_LINE:
            raise Violation(f"not one line but {len(line)} characters: {line!r:.300}") from error
        return False
    except Violation:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Violation(f"{type(error).__name__}: {error!s:.300}") from error
    return True


def run_cases(target: Target, folder: Path, numbers: range) -> tuple[int, list[str]]:
    """Run the cases of some numbers; how many were read, and a line for every violation, whose file is kept."""
    read, found = 0, []
    for number in numbers:
        name, data = target.case(number)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        try:
            read += check(target, path)
        except Violation as violation:
            kept = folder / f"violation-{hashlib.sha256(data).hexdigest()[:12]}-{name}"
            kept.write_bytes(data)
            cause = violation.__cause__
            while cause is not None and cause.__traceback__ is not None and cause.__cause__ is not None:
                cause = cause.__cause__
            where = ""
            if cause is not None and (trace := cause.__traceback__) is not None:
                while trace.tb_next is not None:
                    trace = trace.tb_next
                where = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            found.append(f"{target.name} {number} ({kept.name}): {violation}{where}")
    return read, found


def _peak() -> int:
    """Bytes of memory that the process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """``python -m tests.fuzz.harness COUNT [TARGET ...]``: so many cases of each target, a line per violation.

    COUNT may be a range. What cases name listens meanwhile, and must not be asked.
    """
    import tempfile
    from contextlib import ExitStack

    from tests.fuzz.targets import TARGETS

    logging.disable(logging.WARNING)  # a line of each of very many files
    first, _, last = sys.argv[1].rpartition("-")
    numbers = range(int(first or 0), int(last))
    folder = Path(tempfile.mkdtemp(prefix="ltx-fuzz-"))
    with ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(LISTENER))
            server.setblocking(False)
        except OSError as error:  # a process without a network
            sys.stdout.write(f"nothing listens: {error}\n")
            server = None
        for name in sys.argv[2:] or list(TARGETS):
            began = time.process_time()
            read, found = run_cases(TARGETS[name], folder / name, numbers)
            took = f"{time.process_time() - began:.0f} s of the processor, peak {_peak() / 2**20:.0f} MiB"
            sys.stdout.write(f"{name}: {len(numbers)} cases, {read} read, {len(found)} violations, {took}\n")
            sys.stdout.writelines(f"  {line}\n" for line in found)
            sys.stdout.flush()
        if server is not None:
            try:
                server.accept()
                sys.stdout.write("  the listener was asked\n")
            except BlockingIOError:
                sys.stdout.write("the listener was silent\n")


if __name__ == "__main__":
    main()
