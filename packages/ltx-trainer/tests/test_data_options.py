"""What a data set may ask for: long clips in parts, references made of the clips, weights of the loss."""

from __future__ import annotations

import json
import math
from importlib.metadata import EntryPoint

import pytest
import torch
from PIL import Image
from tests.golden.case import TINY_CHECKPOINT
from tests.tiny_training import make_config, raw_config, write_dataset, write_model

from ltx_core.errors import ConfigError
from ltx_core.types import Audio, SpatioTemporalScaleFactors
from ltx_media.video import read_frames
from ltx_media.writer import write_video
from ltx_trainer.data_config import DataSetConfig
from ltx_trainer.datasets import PrecomputedDataset, collate
from ltx_trainer.draws import step_draws
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import read_record, write_record
from ltx_trainer.processing.buckets import parse_buckets
from ltx_trainer.processing.controls import find_control
from ltx_trainer.processing.dataset import check_dataset
from ltx_trainer.processing.masks import weights_on_grid
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.options import ProcessingOptions
from ltx_trainer.processing.parts import asked_rows
from ltx_trainer.processing.prepare import prepare_set
from ltx_trainer.trainer import LtxvTrainer
from ltx_trainer.training_strategies.inputs import masked_velocity_loss, velocity_inputs, video_tokens

MODELS = ModelFiles.of(TINY_CHECKPOINT / "ltx-2-tiny.safetensors", TINY_CHECKPOINT / "gemma-3-tiny")
FACTORS = SpatioTemporalScaleFactors.default()


def film(path, frames=30):
    """A clip that brightens by the frame and whose tone rises by the second."""
    pictures = [torch.full((64, 64, 3), 10 + 7 * index, dtype=torch.uint8) for index in range(frames)]
    time = torch.arange(round(frames / 24 * 16000)) / 16000
    write_video(path, pictures, 24.0, Audio(torch.sin(2 * math.pi * 300 * time * (1 + time))[None], 16000))


def prepared(tmp_path, row, directories=("conditions", "latents"), **options):
    (tmp_path / "table.json").write_text(json.dumps([row]))
    one = DataSetConfig(path=str(tmp_path / "table.json"), resolution="64x64x9", **options)
    prepare_set(one, MODELS, directories, "cpu", 0)
    return one.root


@pytest.mark.parametrize(("options", "starts"), [
    ({"long_clips": "first"}, [0]),
    ({"long_clips": "chunks"}, [0, 9, 18]),
    ({"long_clips": "slide", "stride": 7}, [0, 7, 14, 21]),
    ({"long_clips": "slide"}, [0, 4, 8, 12, 16, 20]),
])  # fmt: skip
def test_long_clips_in_parts(tmp_path, options, starts):
    film(tmp_path / "film.mp4")
    row = Row(tmp_path / "film", "x", {"video": tmp_path / "film.mp4"})
    asked = ProcessingOptions(buckets=parse_buckets("64x64x9", FACTORS), **options)
    found = asked_rows([row], asked)
    assert [round(part.start * 24) for part in found] == starts
    assert len({part.stem for part in found}) == len(starts)


def test_parts_of_a_clip_are_encoded_from_where_they_begin(tmp_path):
    film(tmp_path / "film.mp4")
    sources = ["conditions", "latents", "audio_latents"]
    root = prepared(tmp_path, {"video": "film.mp4", "caption": "a film"}, sources, long_clips="chunks")
    dataset = PrecomputedDataset(root, sources)
    assert [path.name for path in dataset.relative_paths()["latents"]] == [f"film@000{i}.safetensors" for i in range(3)]
    assert {dataset.clip(index) for index in range(3)} == {"film"}
    assert not check_dataset(tmp_path / "table.json").lines()
    (root / "latents" / "film@0001.safetensors").unlink()
    assert check_dataset(tmp_path / "table.json").lines() == ["missing latents/film@0001"]
    prepared(tmp_path, {"video": "film.mp4", "caption": "a film"}, sources, long_clips="chunks")
    film(tmp_path / "late.mp4")
    parts = [dataset[index] for index in range(3)]
    for name in ("latents", "audio_latents"):
        assert not torch.allclose(parts[0][name]["latents"].float(), parts[2][name]["latents"].float())


