"""Training on several processes: what they share is what one computes, and any number of them goes on."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.tiny_training import processes, raw_config, run_several, run_training, write_dataset, write_model

from ltx_core.errors import ConfigError
from ltx_core.parallel.launch import environment, free_port
from ltx_core.parallel.mesh import TrainingMesh
from ltx_trainer.config_file import parse_config
from ltx_trainer.loop import CHECKPOINT_FOLDER
from ltx_trainer.memory_plan import plan_memory
from ltx_trainer.run_log import LOG_NAME, read_csv_log
from ltx_trainer.train_cli import app

FULL = {"model": {"training_mode": "full"}, "lora": None}
SHARED = ("sp=2", "fsdp=2,sp=2")  # of tokens, of tokens and weights
RUNS = {
    "replicated": {"optimization": {"gradient_accumulation_steps": 2, "ema_decay": 0.9}, "lora": {"dropout": 0.1}},
    "sharded": {**FULL, "acceleration": {"mesh": "fsdp=2"}, "optimization": {"ema_decay": 0.9}},
}


@pytest.fixture
def files(tmp_path):
    return write_model(tmp_path / "model.safetensors", layers=2), write_dataset(tmp_path / "data", count=6, silent=2)


def configuration(files, output, name, steps, **changes):
    """A run of a kind; one process alone shards nothing."""
    sections = {key: dict(value) for key, value in {**RUNS.get(name, {}), **changes}.items() if value is not None}
    rate = {"learning_rate": 1e-2, "scheduler_type": "constant", "batch_size": 2, "steps": steps}
    sections["optimization"] = {**rate, **sections.get("optimization", {})}
    return raw_config(*files, output, **sections)


def launch(raws, count):
    """Train one configuration after the other in ``count`` processes."""
    port, context = free_port(), processes()
    shared = [{**environment(rank, count, port), "ACCELERATE_USE_CPU": "true"} for rank in range(count)]
    members = [context.Process(target=run_several, args=(raws, own)) for own in shared]
    for member in members:
        member.start()
    for member in members:
        member.join(200)
    assert [member.exitcode for member in members] == [0] * count


def saved(output, step):
    """All tensors of a state and of the weights beside it."""
    paths = sorted((output / CHECKPOINT_FOLDER).glob(f"*step_{step:05d}.safetensors"))
    assert len(paths) == 2
    return {f"{path.name[:5]} {name}": tensor for path in paths for name, tensor in load_file(path).items()}


def curve(output, name):
    return [value for _, key, value in read_csv_log(output / LOG_NAME) if key == name]


def test_several_processes_end_where_they_should(files, tmp_path):
    """Two, then one, then two: where two do, bit for bit, replicated and sharded. Sharing tokens: where one does."""

    def runs(output, steps, **changes):
        return [configuration(files, tmp_path / f"{name} {output}", name, steps, **changes) for name in RUNS]

    def sharing(output, mesh):
        return configuration(files, tmp_path / output, "", 3, **FULL, acceleration={"mesh": mesh})

    launch([*runs("whole", 4), *runs("broken", 2), *(sharing(mesh, mesh) for mesh in SHARED)], 2)
    for raw in (*runs("broken", 3, acceleration=None), sharing("alone", None)):
        run_training(raw)
    launch(runs("broken", 4), 2)
    for name in RUNS:
        whole, broken = (saved(tmp_path / f"{name} {kind}", 4) for kind in ("whole", "broken"))
        assert whole.keys() == broken.keys() and len(whole) > 40
        for key, tensor in whole.items():
            if not key.endswith("rng.cpu"):
                assert torch.equal(tensor, broken[key]), f"{name}: {key}"
    for mesh in SHARED:
        check_near(tmp_path / "alone", tmp_path / mesh)


def check_near(alone, together):
    """The losses of three steps, and where they led."""
    for name in ("train/loss", "train/loss_video", "train/grad_norm"):
        assert curve(together, name) == pytest.approx(curve(alone, name), rel=1e-5), (together.name, name)
    one, other = saved(alone, 3), saved(together, 3)
    for key in (key for key in one if ".transformer." in key):  # Adam makes much of last bits where gradients are tiny
        assert (other[key] - one[key]).norm() <= 1e-4 * one[key].norm(), f"{together.name}: {key}"


@pytest.mark.slow
def test_four_processes_share_tokens_and_copies_of_spread_weights(files, tmp_path):
    """Two see different examples, each with a helper; two hold the weights together, twice (HSDP)."""
    four = configuration(files, tmp_path / "four", "", 3, **FULL, acceleration={"mesh": "fsdp=2,sp=2"})
    launch([four], 4)
    run_training(configuration(files, tmp_path / "alone", "", 3, **FULL, optimization={"batch_size": 4}))
    check_near(tmp_path / "alone", tmp_path / "four")


def test_meshes_that_cannot_be_are_refused(files, tmp_path):
    with pytest.raises(ConfigError, match="mesh is 'sp=3' in a run of 4 processes, expected sp to divide them"):
        TrainingMesh.read("sp=3", 0, 4)
    for changes, says in (
        ({"acceleration": {"mesh": "tp=2"}}, "acceleration.mesh"),
        ({"acceleration": {"mesh": "sp=2"}, "lora": {"dropout": 0.1}}, "lora.dropout is 0.1"),
        ({"acceleration": {"mesh": "fsdp=2", "blocks_to_swap": 1}}, "are not swapped too"),
    ):
        with pytest.raises(ConfigError, match=says):
            parse_config(configuration(files, tmp_path / "out", "", 3, **changes))


def test_the_documented_plan_of_a_run(files, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[3] / "docs" / "scale.md").read_text()
    (line,) = re.findall(r"`ltx train (.* --plan .*)`", page)
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(configuration(files, tmp_path / "out", "", 3)))
    app(shlex.split(line), standalone_mode=False)
    assert "activations" in capsys.readouterr().out


@pytest.mark.slow
def test_the_documented_launch(files, tmp_path):
    """As many processes as here, which share tokens and hold the weights together."""
    page = (Path(__file__).parents[3] / "docs" / "scale.md").read_text()
    (line,) = re.findall(r"^torchrun (.*)$", page, re.M)
    line = line.replace("--nproc-per-node 8", "--nproc-per-node 2").replace("fsdp=8", "fsdp=2")
    raw = configuration(files, tmp_path / "out", "", 3, **FULL)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, check=True, timeout=300)
    assert (tmp_path / "out" / CHECKPOINT_FOLDER).is_dir()


def test_the_plan_is_that_of_one_process(files, tmp_path):
    def plan(**acceleration):
        raw = configuration(files, tmp_path / "out", "", 3, **FULL, acceleration=acceleration)
        return {item.name: item.device for item in plan_memory(parse_config(raw)).items}

    alone, spread = plan(), plan(mesh="fsdp=4,sp=2")
    assert spread["optimizer"] == alone["optimizer"] // 4 and spread["transformer"] == alone["transformer"] // 4
    assert spread["activations"] == alone["activations"] // 2 and spread["connectors"] == alone["connectors"]
