"""How much memory a device has left."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
UNKNOWN = 8 * 2**30  # assumed free where the system does not tell


def free_bytes(device: torch.device) -> int:
    """Bytes a device has free; on the CPU what the system can give without swapping."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if MEMINFO.exists():
        values = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        return int(values["MemAvailable"].split()[0]) * 1024
    return UNKNOWN
