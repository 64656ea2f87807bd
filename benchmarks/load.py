"""Reading a transformer from its file: GB/s and peak memory of the process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import Options, Table
from benchmarks.files import write_transformer
from benchmarks.models import LTX_23, section_of

# A process of its own for every load, so that its peak memory is the load's.
PROGRAM = """
import os, sys, time
import torch
from ltx_core.loader import Checkpoint
from ltx_core.loader import weights
from ltx_core.model.common.memory import peak_bytes
path, dtype, device, readers = sys.argv[1:]
weights.READERS = int(readers)
dtype, device = getattr(torch, dtype), torch.device(device)
if device.type == "cuda":
    torch.zeros(1, device=device)
host = torch.device("cpu")
before = peak_bytes(host)
start = time.perf_counter()
network = Checkpoint.open(path).build("transformer", dtype, device)
if device.type == "cuda":
    torch.cuda.synchronize()
touched = sum(float(p.flatten()[:: 4096 // p.itemsize].float().sum()) for p in network.parameters())
seconds = time.perf_counter() - start
print(os.path.getsize(path), seconds, peak_bytes(host) - before)
"""


def run(options: Options) -> list[Table]:
    columns = ("file, as", "readers", "GB", "seconds", "GB/s", "peak host memory / file")
    table = Table(
        "Loading, the file in the system's cache",
        columns,
        notes=[
            "medians; a network in the file's own dtype on the CPU is mapped, not read: its pages count once touched"
        ],
    )
    section = section_of(2, 4, 32, LTX_23) if options.quick else section_of(6, 16, 64, LTX_23)
    with tempfile.TemporaryDirectory() as folder:
        path = write_transformer(Path(folder) / "model.safetensors", section, torch.bfloat16)
        for dtype in ("bfloat16", "float32"):
            for readers in (1, 4):
                runs = [measured(path, dtype, options.device, readers) for _ in range(1 if options.quick else 3)]
                size, seconds, peak = (statistics.median(run[i] for run in runs) for i in range(3))
                table.rows.append(
                    [
                        f"bfloat16, {dtype}",
                        str(readers),
                        f"{size / 1e9:.3f}",
                        f"{seconds:.3f}",
                        f"{size / seconds / 1e9:.2f}",
                        f"{peak / size:.2f}",
                    ]
                )
    return [table]


def measured(path: Path, dtype: str, device: torch.device, readers: int) -> tuple[float, float, float]:
    """Bytes of the file, seconds, bytes of host memory it took at most."""
    command = [sys.executable, "-c", PROGRAM, str(path), dtype, str(device), str(readers)]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    size, seconds, peak = map(float, words)
    return size, seconds, peak