@pytest.mark.parametrize("name", ["canny", "downscale", "blur"])
def test_controls_keep_the_shape_and_lose_detail(name):
    frames = -torch.ones(3, 2, 64, 64)
    frames[:, :, 16:48, 16:48] = 1.0
    frames += 0.02 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    made = find_control(name)(frames)
    assert made.shape == frames.shape and made.min() >= -1.1 and made.max() <= 1.1
    if name == "canny":
        assert set(made.unique().tolist()) == {-1.0, 1.0}
        edges = made[0, 0] > 0
        assert 100 < int(edges.sum()) < 150, "a square of 32 has about 124 edge pixels"
        assert not edges[24:40, 24:40].any() and not edges[:12].any()
        assert edges[24:40].any(dim=1).all()
    else:
        assert made[:, 0].diff(dim=-1).abs().max() < frames[:, 0].diff(dim=-1).abs().max() / 3


def test_an_unknown_control_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"control is 'cany', expected one of canny, .*nearest valid: canny"):
        find_control("cany")


def test_a_control_of_an_extra_package(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"control is 'depth', expected depth:FOLDER with the folder of a depth model"
    ):
        find_control("depth")
    installed = EntryPoint("depth", "tests.tiny_training:raw_config", "ltx.controls")
    monkeypatch.setattr("ltx_trainer.processing.controls.entry_points", lambda group: [installed])
    assert find_control("depth") is raw_config, "what a package registers is taken"


def test_a_reference_is_made_of_the_clip(tmp_path):
    film(tmp_path / "film.mp4")
    row = {"video": "film.mp4", "caption": "a film"}
    directories = ("conditions", "latents", "reference_latents")
    root = prepared(tmp_path, row, directories, control="blur")
    first = read_record(root / "reference_latents" / "film.safetensors")["latents"]
    prepared(tmp_path, row, directories, control="canny")
    assert not check_dataset(tmp_path / "table.json").lines(), "a reference that a control made has its row"
    second = read_record(root / "reference_latents" / "film.safetensors")["latents"]
    assert first.shape == second.shape and not torch.equal(first, second), "another control makes it again"


def test_weights_are_means_of_cells_and_groups_of_frames():
    frames = torch.zeros(9, 1, 64, 64)
    frames[:, :, :, 32:] = 1.0
    frames[5:] = 0.5
    grid = weights_on_grid(frames, (2, 2, 2), FACTORS)
    assert grid[0].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert grid[1].tolist() == [[0.25, 0.75], [0.25, 0.75]]
    assert torch.equal(weights_on_grid(frames[:1], (2, 2, 2), FACTORS)[1], grid[0])


def test_a_loss_mask_comes_from_a_file_or_from_alpha(tmp_path):
    picture = torch.full((64, 64, 4), 255, dtype=torch.uint8)
    picture[:, :32, 3] = 0
    Image.fromarray(picture.numpy(), "RGBA").save(tmp_path / "cut.png")
    grey = torch.zeros(64, 64, dtype=torch.uint8)
    grey[:, 32:] = 255
    Image.fromarray(grey.numpy()).save(tmp_path / "mask.png")
    for value in ("alpha", "mask.png"):
        (tmp_path / "table.json").write_text(json.dumps([{"video": "cut.png", "caption": "x", "loss_mask": value}]))
        one = DataSetConfig(path=str(tmp_path / "table.json"), resolution="64x64x1")
        prepare_set(one, MODELS, ("conditions", "latents", "loss_masks"), "cpu", 0)
        assert read_record(one.root / "loss_masks" / "cut.safetensors")["mask"].tolist() == [[[0.0, 1.0]] * 2]


