"""Exit of a command: 0, 1 with one line on standard error, 2 for a wrong line, 130 when stopped by the user."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ltx_core.errors import LtxError
from ltx_pipelines.planning.schema import UsageError

STOPPED = 130
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
FAILED_ALLOCATION = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Unable to allocate")
NEEDED = "accelerate av huggingface_hub numpy pydantic safetensors tensorboard tokenizers torch transformers"
DISTRIBUTION_OF = {"PIL": "pillow", "yaml": "pyyaml"} | {name: name for name in NEEDED.split()}  # names on the index


def exit_code(command: Callable[[], None], debug: bool = False, as_json: bool = False) -> int:
    """Run a command; what it raises becomes its exit code and one line, with ``debug`` after the traceback.

    With ``as_json`` it is an event too.
    """
    open_standard_streams()
    try:
        with signals_as_interrupts():
            command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        _say("stopped: nothing was left half-written")
        return STOPPED
    except BrokenPipeError:  # the reader of our output went away; what Python still holds for it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        if as_json:
            with suppress(BrokenPipeError):
                print(json.dumps({"event": "error", "message": describe(error)}), flush=True)
        _say(describe(error))
        return 2 if isinstance(error, UsageError) else 1
    return 0


def open_standard_streams() -> None:
    """Let those that are closed lead nowhere, or what is said would go into the file that takes their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Inside, being told to end and losing the terminal raise `KeyboardInterrupt`, where they would have killed."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    changed = [kind for name in names if main and signal.getsignal(kind := getattr(signal, name)) is signal.SIG_DFL]
    for kind in changed:
        signal.signal(kind, signal.default_int_handler)
    try:
        yield
    finally:
        for kind in changed:
            signal.signal(kind, signal.SIG_DFL)


def describe(error: BaseException) -> str:
    """One line for the user: what happened and what would help."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LtxError):
        return text
    if type(error).__name__ in OUT_OF_MEMORY or any(said in text for said in FAILED_ALLOCATION):
        return f"out of memory: {text}; try --policy sequential, a smaller size, or `ltx plan` to see what is needed"
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return f"disk full: no space left for {error.filename or 'the output'}"
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else text
    if isinstance(error, ModuleNotFoundError) and error.name:
        return missing(error.name.partition(".")[0])
    return f"internal error: {type(error).__name__}: {text} (run again with --debug for the traceback)"


def missing(package: str) -> str:
    """One line on a Python package that is not installed, and on how to install it."""
    if package in DISTRIBUTION_OF:
        build = ", or the build for your GPU from pytorch.org" if package == "torch" else ""
        return f"{package} is not installed: `pip install {DISTRIBUTION_OF[package]}`{build}"
    if package.startswith("ltx_"):
        return f"{package} is not installed: run `pip install .` in a clone of LTX, which brings all its packages"
    return f"the Python package {package} is not installed"


def _say(line: str) -> None:
    sys.stderr.write(f"ltx: {line}\n")
    sys.stderr.flush()
