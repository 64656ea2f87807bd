"""Every command of docs/training.md runs, in its order, on two made-up clips and a model of random weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltx_core.types import Audio
from ltx_media.writer import write_video
from tests.golden.case import TINY_CHECKPOINT

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "training.md"
SETTINGS = {
    "MODEL": str(TINY_CHECKPOINT / "ltx-2-tiny.safetensors"),
    "GEMMA": str(TINY_CHECKPOINT / "gemma-3-tiny"),
    "BUCKETS": "64x64x9",
    "STEPS": "2",
    "INTERVAL": "1",
    "DIMS": "[64, 64, 9]",
    "INFERENCE_STEPS": "1",
    "PROCESSES": "2",
    "USE": "--width 64 --height 64 --num-frames 9 --steps 1 --device cpu",
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    table = blocks("csv")[0]
    (tmp_path / "clips.csv").write_text(table)
    generator = torch.Generator().manual_seed(0)
    for name in re.findall(r"^(clips/\w+\.mp4)", table, re.MULTILINE):
        frames = torch.randint(0, 255, (12, 64, 96, 3), dtype=torch.uint8, generator=generator)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, frames, 24.0, Audio(torch.rand(2, 8000, generator=generator) - 0.5, 16000))
    return tmp_path


def test_every_command_of_the_guide_runs(folder):
    commands = blocks("bash")
    assert len(commands) >= 7
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -euo pipefail\n" + "\n".join(commands)
    run = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**os.environ, **SETTINGS, "PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    written = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {"boat.mp4", "outputs/zorb/metrics.csv", "outputs/zorb/samples/step_000002_1.mp4"} <= written
    assert "outputs/zorb/checkpoints/lora_weights_step_00002.safetensors" in written
