"""Clips that are encoded when they are first drawn: the run is that over prepared data, bit for bit."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from threading import Lock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.errors import ConfigError
from ltx_core.types import Audio
from ltx_media.writer import write_video
from ltx_trainer.auto import choose
from ltx_trainer.background import in_background
from ltx_trainer.config_file import parse_config
from ltx_trainer.data_config import DataConfig
from ltx_trainer.datasets import BatchOrder, collate, read_batches
from ltx_trainer.machine import Machine, this_machine
from ltx_trainer.memory_plan import plan_memory
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import signature
from ltx_trainer.processing.lazily import Expected
from ltx_trainer.processing.prepare import open_sets
from ltx_trainer.trainer import LtxvTrainer

VIDEO_AND_SOUND = {"conditions": "conditions", "latents": "video_latents", "audio_latents": "audio_latents"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> ModelFiles:
    """The golden model with a tokenizer that pads captions to 128."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(TINY_CHECKPOINT / "gemma-3-tiny", folder / "gemma")
    settings = folder / "gemma" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 128}))
    return ModelFiles(TINY_CHECKPOINT / "ltx-2-tiny.safetensors", folder / "gemma")


def film(path: Path, frames: int = 9, fps: float = 24.0, rate: int | None = 16000, shade: int = 0) -> None:
    pictures = [torch.full((64, 64, 3), shade + 5 * index, dtype=torch.uint8) for index in range(frames)]
    sound = None
    if rate is not None:
        time = torch.arange(round(frames / fps * rate)) / rate
        sound = Audio(torch.sin(2 * math.pi * (300 + shade) * time)[None], rate)
    write_video(path, pictures, fps, sound)


