"""A run killed again and again ends where an undisturbed one ends, bit for bit; a stopped one leaves a state."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_training import make_config, processes, raw_config, run_training, write_dataset, write_model

from ltx_core.errors import ConfigError
from ltx_trainer.loop import CHECKPOINT_FOLDER
from ltx_trainer.run_log import LOG_NAME, read_csv_log
from ltx_trainer.state import latest_state, save_state
from ltx_trainer.trainer import LtxvTrainer

PATIENCE = 120.0  # seconds until a step must have happened


@pytest.fixture
def files(tmp_path):
    return write_model(tmp_path / "model.safetensors"), write_dataset(tmp_path / "data", count=5, silent=1)


def settings(steps):
    return {
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "optimization": {"steps": steps, "learning_rate": 1e-2, "ema_decay": 0.9, "gradient_accumulation_steps": 2},
        "checkpoints": {"interval": 2, "keep_last_n": 2},
    }


def last_step(output: Path) -> int:
    path = output / LOG_NAME
    return max((step for step, _, _ in read_csv_log(path)), default=0) if path.is_file() else 0


def wait_for_step(process, output: Path, step: int) -> None:
    end = time.monotonic() + PATIENCE
    while last_step(output) < step and process.is_alive():
        assert time.monotonic() < end, f"step {step} did not come"
        time.sleep(0.002)


def kill_and_resume(files, tmp_path, steps, kills):
    context, chance = processes(), random.Random(steps)
    whole = raw_config(*files, tmp_path / "whole", **settings(steps))
    undisturbed = context.Process(target=run_training, args=(whole,))
    undisturbed.start()
    broken = raw_config(*files, tmp_path / "broken", **settings(steps))
    output, killed = tmp_path / "broken", 0
    while True:
        process = context.Process(target=run_training, args=(broken,))
        process.start()
        if killed < kills:
            state = latest_state(output / CHECKPOINT_FOLDER)
            wait_for_step(process, output, (state.step if state else 0) + chance.randint(1, max(steps // kills - 2, 2)))
            time.sleep(chance.random() * 0.03)
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
    undisturbed.join()
    assert undisturbed.exitcode == 0
    assert killed == kills
    same = 0
    for path in sorted((tmp_path / "whole" / CHECKPOINT_FOLDER).iterdir()):
        left, right = load_file(path), load_file(output / CHECKPOINT_FOLDER / path.name)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert torch.equal(tensor, right[name]), f"{path.name}: {name}"
            same += 1
    assert same > 40
    curves = [
        [row for row in read_csv_log(folder / LOG_NAME) if row[1] == "train/loss"]
        for folder in (tmp_path / "whole", output)
    ]
    assert len(curves[0]) == steps and curves[0] == curves[1]


def test_killed_twice(files, tmp_path):
    kill_and_resume(files, tmp_path, steps=12, kills=2)


@pytest.mark.slow
def test_killed_ten_times(files, tmp_path):
    kill_and_resume(files, tmp_path, steps=60, kills=10)


def test_sigterm_leaves_a_checkpoint(files, tmp_path):
    raw = raw_config(*files, tmp_path / "out", **{**settings(10000), "checkpoints": {"interval": None}})
    process = processes().Process(target=run_training, args=(raw,))
    process.start()
    wait_for_step(process, tmp_path / "out", 2)
    os.kill(process.pid, signal.SIGTERM)
    process.join(PATIENCE)
    assert process.exitcode == 0
    folder = tmp_path / "out" / CHECKPOINT_FOLDER
    state = latest_state(folder)
    assert state is not None and state.step >= 2 and state.optimizer
    assert (folder / f"lora_weights_step_{state.step:05d}.safetensors").is_file()
    assert not list(folder.glob(".*")), "temporary files are left"


def test_a_finished_run_and_another_adapter_are_refused(files, tmp_path):
    out = tmp_path / "out"
    LtxvTrainer(make_config(*files, out, optimization={"steps": 2})).train(live=False)
    with pytest.raises(ConfigError, match=r"steps is 2, .* is at step 2 already"):
        LtxvTrainer(make_config(*files, out, optimization={"steps": 2})).train(live=False)
    with pytest.raises(ConfigError, match=r"lora.rank was 4 and is now 2; choose another output_dir"):
        LtxvTrainer(make_config(*files, out, optimization={"steps": 4}, lora={"rank": 2})).train(live=False)
    again = LtxvTrainer(make_config(*files, out, optimization={"steps": 2}), resume=False).train(live=False)
    assert again.step == 2


def test_a_state_that_lacks_a_trainable_tensor_is_refused(files, tmp_path):
    out = tmp_path / "out"
    LtxvTrainer(make_config(*files, out, optimization={"steps": 1})).train(live=False)
    state = latest_state(out / CHECKPOINT_FOLDER)
    assert state is not None
    missing = list(state.model)[1]
    kept = {name: tensor for name, tensor in state.model.items() if name != missing}
    save_state(out / CHECKPOINT_FOLDER, replace(state, model=kept))
    with pytest.raises(ConfigError, match=rf"has no tensor '{re.escape(missing)}' \(1 of "):
        LtxvTrainer(make_config(*files, out, optimization={"steps": 2})).train(live=False)


def test_the_newest_readable_state_counts(files, tmp_path):
    out = tmp_path / "out"
    options = {"optimization": {"steps": 4}, "checkpoints": {"interval": 2, "keep_last_n": 0}}
    LtxvTrainer(make_config(*files, out, **options)).train(live=False)
    newest = out / CHECKPOINT_FOLDER / "training_state_step_00004.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    state = latest_state(out / CHECKPOINT_FOLDER)
    assert state is not None and state.step == 2


def test_retention_keeps_the_newest(files, tmp_path):
    options = {"optimization": {"steps": 6}, "checkpoints": {"interval": 2, "keep_last_n": 1}}
    result = LtxvTrainer(make_config(*files, tmp_path / "out", **options)).train(live=False)
    kept = sorted(path.name for path in (tmp_path / "out" / CHECKPOINT_FOLDER).iterdir())
    assert kept == ["lora_weights_step_00006.safetensors", "training_state_step_00006.safetensors"]
    assert result.weights is not None and result.weights.is_file()
