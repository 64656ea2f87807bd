"""The bundled weights are read by everything that reads published models, strictly, and fit into their 48 MB."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ltx_core.loader import Checkpoint, Lora
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.text_encoders.gemma.encoder import load_text_encoder
from ltx_core.text_encoders.gemma.enhance import load_enhancer
from ltx_media.video import read_frames
from ltx_pipelines.cli.app import run
from ltx_pipelines.running.model_facts import PromptWorld
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.running.preview import beside, find_map
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_tiny import bundle
from ltx_tiny.cli import app
from ltx_tiny.preview import encode
from ltx_tiny.recipe import read_recipe
from ltx_tiny.world.captions import prompt_world
from ltx_trainer.pretrain.task import STATISTICS

NETWORKS = ("transformer", "video_encoder", "video_decoder", "audio_encoder", "audio_decoder", "vocoder")


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the weights lie. Fails where they are missing: they are part of the package."""
    return bundle.model_folder()


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder / bundle.CHECKPOINT)


def test_a_plan_counts_the_tokens_that_prompts_are_padded_to(folder: Path) -> None:
    ledger = ModelLedger(find_model("tiny").files, device="cpu")
    assert ledger.text_tokens == 128 == ledger.texts.contexts(["a ball"])[0].video.shape[1]


def weight_files(folder: Path) -> Iterator[SafetensorsFile]:
    return map(SafetensorsFile, sorted(folder.rglob("*.safetensors")))


def test_the_folder_holds_what_it_should_and_no_more(folder: Path) -> None:
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    gemma = {f"{bundle.GEMMA}/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    adapters = {bundle.DISTILLED_LORA, bundle.OUTLINE_LORA}
    assert {bundle.CHECKPOINT, bundle.UPSCALER} | adapters | gemma <= set(files)
    assert sum(files.values()) <= bundle.MOST_BYTES == 48_000_000
    project = Path(bundle.__file__).parents[2] / "pyproject.toml"
    patterns = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]["ltx_tiny"]
    unpackaged = [name for name in files if not any(fnmatch(f"weights/{name}", pattern) for pattern in patterns)]
    assert not unpackaged


def test_every_network_builds_strictly(checkpoint: Checkpoint, folder: Path) -> None:
    assert set(checkpoint.components) == {*NETWORKS, "embeddings"}
    for name in NETWORKS:
        network = checkpoint.build(name, torch.float32)
        assert all(parameter.device.type == "cpu" for parameter in network.parameters()), name
    upscaler = Checkpoint.open(folder / bundle.UPSCALER)
    assert upscaler.components == ("latent_upsampler",)
    upscaler.build("latent_upsampler")
    encoder = load_text_encoder(folder / bundle.GEMMA, checkpoint, torch.float32)
    video, audio, _ = encoder(["a small red ball bounces", "a large blue star spins"])
    assert torch.isfinite(video).all() and torch.isfinite(audio).all() and not torch.equal(video[0], video[1])


def test_every_tensor_is_finite_and_no_larger_than_needed(folder: Path) -> None:
    for file in weight_files(folder):
        for name in file.tensors:
            tensor = file.read(name)
            assert torch.isfinite(tensor.float()).all(), f"{file.path.name}: {name}"
            kept = STATISTICS in name
            assert kept or tensor.dtype.itemsize == 2, f"{file.path.name}: {name} is {tensor.dtype}"


def test_the_distilled_adapter_fits_every_layer_it_names(checkpoint: Checkpoint, folder: Path) -> None:
    lora = Lora.open(folder / bundle.DISTILLED_LORA)
    names = {name for name, _ in checkpoint.build("transformer").named_parameters()}
    assert lora.layers and not lora.unmatched(names)


def test_it_is_found_like_any_folder(folder: Path) -> None:
    by_name, by_path = find_model("tiny"), find_model(str(folder))
    assert by_name == by_path and not by_name.is_distilled
    files = by_name.files
    assert Path(files.checkpoint).name == bundle.CHECKPOINT
    assert files.text_encoder is not None and Path(files.text_encoder).name == bundle.GEMMA
    assert files.spatial_upsampler is not None and Path(files.spatial_upsampler).name == bundle.UPSCALER
    assert [Path(lora.path).name for lora in by_name.distilled_loras] == [bundle.DISTILLED_LORA]


