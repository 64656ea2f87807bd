"""Facts about this machine, without torch where that can be: the device a run would use, and its memory."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ltx_core.precision import MIXED, fast, kernel_lists_units

MEMINFO = Path("/proc/meminfo")
UNKNOWN = 8 * 2**30  # bytes, where the system does not tell
NVIDIA, AMD = Path("/dev/nvidia0"), Path("/dev/kfd")


@dataclass(frozen=True)
class Machine:
    """The device of a run; ``mixed`` is what mixed precision ``auto`` means there: bf16, fp16 or no."""

    kind: str  # cuda, mps, cpu
    free: int  # bytes on the device
    mixed: str

    def describe(self) -> str:
        return f"{self.kind} with {self.free / 2**30:.1f} GiB free"


def this_machine() -> Machine:
    """The accelerator there is, else the CPU; torch is asked where there may be an accelerator."""
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    maybe = sys.platform == "darwin" or NVIDIA.exists() or AMD.exists() or shutil.which("nvidia-smi") is not None
    if maybe and not forced and (found := _accelerator()):
        return found
    return Machine("cpu", _available(), "bf16" if kernel_lists_units() else "no")


def _accelerator() -> Machine | None:
    import torch

    from ltx_core.model.common.memory import free_bytes

    for kind, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if there:
            return Machine(kind, free_bytes(torch.device(kind)), MIXED[fast(kind)])
    return None


def _available() -> int:
    if not MEMINFO.exists():
        return UNKNOWN
    rows = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(rows["MemAvailable"].split()[0]) * 1024
