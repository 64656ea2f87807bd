"""One clip on several devices: the bundled model in two processes gives what it gives in one."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltx_core.parallel.launch import launch
from ltx_core.parallel.mesh import Devices, check_mesh
from ltx_pipelines import DistilledPipeline, TI2VidTwoStagesPipeline
from ltx_pipelines.cli.app import run as ltx
from ltx_pipelines.planning.cost import cost_of

PROMPT = "a small red ball bounces on a blue background"
SMALL = {"height": 128, "width": 192, "num_frames": 9, "seed": 3}
KINDS = {  # with the mesh; in the first, one process has no pass of its own
    "distilled": (DistilledPipeline, "cfg=2,fsdp=2"),
    "two stages": (TI2VidTwoStagesPipeline, "fsdp=2"),
}


def clips(devices: Devices | None) -> dict[str, Tensor]:
    """Frames and sound of a distilled clip and of a guided one; what is sent for their steps, and what a plan says."""
    found = {}
    for name, (kind, mesh) in KINDS.items():
        pipeline = kind.from_pretrained("tiny", dtype="float32", device="cpu")
        steps = {} if kind is DistilledPipeline else {"num_inference_steps": 2}
        if devices is not None:
            own = Devices(devices.rank, devices.size, mesh, spread_over=check_mesh(mesh, devices.size))
            pipeline.ledger.devices = own
            plan = pipeline.plan(PROMPT, **SMALL, **steps)
            pipeline.ledger.texts.contexts(plan.prompts)
            before = own.sent
        clip = pipeline(PROMPT, **SMALL, **steps, progress=False)
        assert clip.video is not None and clip.audio is not None
        found[name] = clip.video.tensor()
        found[f"{name}, sound"] = clip.audio.waveform.contiguous()
        if devices is not None:
            expected = sum(phase.work.sent for phase in cost_of(plan, pipeline.ledger).phases)
            found[f"{name}, sent"] = torch.tensor([own.sent - before, expected])
    return found


def main(folder: Path) -> None:
    devices = Devices.begin()
    assert devices is not None
    made = clips(devices)
    if devices.rank == 0:
        save_file(made, folder / "clips.safetensors")


def test_two_processes_make_the_clip_of_one(tmp_path: Path) -> None:
    assert launch([sys.executable, __file__, str(tmp_path)], 2) == 0
    together = load_file(tmp_path / "clips.safetensors")
    for name, alone in clips(None).items():
        torch.testing.assert_close(together[name], alone, rtol=0, atol=1e-4)
    for name in KINDS:
        measured, expected = together[f"{name}, sent"].tolist()
        assert measured > 0 and expected == pytest.approx(measured, rel=0.02)


def commands() -> list[list[str]]:
    """The lines of the document that make or plan a clip."""
    page = (Path(__file__).parents[3] / "docs" / "scale.md").read_text()
    blocks = re.findall(r"```sh\n(ltx (?:generate|plan) .*)\n```", page)
    return [shlex.split(block)[1:] for block in blocks]


def test_one_that_is_killed_ends_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generate = next(line for line in commands() if line[0] == "generate")
    line = [sys.executable, "-m", "ltx_pipelines", *generate, "--mesh", "fsdp=2", "--json"]
    whole = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert whole.stdout is not None
    while '"step"' not in whole.stdout.readline():
        pass
    second = max(map(int, Path(f"/proc/{whole.pid}/task/{whole.pid}/children").read_text().split()))
    os.kill(second, signal.SIGKILL)
    said = whole.communicate(timeout=60)[1]
    assert whole.returncode == 1 and "device 1 ended by signal 9" in said.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_what_each_device_holds_and_sends(capsys: pytest.CaptureFixture[str]) -> None:
    assert ltx(next(line for line in commands() if line[0] == "plan")) == 0
    *_, devices, first, second = capsys.readouterr().out.splitlines()
    assert devices == "all of this on each of 4 devices, weights of large networks spread over 2"
    assert re.fullmatch(r"stage 1: cfg=1,sp=4, [\d.]+ MB sent in a step", first) and second.startswith("stage 2: ")


def test_devices_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ltx(["generate", PROMPT, "--devices", "2"]) != 0
    assert "--devices is 2 in a run of 4 processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--mesh sp=2", "--mesh has no effect on one device"),
        ("--devices 0", "devices is 0"),
    ],
)
def test_what_cannot_be_shared_is_refused(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ltx(["generate", PROMPT, *line.split()]) != 0
    assert says in capsys.readouterr().err


if __name__ == "__main__":
    main(Path(sys.argv[1]))