def test_only_what_counts_is_in_the_loss(tmp_path):
    source = {"latents": torch.randn(1, 4, 1, 2, 2), "fps": torch.tensor([24.0])}
    tokens = video_tokens(source, FACTORS)
    inputs = velocity_inputs(tokens, torch.tensor([0.5]), torch.zeros_like(tokens.clean))
    from dataclasses import replace

    weighted = replace(inputs, loss_weight=torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    prediction = inputs.targets.clone()
    prediction[:, 2:] += 5.0
    assert masked_velocity_loss(prediction, weighted).item() == 0
    prediction[:, 0] += 1.0
    assert masked_velocity_loss(prediction, weighted).item() == pytest.approx(0.5)


def test_a_strategy_reads_loss_masks_and_balances(tmp_path):
    model, root = write_model(tmp_path / "m.safetensors"), write_dataset(tmp_path / "data")
    for index in range(4):
        mask = torch.zeros(3, 2, 2)
        mask[:, 0] = 1
        write_record(root / "loss_masks" / f"clip_{index}.safetensors", {"mask": mask})
    blocks = {
        "video": {"is_generated": True, "latents_dir": "latents", "loss_mask_dir": "loss_masks"},
        "audio": {"is_generated": True, "latents_dir": "audio_latents"},
    }
    found = {}
    for balance in (False, True):
        strategy = {"name": "flexible", "balance": balance, **blocks}
        trainer = LtxvTrainer(make_config(model, root, tmp_path / f"{balance}", training_strategy=strategy))
        batch = collate([trainer.dataset[0], trainer.dataset[1]])
        batch["audio_latents"]["latents"] *= 10
        losses = trainer.objective(batch, step_draws("cpu", 0))
        found[balance] = {name: float(value) for name, value in losses.items()}
    assert found[False]["loss"] == pytest.approx(found[False]["loss_video"] + found[False]["loss_audio"])
    assert found[True]["loss_audio"] == found[False]["loss_audio"] > 20, "shown as it is"
    assert 1 < found[True]["loss"] < 4, "a random model is about as far off as what it should say"
    assert (
        LtxvTrainer(make_config(model, root, tmp_path / "run", training_strategy=strategy)).train(live=False).step == 3
    )


def test_keyframes_are_encoded_each_alone(tmp_path):
    film(tmp_path / "film.mp4")
    row, directories = {"video": "film.mp4", "caption": "a film"}, ("conditions", "latents", "keyframe_latents")
    root = prepared(tmp_path, row, directories, keyframes=[-1, 0, 8, 5])
    record = read_record(root / "keyframe_latents" / "film.safetensors")
    assert record["frames"].tolist() == [0, 5, 8], "the last is the eighth"
    frames, dtype = list(read_frames(tmp_path / "film.mp4")), ProcessingOptions(device="cpu").dtype
    encoder = MODELS.build("video_encoder", dtype, "cpu")
    for place, frame in enumerate((0, 5, 8)):
        with torch.no_grad():
            alone = encoder((frames[frame].movedim(-1, 0)[None, :, None].float() / 127.5 - 1).to(dtype))
        assert torch.equal(record["latents"][:, place : place + 1], alone[0].bfloat16())
    assert not check_dataset(tmp_path / "table.json").lines()
    prepared(tmp_path, row, directories, keyframes=[0])
    assert read_record(root / "keyframe_latents" / "film.safetensors")["frames"].tolist() == [0], "made again"


def test_keyframes_that_are_not_there_are_refused(tmp_path):
    film(tmp_path / "film.mp4")
    row = {"video": "film.mp4", "caption": "a film"}
    with pytest.raises(ConfigError, match=r"keyframes name frame 9, bucket 64x64x9 has 9 frames"):
        prepared(tmp_path, row, keyframes=[0, 9])