@pytest.fixture
def clips(tmp_path) -> Path:
    """Four clips of two lengths, one of them silent."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for index, (frames, rate) in enumerate([(9, 16000), (17, 16000), (9, None), (9, 16000)]):
        film(folder / f"{index}.mp4", frames, rate=rate, shade=20 * index)
        (folder / f"{index}.txt").write_text(f"clip {index}")
    return folder


def config(models, clips, output, encode="lazily", steps=3, batch_size=1, **data):
    raw = {
        "model": {"model_path": str(models.model_path), "text_encoder_path": str(models.text_encoder_path)},
        "lora": {"rank": 4, "alpha": 4, "dropout": 0.1},
        "training_strategy": {
            "name": "flexible",
            "video": {"is_generated": True, "latents_dir": "latents"},
            "audio": {"is_generated": True, "latents_dir": "audio_latents"},
        },
        "optimization": {"steps": steps, "batch_size": batch_size, "learning_rate": 1e-2, "scheduler_type": "constant"},
        "acceleration": {"mixed_precision_mode": "no"},
        "data": {
            "sets": [{"path": str(clips), "resolution": "64x64x9;64x64x17"}],
            "num_dataloader_workers": 0,
            "encode": encode,
            **data,
        },
        "validation": {"interval": None},
        "checkpoints": {"precision": "float32", "save_training_state": "full"},
        "output_dir": str(output),
    }
    return parse_config(raw)


def run(*arguments, **options):
    result = LtxvTrainer(config(*arguments, **options)).train(live=False)
    return load_file(result.weights)


def made(clips: Path, directory: str = "latents") -> set[str]:
    return {path.stem for path in (clips / ".precomputed" / directory).glob("[!.]*")}


def test_a_lazy_run_is_the_run_over_prepared_data_and_goes_on_from_its_cache(models, clips, tmp_path, caplog):
    other = shutil.copytree(clips, tmp_path / "other" / "clips")
    ahead = run(models, clips, tmp_path / "ahead", "ahead", steps=5, batch_size=2)
    run(models, other, tmp_path / "lazy", steps=2, batch_size=2, num_dataloader_workers=2)
    assert made(other, "conditions") == {"0", "1", "2", "3"}, "captions are encoded ahead"
    lazy = run(models, other, tmp_path / "lazy", steps=5, batch_size=2)
    with caplog.at_level("INFO"):
        trainer = LtxvTrainer(config(models, other, tmp_path / "lazy", "ahead", steps=6, batch_size=2))
    assert trainer.fingerprint().items() <= trainer._resumed_from.items(), "either way goes on from the other"
    assert " latents: 0 written, 4 already there" in caplog.text, "what a lazy run made is what a prepared set holds"
    assert ahead.keys() == lazy.keys() and all(torch.equal(ahead[name], lazy[name]) for name in ahead)
    for directory in ("conditions", "latents", "audio_latents"):
        for path in sorted((clips / ".precomputed" / directory).iterdir()):
            left, right = load_file(path), load_file(other / ".precomputed" / directory / path.name)
            assert all(torch.equal(left[name], right[name]) for name in left)


def test_nothing_is_encoded_before_it_is_drawn(models, clips, tmp_path):
    trainer = LtxvTrainer(config(models, clips, tmp_path / "out", steps=1, held_out_samples=1))
    assert not made(clips) and trainer._encoded() == "0/4 encoded"
    trainer.train(live=False)
    assert len(made(clips)) == 1 and trainer._encoded() == "1/4 encoded"
    assert len(list(trainer.held_out_batches())) == 1 and len(made(clips)) == 2


@pytest.mark.parametrize("step", ["fitted_frames", "encode_clips"])
def test_encoders_that_do_not_fit_end_in_advice(models, clips, tmp_path, monkeypatch, step):
    def full(*arguments):
        raise torch.OutOfMemoryError("no room")

    trainer = LtxvTrainer(config(models, clips, tmp_path / "out"))
    monkeypatch.setattr(f"ltx_trainer.processing.video_stages.{step}", full)
    with pytest.raises(ConfigError, match=r"latents: out of memory; .*; data\.encode: ahead encodes before"):
        trainer.train(live=False)


def test_clips_of_all_sets_are_encoded_one_at_a_time_and_the_encoders_go(models, clips, tmp_path, monkeypatch):
    other = shutil.copytree(clips, tmp_path / "other" / "clips")
    sets = [{"path": str(path), "resolution": "64x64x9"} for path in (clips, other)]
    data = DataConfig.model_validate({"sets": sets, "encode": "lazily"})
    dataset = open_sets(data, models, VIDEO_AND_SOUND, "cpu", lambda: None)
    make, one = Expected.make, Lock()
    networks = [next(iter(member.waiting.values())).work.networks for member in dataset.members]
    seen = []

    def alone(expected):
        assert one.acquire(blocking=False), "two clips at once"
        make(expected)
        seen.append(set(networks[0]))
        one.release()

    monkeypatch.setattr(Expected, "make", alone)
    assert len(list(in_background(dataset.__getitem__, (0, 4, 1, 5, 2, 6, 3, 7), workers=4))) == 8
    assert networks[0] is networks[1] and not networks[0]
    assert seen == [{"video_encoder", "audio_encoder"}] * 8


@pytest.mark.parametrize("encode", ["ahead", "lazily"])
def test_a_process_may_have_no_clip_of_its_own(models, clips, monkeypatch, encode):
    data = DataConfig.model_validate({"sets": [{"path": str(clips), "resolution": "64x64x9"}], "encode": encode})

    def others():
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
        ahead = data.model_copy(update={"encode": "ahead"})
        open_sets(ahead, models, VIDEO_AND_SOUND, "cpu", lambda: None)

    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert len(open_sets(data, models, VIDEO_AND_SOUND, "cpu", others)) == 4


def test_another_clip_or_caption_is_refused_on_resume(models, clips, tmp_path):
    run(models, clips, tmp_path / "out", steps=1)
    film(clips / "3.mp4", 9, shade=99)
    with pytest.raises(ConfigError, match=r"clips was 4 examples \w+ and is now 4 examples"):
        run(models, clips, tmp_path / "out", steps=2)


def test_broken_clips(models, clips, tmp_path, caplog):
    (clips / "0.mp4").write_bytes(b"junk" * 100)  # known at the start
    whole = (clips / "3.mp4").read_bytes()
    trainer = LtxvTrainer(config(models, clips, tmp_path / "out", steps=4))
    assert len(trainer.dataset) == 3
    report = (clips / ".precomputed" / "report.txt").read_text()
    assert report.count("skipped latents/0: ") == 1 and "3 of 4 clips are encoded when they are first drawn" in report
    film(clips / "1.mp4", 9)  # found when they are drawn: shorter than its header said, and cut off
    (clips / "3.mp4").write_bytes(whole[: len(whole) // 3])
    assert trainer.train(live=False).step == 4
    assert (
        caplog.text.count("1 is left out, another clip of its size takes its place: latents are not of the size") == 1
    )
    assert caplog.text.count("3 is left out, another clip of its size takes its place: ") == 1
    assert made(clips) == made(clips, "audio_latents") == {"2"}
    order = BatchOrder(((0, 1, 2),), 1, 0)
    batches = read_batches(trainer.dataset, order, workers=0)
    assert [int(next(batches)["idx"][0]) for _ in range(6)] == [1] * 6


COLUMNS = {"video": "{}.mp4", "caption": "clip {}"}
FULL = {"reference_video": "reference.mp4", "video_mask": "mask.png", "loss_mask": "mask.png"}


def changes(report: str) -> set[str]:
    """What a report says of sources that were changed, and of sizes and rates."""
    return {line.partition(", such as")[0] for line in report.splitlines() if re.search("changed|bucket|rates", line)}


PICTURES = ("latents", "reference_latents", "keyframe_latents", "video_masks", "loss_masks")


@pytest.mark.parametrize("options", [
    {"resolution": "64x64x9;64x64x17", "fps": 21.0},
    {"resolution": "128x64x9;64x64x9;64x64x1", "long_clips": "chunks", "keyframes": (-1, 0)},
])  # fmt: skip
def test_headers_tell_what_records_will_look_like(models, tmp_path, options):
    for index, (frames, fps, rate) in enumerate([(17, 24.0, 44100), (25, 30.0, 16000), (18, 24.0, None)]):
        film(tmp_path / f"{index}.mp4", frames, fps, rate, shade=10 * index)
    film(tmp_path / "reference.mp4", 33, rate=None)
    Image.new("L", (64, 64), 200).save(tmp_path / "mask.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    rows = [{key: text.format(index) for key, text in COLUMNS.items()} | FULL for index in range(3)]
    rows[2]["reference_video"] = "still.png"
    if options["resolution"].endswith("x1"):
        rows.append({**rows[0], "video": "still.png", "reference_video": "still.png"})
    (tmp_path / "table.json").write_text(json.dumps(rows))
    one = {"path": str(tmp_path / "table.json"), "keyframes": (0, 3, -1), **options}
    data = DataConfig.model_validate({"sets": [one], "encode": "lazily"})
    sources = {name: name for name in ("conditions", "audio_latents", *PICTURES)}
    dataset = open_sets(data, models, sources, "cpu", lambda: None)
    (lazy,) = dataset.members
    waiting = len(dataset)
    assert waiting >= len(rows) and dataset.num_waiting == waiting
    told = [dataset.signature(index) for index in range(waiting)]
    for index in range(waiting):
        collate([dataset[index]])
        assert dataset.signature(index) == told[index]
        files = lazy.examples[index].items()
        assert told[index] == tuple(signature(lazy.root / name / path) for name, path in files)
    report = (lazy.root / "report.txt").read_text()
    assert not dataset.num_waiting and not open_sets(data, models, sources, "cpu", lambda: None).num_waiting
    shutil.rmtree(lazy.root)
    open_sets(data.model_copy(update={"encode": "ahead"}), models, sources, "cpu", lambda: None)
    assert changes(report) == changes((lazy.root / "report.txt").read_text()) != set()


def test_auto_is_lazy_where_the_encoders_fit(models, clips, tmp_path, caplog):
    asked = config(models, clips, tmp_path / "out", "ahead")
    lazy = config(models, clips, tmp_path / "out", "lazily")
    needed = [plan_memory(one).device for one in (asked, lazy)]
    assert needed[0] < needed[1] and any("encoders" in line for line in plan_memory(lazy).lines())
    with caplog.at_level("INFO"):
        for free, expected in ((needed[1] / 0.9 + 1, "lazily"), (needed[0] / 0.9 + 1, "ahead")):
            chosen = choose(asked, (("data", "encode"),), Machine("cpu", int(free), this_machine().mixed))
            assert chosen.data.encode == expected
    assert caplog.text.count("their encoders do not fit beside the transformer") == 1
