"""Every command of docs/training.md runs, in its order, on two made-up clips and a model of random weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltx_core.types import Audio
from ltx_media.writer import write_video
from ltx_pipelines.cli.app import run
from ltx_trainer.init import write_configuration
from ltx_trainer.model_files import find_model
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
SHORTER = ("--set", "optimization.steps=1", "--set", "validation.skip_initial_validation=true")  # on two processes


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


def words_of(command: str) -> list[str]:
    """What the shell makes of a command, with the program's name first; nothing of one that sets a variable."""
    programs = "".join(f'{name}() {{ printf "%s\\0" {name} "$@"; }}\n' for name in ("ltx", "torchrun"))
    line = ["bash", "-euo", "pipefail", "-c", programs + command]
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")[:-1]


def test_every_command_of_the_guide_runs(folder, monkeypatch, capfd):
    """In this process, all but torchrun's."""
    monkeypatch.chdir(folder)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    commands = [command for command in blocks("bash") if words_of(command)]
    assert 4 < len(commands) < 9
    for command in commands:
        program, *words = words_of(command)
        if program == "torchrun":
            subprocess.run([sys.executable, "-m", "torch.distributed.run", *words, *SHORTER], check=True)
        else:
            assert run(words) == 0, (words, capfd.readouterr().err[-3000:])
        if "--init" in words:
            text = Path("zorb.yaml").read_text()
            for old, new in SMALLER.items():
                assert f"\n{old}" in text, old
                text = text.replace(f"\n{old}", f"\n{new}")
            Path("zorb.yaml").write_text(text)
    said = capfd.readouterr()
    assert "chosen for cpu" in said.err and "together" in said.out
    written = {str(file) for file in Path().rglob("*") if file.is_file()}
    run_folder = "outputs/audio-video"
    assert {"boat.mp4", f"{run_folder}/metrics.csv", f"{run_folder}/samples/step_000002_1_sheet.png"} <= written
    assert f"{run_folder}/checkpoints/lora_weights_step_00002.safetensors" in written
    assert "train/loss" in Path("outputs/zorb-on-two/metrics.csv").read_text()


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


def test_a_plan_needs_no_torch(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write_configuration("audio-video", Path("clips"), find_model(SETTINGS["MODEL"]), Path("a.yaml"))
    code = (
        "import sys; from ltx_trainer.config_file import read_config; from ltx_trainer.memory_plan import plan_memory\n"
        "plan = plan_memory(read_config('a.yaml')); print('torch' in sys.modules, len(plan.items))"
    )
    plan = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert plan.stdout.split()[0] == "False", plan.stderr
