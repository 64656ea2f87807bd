"""SIGKILL at random moments: work in processes of its own is killed, begun again, and ends as if never hurt."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 300.0  # seconds
READY = "ready"


def processes() -> Any:
    """Where to start processes that have everything imported."""
    context = multiprocessing.get_context("forkserver")
    modules = ["tests.fuzz.kills", "ltx_pipelines.cli.job", "ltx_pipelines.distilled", "ltx_trainer.processing.dataset"]
    context.set_forkserver_preload([*modules, "transformers", "safetensors.torch"])
    return context


def command(line: Sequence[str], ready: Path) -> None:
    """Run a line of `ltx`; ``ready`` is there once it has begun."""
    import torch

    from ltx_pipelines.cli.app import run

    torch.set_num_threads(1)
    ready.touch()
    if run(list(line)):
        raise SystemExit(1)


def dataset(table: Path, output: Path, ready: Path) -> None:
    """Make the records of a table; ``ready`` is there once it has begun."""
    import torch

    from ltx_trainer.model_files import ModelFiles
    from ltx_trainer.processing.dataset import process_dataset
    from ltx_trainer.processing.options import ProcessingOptions
    from tests.golden.case import TINY_CHECKPOINT

    torch.set_num_threads(1)
    models = ModelFiles.of(TINY_CHECKPOINT / "ltx-2-tiny.safetensors", TINY_CHECKPOINT / "gemma-3-tiny")
    ready.touch()
    process_dataset(table, models, "96x64x17", ProcessingOptions(workers=0), output)


def whole(target: Callable[..., None], arguments: Sequence[Any], folder: Path) -> float:
    """Run to the end; how many seconds it took from where it was ready."""
    process, started = _start(target, arguments, folder)
    process.join(PATIENCE)
    assert process.exitcode == 0
    return time.monotonic() - started


def killed(target: Callable[..., None], arguments: Sequence[Any], folder: Path, seconds: float) -> bool:
    """Run for so long at most; whether it was killed before its end."""
    process, _ = _start(target, arguments, folder)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode)


def _start(target: Callable[..., None], arguments: Sequence[Any], folder: Path) -> tuple[Any, float]:
    ready = folder / f"{READY}-{random.getrandbits(32)}"
    process = processes().Process(target=target, args=(*arguments, ready))
    process.start()
    end = time.monotonic() + PATIENCE
    while not ready.exists() and process.is_alive():
        assert time.monotonic() < end
        time.sleep(0.005)
    ready.unlink(missing_ok=True)
    return process, time.monotonic()