def test_the_metadata_is_that_of_published_files_and_what_the_model_asks_for(checkpoint: Checkpoint) -> None:
    assert json.loads(checkpoint.metadata["config"]) == read_recipe()["config"]
    assert checkpoint.model_version == "2.3.0"
    world = PromptWorld.read(checkpoint.metadata["prompt_world"], checkpoint.where)
    assert world == PromptWorld.read(json.dumps(prompt_world()), "the package")
    assert world.holds(checkpoint.metadata["demo_prompt"])


def test_a_prompt_alone_is_asked_as_the_model_was_trained() -> None:
    plan = TI2VidTwoStagesPipeline.from_pretrained("tiny").plan(prompt="a ball bounces")
    assert (plan.shape.height, plan.shape.width, plan.shape.frames, plan.shape.fps) == (256, 256, 49, 25.0)
    assert plan.stages[0].passes() == 2 and plan.stages[1].passes() == 1  # no pass that perturbs or isolates


def test_the_commands_read_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["model"] == "tiny" and row["folder"] == str(folder) and 0 < row["on_disk"] <= 0.048
    for path in (folder / bundle.CHECKPOINT, folder / bundle.UPSCALER, folder / bundle.DISTILLED_LORA):
        assert run(["inspect", str(path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts.get("adapter") or facts["components"]
    assert run(["inspect", str(folder / bundle.CHECKPOINT)]) == 0
    assert "transformer" in capsys.readouterr().out
    assert run(["plan", "a ball bounces"]) == 0
    assert "256 x 256, 49 frames" in capsys.readouterr().out


def test_a_short_prompt_is_answered_with_one_that_says_more(folder: Path, checkpoint: Checkpoint) -> None:
    enhancer = load_enhancer(folder / bundle.GEMMA, torch.float32, images=False)
    world = PromptWorld.read(checkpoint.metadata["prompt_world"], checkpoint.where)
    for asked, kept in (
        ("a star that bounces", ("star", "bounces")),
        ("a blue box on a white stage", ("blue", "white")),
    ):
        said = enhancer.enhance_t2v(asked)
        assert all(word in said for word in (*kept, "camera")) and world.holds(said), said


def test_a_drawing_is_written_with_the_line_that_makes_a_clip_of_it(tmp_path: Path) -> None:
    drawing = tmp_path / "drawing.mp4"
    said = CliRunner().invoke(app, ["draw", "-o", str(drawing), "--seed", "3"])
    assert said.exit_code == 0, said.output
    frames = torch.stack(list(read_frames(drawing)))
    assert frames.shape == (49, 256, 256, 3) and 0.005 < float((frames > 128).float().mean()) < 0.1
    assert CliRunner().invoke(app, ["draw", "-o", str(drawing)]).exit_code == 1  # it is there already
    line = shlex.split(said.output.splitlines()[-1])
    assert line[:2] == ["ltx", "ic-lora"] and Path(line[line.index("--lora") + 1]).is_file()
    small = ["--height", "128", "--width", "128", "--num-frames", "9"]
    assert run([*line[1:-1], str(tmp_path / "clip.mp4"), *small]) == 0 and (tmp_path / "clip.mp4").is_file()


def test_the_bundled_preview_map_fits_the_bundled_vae() -> None:
    ledger = ModelLedger(find_model("tiny").files, device="cpu")
    preview = find_map(ledger)
    assert preview is not None and beside(ledger).is_file(), "the VAE has changed: run `ltx tiny preview`"
    latent, frames = next(encode(ledger, range(1000, 1001), length=9))  # none of the scenes it was fitted on
    error = (preview.frames(latent, 9) / 255 - frames).square().mean()
    spread = (frames - frames.mean((0, 1, 2))).square().mean()
    assert error < spread / 3, "a picture of one colour would be as near"
