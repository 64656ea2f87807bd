"""Memory that a device has left, and the most that was held."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
UNKNOWN = 8 * 2**30  # assumed free where the system does not tell


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
