"""The configuration that `ltx train --init` writes for every mode: it names real keys, and it trains."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tests.golden.case import TINY_CHECKPOINT
from typer.testing import CliRunner

from ltx_core.types import Audio
from ltx_media.audio import write_wav
from ltx_media.writer import write_video
from ltx_trainer.modes import MODES, Facts, configuration
from ltx_trainer.run_log import LOG_NAME, read_csv_log
from ltx_trainer.train_cli import app

SMALL = (
    "optimization.steps=40",
    "optimization.batch_size=1",
    "optimization.learning_rate=1e-2",
    "lora.rank=8",
    "data.num_dataloader_workers=0",
    "validation.interval=40",
    "validation.skip_initial_validation=true",
    "validation.inference_steps=2",
    "acceleration.mixed_precision_mode=no",
    "checkpoints.save_training_state=off",
)
MEASURED = {"val/psnr", "val/onsets"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with all files of a model, whose prompts are short."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.safetensors").symlink_to(TINY_CHECKPOINT / "ltx-2-tiny.safetensors")
    shutil.copytree(TINY_CHECKPOINT / "gemma-3-tiny", folder / "gemma")
    settings = folder / "gemma" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 128}))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Four clips with sound, references, masks and a table that names them all."""
    folder = tmp_path_factory.mktemp("modes")
    rows = []
    for index in range(4):
        frames = torch.zeros(17, 64, 64, 3, dtype=torch.uint8)
        for time in range(17):
            left = 4 * index + 2 * time
            frames[time, 20:36, left : left + 16, index % 3] = 200
        wave = torch.sin(torch.arange(12000) / 16000 * 2 * math.pi * 300 * (index + 1))[None]
        sound = Audio(wave * (torch.arange(12000) % 2000 < 600), 16000)
        write_video(folder / f"{index}.mp4", frames, 24.0, sound)
        write_video(folder / f"{index}_reference.mp4", 255 - frames, 24.0)
        write_wav(folder / f"{index}.wav", sound)
        Image.fromarray(frames[0].numpy()).save(folder / f"{index}_picture.png")
        half = torch.zeros(64, 64, dtype=torch.uint8)
        half[:, 32:] = 255
        Image.fromarray(half.numpy()).save(folder / f"{index}_mask.png")
        rows.append({"caption": f"block {index} slides", "video": f"{index}.mp4", "video_mask": f"{index}_mask.png"})
        rows[-1] |= {"reference_video": f"{index}_reference.mp4", "reference_audio": f"{index}.wav"}
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "bare.csv").write_text("caption,video\na,0.mp4\n")
    pictures = [{**row, "reference_video": f"{index}_picture.png"} for index, row in enumerate(rows)]
    (folder / "pictures").mkdir()
    with (folder / "pictures" / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in pictures:
            writer.writerow({key: value if key == "caption" else f"../{value}" for key, value in row.items()})
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("mode", [name for name in MODES if name != "audio-adapter"])  # of LTX-Video, tested apart
def test_a_mode_trains_from_its_commented_file(mode, model, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = clips / ("pictures" if mode == "ic-lora-image" else ".") / "clips.csv"
    assert f"{mode}.yaml" in run("--init", mode, "--data", table, "--model", model)
    text = Path(f"{mode}.yaml").read_text()
    assert text.startswith(f"# {mode}: {MODES[mode].says}.\n") and text.count("#") >= 6
    changes = [change for change in SMALL if mode != "full" or not change.startswith("lora")]
    changes += ["training_strategy.substeps=1"] if mode == "distill" else []
    run(f"{mode}.yaml", "--disable-progress-bars", *(part for change in changes for part in ("--set", change)))

    output = tmp_path / "outputs" / mode
    rows = read_csv_log(output / LOG_NAME)
    losses = [value for _, name, value in rows if name == "train/loss"]
    assert len(losses) == 40 and all(map(math.isfinite, losses))
    assert {name for _, name, _ in rows} & MEASURED, "nothing was measured against the truth"
    assert ("val/psnr_keyframes" in {name for _, name, _ in rows}) == (mode == "keyframes")
    assert Image.open(output / "samples" / "step_000040_1_sheet.png").width == 1600
    assert list((output / "checkpoints").glob("*_weights_step_00040.safetensors"))


def test_every_mode_has_a_file_without_clips_too():
    for name in MODES:
        text = configuration(name, Facts())
        assert "/path/to/" in text and "clips" in text
        assert yaml.safe_load(text)["training_strategy"]["name"] in ("flexible", "distillation")


def test_what_cannot_be_written_is_one_line(model, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 1 and result.output.count("\n") == 1
        return result.output

    assert "nearest valid: keyframes" in refused("--init", "keyframe")
    assert "inpainting needs a column video_mask" in refused(
        "--init", "inpainting", "--data", clips / "bare.csv", "--model", model
    )
    Path("full.yaml").write_text("mine")
    assert "full.yaml is there already" in refused("--init", "full")
    assert "holds no clip" in refused(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"junk" * 100)
    damaged = refused("--init", "full", "--data", clips / "bare.csv", "--model", tmp_path / "damaged")
    assert "expected a model; " in damaged and "damaged/model.safetensors" in damaged
    assert "text-to-video" in run("--init", "list")


def test_a_folder_of_clips_with_captions_is_all_it_takes(model, clips, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for index in range(2):
        shutil.copy(clips / f"{index}.mp4", tmp_path / "mine")
        (tmp_path / "mine" / f"{index}.txt").write_text(f"block {index} slides\n")
    small = [part for change in SMALL[2:] for part in ("--set", change)]
    with caplog.at_level("INFO"):
        said = run("mine/", "--model", model, "--disable-progress-bars", *small, "--set", "optimization.steps=1")
    assert "mine-lora.yaml: audio-video LoRA of model.safetensors" in said
    assert "chosen for cpu" in caplog.text and "batch_size 2" in caplog.text
    assert (tmp_path / "outputs" / "audio-video" / "checkpoints" / "lora_weights_step_00001.safetensors").is_file()
    assert (tmp_path / "mine" / ".precomputed" / "latents" / "1.safetensors").is_file()
    assert "is there already and is used as it is" in run("mine", "--plan")
