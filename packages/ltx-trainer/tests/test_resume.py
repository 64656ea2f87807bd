"""A run killed again and again ends where an undisturbed one ends, bit for bit; a stopped one leaves a state."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import signal
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_training import make_config, processes, raw_config, run_training, write_dataset, write_model
from torch import nn

from ltx_core.errors import CheckpointError, ConfigError
from ltx_trainer.loop import CHECKPOINT_FOLDER, LoopSettings, train
from ltx_trainer.run_log import LOG_NAME, figures_of, read_csv_log
from ltx_trainer.state import checkpoint_files, latest_state, load_state, retain, save_state, step_of
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
    output, killed, with_a_state = tmp_path / "broken", 0, 0
    while True:
        process = context.Process(target=run_training, args=(broken,))
        process.start()
        if killed < kills:
            state = latest_state(output / CHECKPOINT_FOLDER)
            wait_for_step(
                process, output, (step_of(state) if state else 0) + chance.randint(1, max(steps // kills - 2, 2))
            )
            time.sleep(chance.random() * 0.03)
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed, with_a_state = killed + 1, with_a_state + (latest_state(output / CHECKPOINT_FOLDER) is not None)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    assert killed == kills and with_a_state > kills // 2  # most go on from a checkpoint
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
def test_killed_twenty_times(files, tmp_path):
    kill_and_resume(files, tmp_path, steps=120, kills=20)


def test_sigterm_leaves_a_checkpoint(files, tmp_path):
    raw = raw_config(*files, tmp_path / "out", **{**settings(10000), "checkpoints": {"interval": None}})
    process = processes().Process(target=run_training, args=(raw,))
    process.start()
    wait_for_step(process, tmp_path / "out", 2)
    os.kill(process.pid, signal.SIGTERM)
    process.join(PATIENCE)
    assert process.exitcode == 0
    folder = tmp_path / "out" / CHECKPOINT_FOLDER
    state = load_state(latest_state(folder))
    assert state.step >= 2 and state.optimizer
    assert (folder / f"lora_weights_step_{state.step:05d}.safetensors").is_file()
    assert not list(folder.glob(".*")), "temporary files are left"


def test_a_finished_run_and_another_adapter_are_refused(files, tmp_path):
    out = tmp_path / "out"
    LtxvTrainer(make_config(*files, out, optimization={"steps": 2})).train(live=False)
    with pytest.raises(ConfigError, match=r"steps is 2, .* is at step 2 already"):
        LtxvTrainer(make_config(*files, out, optimization={"steps": 2})).train(live=False)
    with pytest.raises(ConfigError, match=r"lora.rank was 4 and is now 2. Choose another output_dir"):
        LtxvTrainer(make_config(*files, out, optimization={"steps": 4}, lora={"rank": 2})).train(live=False)


def test_another_data_set_base_seed_or_batch_is_refused_with_all_differences_listed(files, tmp_path):
    out = tmp_path / "out"
    LtxvTrainer(make_config(*files, out, optimization={"steps": 1})).train(live=False)
    model, data = write_model(tmp_path / "other.safetensors", seed=1), write_dataset(tmp_path / "more", count=4)
    other = make_config(model, data, out, optimization={"steps": 2, "batch_size": 1}, seed=7)
    listed = r"data was 5 examples \w+ and is now 4 .*; base model was .*; seed was 42 and is now 7; batch was 2 and is"
    with pytest.raises(ConfigError, match=listed):
        LtxvTrainer(other).train(live=False)
    moved = shutil.copytree(files[1], tmp_path / "moved")  # the same records elsewhere are the same data
    assert LtxvTrainer(make_config(files[0], moved, out, optimization={"steps": 2})).train(live=False).step == 2


def test_a_new_run_needs_a_new_folder_or_overwrite_and_its_weights_stay(files, tmp_path):
    out = tmp_path / "out"
    LtxvTrainer(make_config(*files, out, optimization={"steps": 4})).train(live=False)
    shorter = make_config(*files, out, optimization={"steps": 2}, seed=3)
    with pytest.raises(ConfigError, match=r"holds 2 checkpoints, newest .*_00004.safetensors; a new run needs a new"):
        LtxvTrainer(shorter, resume=False)
    again = LtxvTrainer(shorter, overwrite=True).train(live=False)
    assert again.step == 2 and again.weights is not None and again.weights.is_file()
    assert {step_of(path) for path in checkpoint_files(out / CHECKPOINT_FOLDER)} == {2}


def test_weights_without_a_state_and_files_of_others_are_not_buried(files, tmp_path):
    out = tmp_path / "out"
    options = {"optimization": {"steps": 1}, "checkpoints": {"save_training_state": "off"}}
    LtxvTrainer(make_config(*files, out, **options)).train(live=False)
    with pytest.raises(ConfigError, match="a new run needs a new or empty output_dir, or --overwrite"):
        LtxvTrainer(make_config(*files, out, **options))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holds 1 files of no run, first thesis.txt"):
        LtxvTrainer(make_config(*files, tmp_path / "mine", **options))


def test_nothing_newer_is_deleted(tmp_path):
    for step in (2, 4, 6, 8):
        (tmp_path / f"lora_weights_step_{step:05d}.safetensors").write_bytes(b"")
    retain(tmp_path, keep_last_n=1, step=4)
    assert [step_of(path) for path in checkpoint_files(tmp_path)] == [8, 6, 4]


def test_a_state_that_lacks_a_trainable_tensor_is_refused(files, tmp_path):
    out = tmp_path / "out"
    LtxvTrainer(make_config(*files, out, optimization={"steps": 1})).train(live=False)
    state = load_state(latest_state(out / CHECKPOINT_FOLDER))
    missing = list(state.model)[1]
    kept = {name: tensor for name, tensor in state.model.items() if name != missing}
    save_state(out / CHECKPOINT_FOLDER, replace(state, model=kept))
    with pytest.raises(ConfigError, match=rf"has no tensor '{re.escape(missing)}' \(1 of "):
        LtxvTrainer(make_config(*files, out, optimization={"steps": 2})).train(live=False)


def test_the_newest_readable_state_counts_and_none_at_all_stops(files, tmp_path, caplog):
    out = tmp_path / "out"
    options = {"optimization": {"steps": 4}, "checkpoints": {"interval": 2, "keep_last_n": 0}}
    LtxvTrainer(make_config(*files, out, **options)).train(live=False)
    folder = out / CHECKPOINT_FOLDER
    for step in (4, 2):
        path = folder / f"training_state_step_{step:05d}.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        if step == 4:
            assert step_of(latest_state(folder)) == 2
            assert "00004.safetensors is not a training state" in caplog.text and "\n" not in caplog.messages[-1]
    with pytest.raises(CheckpointError, match=r"none of 2 states can be read, first: .*00004.* give --overwrite"):
        LtxvTrainer(make_config(*files, out, **options))


class Poisoned:
    """A task of one weight whose loss is no number at a step, or whose weight becomes none."""

    def __init__(self, step: int, value: float) -> None:
        self.module, self.step, self.value = Scaled(), step, value

    def batches(self, first, rank, world):
        return (self.value if index + 1 == self.step else 1.0 for index in count(first))

    def validate(self, step, folder):
        return {}

    def export(self, folder, step, weights):
        return []


class Scaled(nn.Module):
    """``weight * batch``, and a weight that gets no gradient."""

    def __init__(self):
        super().__init__()
        self.weight, self.idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def forward(self, batch, draws):
        return {"loss": (self.weight * batch).square().sum()}


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_what_is_no_number_stops_the_run_and_the_last_good_state_stays(tmp_path, value):
    reports = []
    settings = LoopSettings(6, checkpoint_interval=1, keep_last_n=1)
    with pytest.raises(ConfigError, match=r"stopped at step 3: .*; the last good checkpoint is .*_00002.safetensors"):
        reports.extend(train(Poisoned(3, value), settings, tmp_path))  # `extend` keeps what came before
    state = load_state(latest_state(tmp_path / CHECKPOINT_FOLDER))
    assert state.step == 2 and all(tensor.isfinite().all() for tensor in state.model.values())
    assert len(reports) == 3 and not math.isfinite(figures_of(reports[-1])["train/loss"])


def test_a_weight_that_overflows_is_not_saved(tmp_path):
    settings = LoopSettings(3, learning_rate=3e37, optimizer_params={"weight_decay": 11.0}, checkpoint_interval=1)
    with pytest.raises(ConfigError, match=r"stopped at step 1: weight is no longer finite; there is no checkpoint yet"):
        list(train(Poisoned(9, 1.0), settings, tmp_path))


def test_moments_of_weights_without_gradients_do_not_grow_on_resume(tmp_path):
    for steps in (1, 2, 3):
        list(train(Poisoned(9, 1.0), LoopSettings(steps), tmp_path))
        state = load_state(latest_state(tmp_path / CHECKPOINT_FOLDER))
        assert state.optimizer.keys() == {"weight"} and float(state.optimizer["weight"]["step"]) == steps
    undisturbed = tmp_path / "whole"
    list(train(Poisoned(9, 1.0), LoopSettings(3), undisturbed))
    assert torch.equal(load_state(latest_state(undisturbed / CHECKPOINT_FOLDER)).model["weight"], state.model["weight"])


def test_retention_keeps_the_newest(files, tmp_path):
    options = {"optimization": {"steps": 6}, "checkpoints": {"interval": 2, "keep_last_n": 1}}
    result = LtxvTrainer(make_config(*files, tmp_path / "out", **options)).train(live=False)
    kept = sorted(path.name for path in (tmp_path / "out" / CHECKPOINT_FOLDER).iterdir())
    assert kept == ["lora_weights_step_00006.safetensors", "training_state_step_00006.safetensors"]
    assert result.weights is not None and result.weights.is_file()
