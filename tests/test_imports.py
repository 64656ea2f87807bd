"""Imports stay light: transformers only when a text encoder is built, torch only when a network is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


TINY = Path(__file__).parent / "data" / "tiny-checkpoint" / "ltx-2-tiny.safetensors"
READ_HEADERS = f"""
from ltx_core.loader import Checkpoint, Lora
from ltx_core.loader.gguf import GgufFile
from ltx_core.types import VideoPixelShape
checkpoint = Checkpoint.open({str(TINY)!r})
configs = [checkpoint.network_config(name) for name in checkpoint.components if name != "embeddings"]
sizes = [source.info.nbytes for source in checkpoint.sources("transformer").values()]
"""


@pytest.mark.parametrize("statement", ["import ltx_core, ltx_trainer", READ_HEADERS], ids=["packages", "headers"])
def test_what_needs_no_tensor_takes_no_torch(statement: str) -> None:
    assert not modules_after(statement) & {"torch", "transformers", "numpy"}


COMPUTING = (
    "ltx_core.loader",
    "ltx_core.model.transformer.model",
    "ltx_core.sampling.loop",
    "ltx_core.text_encoders.gemma.encoder",
    "ltx_core.text_encoders.gemma.enhance",
    "ltx_core.text_encoders.t5",
    "ltx_core.conditioning",
)


def test_no_transformers_at_import() -> None:
    loaded = modules_after("\n".join(f"import {module}" for module in COMPUTING))
    assert not loaded & {"transformers", "av", "accelerate", "scipy", "torchaudio"}


BUNDLED = Path(__file__).resolve().parents[1] / "packages/ltx-tiny/src/ltx_tiny/weights/ltx-tiny.safetensors"
LIGHT = [  # a line, and what it says
    ("--help", "generate"),
    ("generate --help", "--num-frames"),
    ("distilled --help", "--num-frames"),
    ("models", "Lightricks/LTX-2"),
    (f"inspect {BUNDLED}", "transformer"),
    ("train --help", "--resume"),
    ("generate", "prompt is empty"),
    ("generate ball --bogus 1", "--bogus is no option"),
    ("generate ball --cfg-scale much", "'much' is not a number"),
    ("generate ball --num-frames 7 --no-snap", "nearest valid: 9"),
    ("generate ball --image nowhere.png", "nowhere.png: cannot read image"),
    ("generate ball --model nowhere", "neither a file"),
    ("generate ball --lora nowhere", "does not exist"),
    ("generate ball -o ball.xyz", "output is ball.xyz"),
    ("generate ball --quantization fp9", "expected one of fp8-cast"),
    ("generate ball --device tpu", "device is 'tpu'"),
    ("plan ball --seed 99999999999999999999", "expected a 64-bit integer"),
    ("plan ball --num-frames 7 --no-snap", "nearest valid: 9"),
    ("retake ball --video nowhere.mp4 --start-time 0 --end-time 1", "nowhere.mp4: cannot read video"),
    ("rerun nowhere.mp4", "nowhere.mp4: cannot read recipe"),
    ("batch nowhere.jsonl", "No such file"),
]


IN_TURN = """
import contextlib, io, json, sys
from ltx_pipelines.cli.app import run
for line in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        run(line.split())
    print(json.dumps([said.getvalue(), [name for name in ("torch", "transformers") if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[str]]]:
    """What each line says and the heavy modules that are there afterwards, in one process."""
    lines = [line for line, _ in LIGHT]
    folder = tmp_path_factory.mktemp("light")
    command = [sys.executable, "-c", IN_TURN]
    done = subprocess.run(command, cwd=folder, input=json.dumps(lines), capture_output=True, text=True, check=True)
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("line", "said"), LIGHT, ids=[line.replace(str(BUNDLED), "FILE") for line, _ in LIGHT])
def test_a_line_that_computes_nothing_takes_no_torch(line: str, said: str, answers: dict) -> None:
    """Half a second instead of three: help, lists, headers, and every mistake that a plan or its options show."""
    printed, heavy = answers[line]
    assert said in printed and not heavy, printed


def test_the_doctor_begins_before_torch_is_there(tmp_path: Path) -> None:
    code = """
import builtins, sys
sys.argv = ["ltx", "doctor"]
found = builtins.__import__
def watched(name, *rest, **more):
    if name == "torch":
        print("TORCH")
    return found(name, *rest, **more)
builtins.__import__ = watched
from ltx_pipelines.cli import main
main()
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    before = said.partition("TORCH")[0]
    assert all(section in before.splitlines() for section in ("packages", "models", "disk", "media"))


def test_what_computes_takes_neither_transformers_nor_the_compiler(tmp_path: Path) -> None:
    """They take longer to import than a small clip takes to sample, or a plan to be counted."""
    clip = "generate ball --height 64 --width 64 --num-frames 9 --steps 1 -o ball.mp4 --quiet"
    heavy = "{'transformers', 'torch._dynamo', 'sympy'} & set(sys.modules)"
    code = f"import sys; from ltx_pipelines.cli.app import run\nfor line in ('plan ball', {clip!r}):\n"
    code += f"    assert run(line.split()) == 0 and not {heavy}, (line, {heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (tmp_path / "ball.mp4").is_file(), done.stderr
