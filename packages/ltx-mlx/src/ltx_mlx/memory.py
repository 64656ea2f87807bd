"""Limits of MLX's memory. On Apple silicon one memory serves all: what is wired cannot be paged out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import torch

from ltx_core.model.common import memory

logger = logging.getLogger(__name__)

CACHE_SHARE = 0.1  # of the recommended working set that freed buffers may keep
CROWDED = 0.9  # share of it from which weights alone get a warning


def recommended_bytes() -> int | None:
    """The working set the system recommends for the GPU; None where MLX computes on a CPU."""
    if not mx.metal.is_available():
        return None
    return int(mx.device_info()["max_recommended_working_set_size"])


def free_bytes() -> int:
    """Bytes that arrays may still take: of the recommended working set on a GPU, else what the system has free."""
    limit = recommended_bytes()
    if limit is not None:
        return limit - mx.get_active_memory()
    return memory.free_bytes(torch.device("cpu")) + mx.get_cache_memory()


def peak_bytes_of(run: Callable[[], object]) -> int:
    """Bytes that ``run`` holds at once at most, beside what is held before it."""
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    run()
    return mx.get_peak_memory() - before


def set_limits() -> None:
    """Bound what MLX takes, and what it keeps of what was freed, by the device's recommended working set."""
    if (limit := recommended_bytes()) is not None:
        mx.set_memory_limit(limit)
        mx.set_cache_limit(int(CACHE_SHARE * limit))


@contextmanager
def wire(weights: int) -> Iterator[None]:
    """Inside, ``weights`` bytes and what is computed with them stay in memory; nothing changes on a CPU.

    One warning where weights alone come near the recommended working set: the system then swaps, or ends the process.
    """
    limit = recommended_bytes()
    if limit is None:
        yield
        return
    if weights > CROWDED * limit:
        logger.warning(
            "%.1f GB of weights, of %.1f GB the system recommends for the GPU: expect swapping; "
            "--quantization mlx-q4, or streamed blocks, take less",
            *(weights / 1e9, limit / 1e9),
        )
    before = mx.set_wired_limit(limit)
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)
