"""From Python: what can be imported, given and done with the result, and what is refused in which words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ltx_pipelines
from ltx_core.errors import CheckpointError, ConfigError, MediaError
from ltx_media.images import picture_file
from ltx_pipelines import DistilledPipeline, Generation, ImageCondition, TI2VidOneStagePipeline
from ltx_pipelines.cli.app import run
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.running.recipe import without_folders
from ltx_pipelines.utils.media_io import decode_image, probe_video, read_recipe

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 9, "seed": 3}


@pytest.fixture(scope="module")
def pipeline(small_model: Path) -> DistilledPipeline:
    return DistilledPipeline.from_pretrained(small_model, device="cpu", policy="resident")


@pytest.fixture(scope="module")
def made(pipeline: DistilledPipeline) -> Generation:
    return pipeline("a bell", **SMALL)


def test_exports_are_found_and_imported_when_used() -> None:
    assert all(getattr(ltx_pipelines, name).__doc__ for name in ltx_pipelines.__all__)
    program = "import sys, ltx_pipelines as p; p.DistilledPipeline, p.Plan; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_result_says_what_it_is_and_reads_twice(made: Generation) -> None:
    said = "<Generation: 9 frames of 64 x 64, 0.38 s at 24 fps, DistilledPipeline, seed 3>"
    assert repr(made) == said
    assert made.video is not None and made.audio is not None
    first, second = made.video.tensor(), torch.cat(list(made.video))
    assert first.shape == (9, 64, 64, 3) and torch.equal(first, second)
    assert str(made._repr_html_()).startswith("<video controls loop src=")


def test_saving(made: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.save(tmp_path / "new" / "bell.mp4")
    assert probe_video(path).frames == 9 and probe_video(path).has_audio
    assert read_recipe(path) == without_folders(made.recipe, path)
    assert read_recipe(made.save(path, absolute_paths=True)) == made.recipe
    made.save(tmp_path / "bell.gif")
    made.save(str(tmp_path / "frames"))
    assert len(list((tmp_path / "frames").glob("*.png"))) == 9
    with pytest.raises(MediaError, match="nearest valid: bell"):
        made.save(tmp_path / "bell.avi")
    monkeypatch.chdir(tmp_path)
    assert run(["rerun", str(path), "--trust", "--seed", "4", "-o", "other.mp4", "-q"]) == 0
    recipe = read_recipe(tmp_path / "other.mp4")
    assert recipe is not None and recipe["plan"]["seed"] == 4 and recipe["plan"]["prompt"] == "a bell"
    assert recipe["plan"]["stages"][0]["shape"] == made.recipe["plan"]["stages"][0]["shape"]


PICTURE = (torch.arange(64 * 64 * 3).view(64, 64, 3) % 251).to(torch.uint8)


@pytest.mark.parametrize(
    "picture",
    [
        PICTURE,
        PICTURE.movedim(-1, 0) / 255,
        PICTURE.numpy(),
        Image.fromarray(PICTURE.numpy()),
        (PICTURE / 255)[None].movedim(-1, 1),
    ],
    ids=["uint8", "float [3, H, W]", "array", "PIL", "[1, 3, H, W]"],
)
def test_pictures_as_values(picture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = picture_file(picture)
    assert path.is_relative_to(tmp_path) and torch.equal(decode_image(path), PICTURE)
    assert picture_file(picture) == path and len(list(path.parent.iterdir())) == 1


def test_images_in_every_form(pipeline: DistilledPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photo = tmp_path / "photo.png"
    Image.fromarray(PICTURE.numpy()).save(photo)
    held = str(picture_file(PICTURE))

    def conditions(images: Any) -> list[ImageCondition]:
        return list(pipeline.plan("a bell", **SMALL, images=images).stages[0].streams["video"].conditions)

    assert conditions(photo) == conditions([str(photo)]) == [ImageCondition(str(photo))]
    assert conditions((photo, 8, 0.5)) == [ImageCondition(str(photo), 8, 0.5)]
    assert conditions(PICTURE) == [ImageCondition(held)]
    assert conditions([(Image.fromarray(PICTURE.numpy()), 8, 0.5), {"path": photo, "crf": 0}]) == [
        ImageCondition(held, 8, 0.5),
        ImageCondition(str(photo), crf=0),
    ]
    for wrong, said in ((torch.zeros(4, 4), r"images hold Tensor \[4, 4\]"), (object(), "images hold object")):
        with pytest.raises(ConfigError, match=said):
            conditions(wrong)
    with pytest.raises(ConfigError, match="goes from -1 to 0, expected floats in"):
        conditions(np.linspace(-1, 0, 48).reshape(4, 4, 3))


def test_a_generator_gives_the_seed_and_goes_on(pipeline: DistilledPipeline) -> None:
    def seeds() -> list[int]:
        generator = torch.Generator().manual_seed(5)
        asked = {key: value for key, value in SMALL.items() if key != "seed"}
        return [pipeline.plan("a bell", generator=generator, **asked).seed for _ in range(2)]

    first, second = seeds()
    assert seeds() == [first, second] and first != second
    with pytest.raises(UsageError, match="the seed is given twice"):
        pipeline.plan("a bell", generator=torch.Generator(), **SMALL)
    with pytest.raises(ConfigError, match=r"generator is int, expected a torch\.Generator"):
        pipeline.plan("a bell", generator=5)


def test_precision_and_device(small_model: Path) -> None:
    pipeline = TI2VidOneStagePipeline.from_pretrained(
        small_model, torch_dtype=torch.float32, device=torch.device("cpu")
    )
    assert pipeline.ledger.dtype == torch.float32
    before = pipeline.ledger
    assert pipeline.to("cpu", torch.bfloat16) is pipeline and pipeline.ledger is not before
    assert pipeline.to(torch.float32).ledger.dtype == torch.float32
    with pytest.raises(ConfigError, match="device is 'cuda:63', which cannot be used"):
        pipeline.to("cuda:63")
    with pytest.raises(ConfigError, match="dtype is 'float8', expected one of"):
        pipeline.to(dtype="float8")


def test_parts_of_a_model_from_other_files(small_model: Path, tmp_path: Path) -> None:
    found = TI2VidOneStagePipeline.from_pretrained(small_model).ledger.files
    vae = tmp_path / "vae.safetensors"
    tensors = load_file(found.checkpoint)
    from safetensors import safe_open

    with safe_open(found.checkpoint, "pt") as file:
        save_file({k: v for k, v in tensors.items() if k.startswith("vae.")}, vae, metadata=file.metadata())
    pipeline = TI2VidOneStagePipeline.from_pretrained(small_model, video_vae=vae, device="cpu")
    plan = pipeline.plan("a bell", **SMALL)
    assert plan.models.video_vae == str(vae) and plan.models.checkpoint == found.checkpoint
    split = TI2VidOneStagePipeline.from_pretrained(
        transformer=found.checkpoint, text_encoder=found.text_encoder, video_vae=vae, audio_vae=found.checkpoint
    )
    assert split.plan("a bell", **SMALL).models.text_encoder == found.text_encoder
    with pytest.raises(CheckpointError, match="audio_vae is nowhere, which does not exist"):
        TI2VidOneStagePipeline.from_pretrained(small_model, audio_vae="nowhere")
    with pytest.raises(UsageError, match="has no checkpoint_path"):
        TI2VidOneStagePipeline.from_pretrained(transformer=found.checkpoint, checkpoint_path=found.checkpoint)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"height": "tall"}, "height is 'tall', expected an integer"),
        ({"heigth": 64}, "DistilledPipeline has no argument heigth; nearest valid: height"),
        ({"num_frames": True}, "num_frames is True, expected an integer or AutoDuration"),
        ({"output_type": "pil"}, "output_type is 'pil', expected one of media, latent"),
        ({"sampler": "heun"}, "sampler has no effect in DistilledPipeline"),
        ({"prompt": "x"}, "the prompt is given twice"),
        ({"num_frames": 9, "duration": 2}, "the length is given twice: num_frames and duration"),
        ({"images": [None]}, "images is"),
    ],
)
def test_wrong_arguments_are_one_line(pipeline: DistilledPipeline, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        pipeline("a bell", **given)
    with pytest.raises(UsageError, match="2 values have no name, expected only prompt without one"):
        pipeline.plan("a bell", 64)
    assert "\n" not in str(error.value)


def test_wrong_settings_of_a_model_are_one_line(small_model: Path) -> None:
    for given, said in (
        ({"polcy": "auto"}, "has no argument polcy; nearest valid: policy"),
        ({"policy": "fast"}, "policy is 'fast', expected one of auto, resident, sequential, streamed"),
        ({"distilled_loras": ["a"]}, r"distilled_loras has no effect in DistilledPipeline\.from_pretrained"),
    ):
        with pytest.raises(ConfigError, match=said):
            DistilledPipeline.from_pretrained(small_model, **given)
    text = str(DistilledPipeline.from_pretrained.__doc__)
    assert "video_vae: str | None" in text and "policy: " in text and "distilled_loras" not in text


def test_bars_where_they_are_wanted(pipeline: DistilledPipeline, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline("a bell", **SMALL, output_type="latent")
    assert capfd.readouterr().err == ""
    made = pipeline("a bell", **SMALL, output_type="latent", progress=True)
    assert "denoising, stage 2" in capfd.readouterr().err and "not decoded" in repr(made)
