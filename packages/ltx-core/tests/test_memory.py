"""What is said of memory: what is free, and what was held at most."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltx_core.model.common import memory
from ltx_core.model.common.memory import STATUS, peak_bytes

CPU = torch.device("cpu")
PROGRAM = "import torch; from ltx_core.model.common.memory import peak_bytes; print(peak_bytes(torch.device('cpu')))"


def test_free_memory_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "meminfo"
    given.write_text("MemTotal:  9 kB\nMemAvailable:   12 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", given)
    assert memory.free_bytes(CPU) == 12 * 1024
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.free_bytes(CPU) == memory.UNKNOWN


def test_the_peak_is_known_where_the_kernel_does_not_tell_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "status"
    given.write_text("Name:\tpython\nVmRSS:\t  12 kB\n")
    for path in (given, tmp_path / "none"):
        monkeypatch.setattr(memory, "STATUS", path)
        assert peak_bytes(CPU) > 2**20


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells a process's own peak")
def test_a_process_counts_its_own_peak_and_not_its_parents() -> None:
    held = torch.ones(2**29, dtype=torch.uint8)
    child = int(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)
    assert peak_bytes(CPU) > len(held)
    assert 0 < child < peak_bytes(CPU) - len(held) / 2, "the child holds none of it"
