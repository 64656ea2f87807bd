"""The bundled model on a processor without bfloat16 units: nothing that takes time is computed in bfloat16."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PLAIN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
COUNTING = """
import json, sys
from collections import Counter
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from ltx_core.precision import fast
from ltx_pipelines.cli.app import run

fast("cpu")  # which tries a bfloat16 convolution where it hopes for units

class Counting(TorchDispatchMode):
    calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if any(word in name for word in ("conv", "mm", "attention", "linear")):
            first = next(arg for arg in args if isinstance(arg, torch.Tensor))
            self.calls["convolution" if "conv" in name else "product", str(first.dtype)] += 1
        return function(*args, **(kwargs or {}))

with Counting():
    code = run(["generate", "a ball", "--model", "tiny", *"-q -H 64 -W 64 -f 33 -o".split(), sys.argv[1]])
print(json.dumps([code, [[*key, count] for key, count in Counting.calls.items()]]))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables limit x86 processors only")
def test_a_clip_computes_nothing_in_bfloat16(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNTING, str(tmp_path / "ball.mp4")]
    done = subprocess.run(command, env=os.environ | PLAIN, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, calls = json.loads(done.stdout.splitlines()[-1])
    assert code == 0 and (tmp_path / "ball.mp4").is_file()
    counts = {(kind, dtype): count for kind, dtype, count in calls}
    assert counts.keys() == {("convolution", "torch.float32"), ("product", "torch.float32")}
    assert counts["convolution", "torch.float32"] > 100 and counts["product", "torch.float32"] > 1000
