"""Memory that a device has left, and the most that was held."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OWN_PAGES = 2**20  # bytes of a tensor from which it gets pages of its own
MMAP_THRESHOLD = -3  # the C library's number of it
UNKNOWN = 8 * 2**30  # assumed free where the system does not tell


@cache
def own_pages() -> bool:
    """Give every tensor of `OWN_PAGES` on the CPU pages of its own; whether that was done.

    In one heap large tensors leave holes that the next ones do not fit into, and a decode takes half as much again.
    Pages of 4 KiB would take longer to come by than the heap does, so without huge ones nothing is done. torch asks for
    huge ones when it made no tensor before.
    """
    if not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text():
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return bool(ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, OWN_PAGES))


def free_bytes(device: torch.device) -> int:
    """Bytes a device has free; on the CPU what the system can give without swapping."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return _kibibytes(MEMINFO)["MemAvailable"] * 1024 if MEMINFO.exists() else UNKNOWN


def peak_bytes(device: torch.device) -> int:
    """Bytes held at most so far: of an accelerator, else resident ones of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    own = _kibibytes(STATUS).get("VmHWM") if STATUS.exists() else None
    if own is not None:
        return own * 1024
    import resource  # which counts the process that started this one as well

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _kibibytes(file: Path) -> Mapping[str, int]:
    """The lines of a file of the kernel that end in kB, by name."""
    rows = (line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if row[2:] == ["kB"]}
