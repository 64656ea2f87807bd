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
    "GEMMA": str(TINY_CHECKPOINT / "gemma-3-tiny"),
    "MODEL": str(TINY_CHECKPOINT / "ltx-2-tiny.safetensors"),
    "PROCESSES": "2",
    "USE": "--width 64 --height 64 --num-frames 9 --steps 1 --device cpu",
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
}
SMALLER = {  # what the test writes into the file between two commands, as a reader would
    "  steps: 2000": "  steps: 2",
    "  interval: 250": "  interval: 1",
    "  inference_steps: 30": "  inference_steps: 1",
    "  batch_size: auto": "  batch_size: 1",
    "      # trigger: ZORB": "      trigger: ZORB",
}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for clip, text, caption in re.findall(r"^(clips/\S+)\s+(clips/\S+)\s+(.*)$", blocks("text")[0], re.MULTILINE):
        frames = torch.randint(0, 255, (12, 64, 96, 3), dtype=torch.uint8, generator=generator)
        (tmp_path / clip).parent.mkdir(exist_ok=True)
        write_video(tmp_path / clip, frames, 24.0, Audio(torch.rand(2, 8000, generator=generator) - 0.5, 16000))
        (tmp_path / text).write_text(caption)
    return tmp_path


def test_every_command_of_the_guide_runs(folder):
    commands = blocks("bash")
    assert 5 <= len(commands) < 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    edits = " ".join(f"-e 's/^{old}/{new}/'" for old, new in SMALLER.items())
    lines = [f"{command}\nsed -i {edits} zorb.yaml" if "--init" in command else command for command in commands]
    run = subprocess.run(
        ["bash", "-c", "set -euo pipefail\n" + "\n".join(lines)],
        cwd=folder,
        env={**os.environ, **SETTINGS, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    written = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    run_folder = "outputs/audio-video"
    assert {"boat.mp4", f"{run_folder}/metrics.csv", f"{run_folder}/samples/step_000002_1_sheet.png"} <= written
    assert f"{run_folder}/checkpoints/lora_weights_step_00002.safetensors" in written
    assert "chosen for cpu" in run.stderr and "together" in run.stdout
    on_two = (folder / "outputs/zorb-on-two/metrics.csv").read_text()
    assert run.stderr.count("[rank 1]") or "train/loss" in on_two


def test_the_table_of_memory_is_what_the_shapes_say():
    from benchmarks.training_memory import rows

    text = GUIDE.read_text(encoding="utf-8")
    for row in rows():
        assert f"| {' | '.join(row)} |" in text


def test_the_table_of_speed_is_what_the_operations_say():
    from benchmarks.training_memory import MODELS, SIZES, operations, step_rows

    text = GUIDE.read_text(encoding="utf-8")
    tflop = [float(count) for count in re.findall(r"(\d+) TFLOP", text)]
    assert round(operations(MODELS["LTX-2.3"], SIZES[0])) == tflop[0]
    for row in step_rows(tflop):
        assert f"| {' | '.join(row)} |" in text


def test_a_plan_needs_no_torch(folder):
    code = (
        "import sys, os; from pathlib import Path; from ltx_trainer.init import write_configuration\n"
        "from ltx_trainer.model_files import find_model\n"
        "write_configuration('audio-video', Path('clips'), find_model(os.environ['MODEL']), Path('a.yaml'))"
    )
    environment = {**os.environ, **SETTINGS}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    code = (
        "import sys; from ltx_trainer.config_file import read_config; from ltx_trainer.memory_plan import plan_memory\n"
        "plan = plan_memory(read_config('a.yaml')); print('torch' in sys.modules, len(plan.items))"
    )
    plan = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert plan.stdout.split()[0] == "False", plan.stderr
