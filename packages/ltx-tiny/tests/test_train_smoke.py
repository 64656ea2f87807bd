"""The whole recipe with a few steps of each stage; then the bundle is opened as any published model is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader import Checkpoint, Lora
from ltx_core.text_encoders.gemma.encoder import load_text_encoder
from ltx_core.types import AudioLatentShape, VideoPixelShape
from ltx_tiny import bundle, stages
from ltx_tiny.cli import app
from ltx_tiny.examples import FPS, VideoExamples, captions, held_out_clips
from ltx_tiny.latents import LatentClips, beginning, video_latent
from ltx_tiny.recipe import Recipe, merge, read_recipe
from ltx_tiny.train import run
from ltx_tiny.world.code import CHANNELS
from ltx_tiny.world.scene import sample_scene
from ltx_trainer.distillation import DistillSettings, adapters_off, teacher_targets
from ltx_trainer.draws import step_draws
from ltx_trainer.pretrain import transformer
from ltx_trainer.pretrain.data import Stage
from ltx_trainer.pretrain.transformer import TransformerTask, latent_sources, start_distinct

COMPONENTS = {
    *("transformer", "embeddings", "video_encoder", "video_decoder", "audio_encoder", "audio_decoder", "vocoder"),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    result = CliRunner().invoke(app, ["train", "--smoke", "--device", "cpu", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def recipe(out: Path) -> Recipe:
    return Recipe(read_recipe("smoke"), out)


def test_every_stage_leaves_a_state_curves_and_an_export(out: Path) -> None:
    for name in set(stages.STAGES) - {"latents", "bundle"}:
        assert list((out / name / "checkpoints").glob("training_state_step_*.safetensors")), name
        assert (out / name / "curves.png").is_file() and (out / name / "metrics.csv").is_file()
    for name in ("video_decoder", "video_encoder", "audio_vae", "vocoder", "transformer", "distill"):
        assert list((out / name / "samples").glob("*.png")), name


def test_a_finished_recipe_trains_nothing_again(out: Path, recipe: Recipe) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors") if "bundle" not in path.parts}
    assert run(recipe)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_bundle_opens_like_a_published_model(out: Path) -> None:
    folder = out / "bundle"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= bundle.MOST_BYTES
    checkpoint = Checkpoint.open(folder / bundle.CHECKPOINT)
    assert set(checkpoint.components) == COMPONENTS
    assert checkpoint.model_version == "2.3.0"
    for name in COMPONENTS - {"embeddings"}:
        checkpoint.build(name, torch.float32)
    assert Checkpoint.open(folder / bundle.UPSCALER).components == ("latent_upsampler",)
    encoder = load_text_encoder(folder / bundle.GEMMA, checkpoint, torch.float32, max_length=128)
    video, audio, _ = encoder(["a small red ball bounces", ""])
    assert video.shape == (2, 128, 192) and audio.shape == (2, 128, 96)
    assert not torch.equal(video[0], video[1])


def test_text_projections_start_with_features_that_do_not_go_together(recipe: Recipe) -> None:
    trainer, tokens = stages.make_trainer(recipe), stages.text_tokenizer(recipe)(captions(64, 3))
    start_distinct(trainer, tokens)
    extractor = trainer.embeddings.feature_extractor
    assert extractor is not None
    total = extractor.start(tokens.attention_mask)
    with torch.no_grad():
        trainer.backbone(tokens, total.add)
        features = total.features().video[tokens.attention_mask.bool()]
    assert features.mean(dim=0).abs().max() < 1e-2
    spread = torch.cov(features.T)
    assert spread.diagonal().median() > 0.9 and spread.diagonal().max() < 1.1
    assert (spread - spread.diagonal().diag()).abs().max() < 0.05


def test_the_adapter_fits_the_transformer(out: Path) -> None:
    lora = Lora.open(out / "bundle" / bundle.DISTILLED_LORA)
    model = Checkpoint.open(out / "bundle" / bundle.CHECKPOINT).build("transformer")
    assert lora.layers and not lora.unmatched({name for name, _ in model.named_parameters()})


def test_the_outline_adapter_fits_and_saw_drawings(out: Path, recipe: Recipe) -> None:
    lora = Lora.open(out / "bundle" / bundle.OUTLINE_LORA)
    model = Checkpoint.open(out / "bundle" / bundle.CHECKPOINT).build("transformer")
    assert lora.layers and not lora.unmatched({name for name, _ in model.named_parameters()})
    task = stages.in_context(recipe)
    batch = task.examples.batch(0)
    assert batch["reference"].shape == batch["video"].shape and not torch.equal(batch["reference"], batch["video"])
    assert task.module(batch, step_draws("cpu", 1))["loss_video"] > 0


def test_a_later_picture_is_given_as_generation_gives_it(recipe: Recipe) -> None:
    modes = [mode for mode in recipe.stage("transformer")["modes"] if "keyframe_image" in str(mode)]
    trainer = stages.make_trainer(recipe, recipe.exported_file("transformer"), modes)
    batch = stages.latent_examples(recipe, "transformer", 0.0)[0].batch(1)
    number, picture = int(batch["keyframe_number"]), batch["keyframe"]
    assert 0 < number < batch["video"].shape[2] * 8 and picture.shape[2] == 1
    inputs = trainer.strategies[0].prepare_training_inputs(latent_sources(batch, trainer.device), step_draws("cpu", 1))
    given = inputs.modalities["video"]
    count = picture.shape[3] * picture.shape[4]
    assert torch.equal(given.latent[:, :count], picture.flatten(2).mT)
    assert torch.all(given.positions[:, 0, :count] * FPS == torch.tensor([number, number + 1.0]))
    scene = sample_scene(np.random.default_rng(2))
    assert torch.equal(video_latent(scene, 1, 64), video_latent(scene, 9, 64)[:, :1])
    assert not torch.equal(video_latent(scene, 1, 64, 8), video_latent(scene, 1, 64))


def test_the_exported_transformer_comes_back_whole(recipe: Recipe) -> None:
    trainer = stages.make_trainer(recipe, recipe.exported_file("transformer"))
    checkpoint = Checkpoint.open(recipe.exported_file("transformer"))
    for name, tensor in checkpoint.build("transformer").state_dict().items():
        assert torch.equal(trainer.transformer.get_parameter(name), tensor)


def test_student_starts_as_the_teacher_and_walks_only_with_the_adapter_off(recipe: Recipe) -> None:
    task = stages.distill(recipe)
    distiller, batch = task.module, task.examples.batch(0)
    inputs = distiller.trainer.at_sigma(batch, 0.9, step_draws("cpu", 1))
    contexts = distiller.trainer.contexts(batch)
    with torch.no_grad():
        student = distiller.trainer.predict(inputs, contexts)["video"]
        for name, parameter in distiller.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        assert not torch.equal(distiller.trainer.predict(inputs, contexts)["video"], student)
        with adapters_off(distiller.trainer.transformer):
            both = contexts, contexts
            span = torch.tensor([0.9]), torch.tensor([0.6])
            target = teacher_targets(distiller.trainer.predict, inputs, span, both, DistillSettings(substeps=1))
    assert torch.allclose(target["video"], student, atol=1e-5)


def test_modes_that_need_longer_clips_are_left_out(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    task = stages.transformer(recipe)
    assert isinstance(task, TransformerTask)
    seen: list[list[float]] = []
    monkeypatch.setattr(transformer, "pick", lambda at, weights: seen.append(list(weights)) or 0)
    for position, frames, heard in ((0, 2, 9), (1, 5, 33)):  # the stages of the smoke recipe
        batch = task.examples.batch(position)
        assert batch["video"].shape[2] == frames and batch["audio"].shape[2] == heard
        task.module(batch, step_draws("cpu", 1))
    assert seen == [[0.5, 0.0, 0.0, 0.1, 0.05, 0.0], [0.5, 0.15, 0.1, 0.1, 0.05, 0.1]]


def test_the_beginning_of_a_clip_has_as_much_sound_as_is_generated() -> None:
    audio = torch.arange(50.0).view(1, 50, 1)
    assert beginning(audio, 9).flatten().tolist() == list(range(9))
    shape = AudioLatentShape.from_video_pixel_shape(VideoPixelShape(1, 49, 256, 256, FPS))
    assert torch.equal(beginning(audio, 49), audio[:, : shape.frames])


def test_latents_are_kept_and_never_held_out_in_training(recipe: Recipe) -> None:
    from ltx_tiny.world.scene import split

    for part in ("train", "held_out", "long"):
        clips = LatentClips.open(recipe.out / "latents", part)
        assert len(clips.clips) == recipe.stage("latents")["counts"][part]
        assert {split(scene) for _, scene in clips.clips} == {"train" if part == "long" else part}


def test_long_clips_have_long_motions_and_sounds(recipe: Recipe) -> None:
    examples = stages.latent_examples(recipe, "transformer", 0.0)[0]
    long = examples.make(0, 0, Stage(1, 1, frames=57, side=128))  # the smoke recipe's clips have 33 frames
    assert long["video"].shape[1] == 8 and long["audio"].shape[1] == AudioLatentShape.from_duration(1, 57 / FPS).frames
    (_, scene), *_ = LatentClips.open(recipe.out / "latents", "long").clips
    assert scene.seconds > 3.9


def test_video_examples_are_a_function_of_position() -> None:
    make, stage = VideoExamples(3), Stage(1, 1, frames=9, side=64)
    assert torch.equal(make(5, 1, stage)["video"], make(5, 1, stage)["video"])
    assert make(5, 1, stage)["video"].shape == (3, 9, 64, 64)
    assert not torch.equal(make(5, 1, stage)["video"], make(5, 2, stage)["video"])
    held_out = held_out_clips(2, 9, 32)
    assert held_out["video"].shape == (2, 3, 9, 32, 32) and held_out["code"].shape[2:] == (2, 1, 1)


def test_hard_clips_are_as_many_as_asked_for() -> None:
    def moving_stages(share: float) -> int:
        """Of 24 clips those whose camera moves: half of the hard ones, or more."""
        make, stage, where = (
            VideoExamples(3, hard_share=share),
            Stage(1, 1, frames=9, side=64),
            CHANNELS.index("stage x"),
        )
        return sum(not torch.equal(*make(0, slot, stage)["code"][where]) for slot in range(24))

    assert moving_stages(0.0) < 10 < moving_stages(1.0)


def test_a_part_of_a_picture_is_one_near_the_body() -> None:
    make, stage = VideoExamples(3), Stage(1, 1, frames=9, side=256, window=128)
    parts = [make(0, slot, stage) for slot in range(16)]
    assert all(part["video"].shape == (3, 9, 128, 128) and part["code"].shape[1:] == (2, 4, 4) for part in parts)
    near = [part["code"][CHANNELS.index("near")].max() for part in parts]
    assert sum(value > 0.5 for value in near) >= 14  # one that blinks may be gone


def test_overlays_replace_values_and_keep_the_rest() -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"c": [5]}}) == {"a": {"b": 1, "c": [5]}, "d": 3}
    for overlay in (None, "gpu", "smoke"):
        recipe = Recipe(read_recipe(overlay), Path())
        assert all(recipe.settings(name).steps > 0 for name in set(stages.STAGES) - {"latents", "bundle"})


def test_wrong_stages_and_missing_forerunners_are_named(tmp_path: Path) -> None:
    recipe = Recipe(read_recipe("smoke"), tmp_path)
    with pytest.raises(ConfigError, match="stage is 'vae', expected one of video_decoder"):
        run(recipe, ["vae"])
    with pytest.raises(ConfigError, match="holds no file of stage gemma"):
        run(recipe, ["transformer"])


def test_a_package_without_weights_says_how_to_make_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle, "WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match="ltx tiny train"):
        bundle.model_folder()
    (tmp_path / bundle.CHECKPOINT).touch()
    assert bundle.model_folder() == tmp_path


def test_a_component_of_the_packaged_weights_is_reused_as_it_is(tmp_path: Path) -> None:
    config = read_recipe()["config"]
    packaged = Checkpoint.open(bundle.model_folder() / bundle.CHECKPOINT).build("vocoder", torch.float32)
    path = bundle.reuse("vocoder", config, tmp_path)  # whose blocks have a convolution more
    mel = torch.randn(1, 2, 8, 64, generator=torch.Generator().manual_seed(1)) - 5
    with torch.no_grad():
        assert torch.allclose(Checkpoint.open(path).build("vocoder", torch.float32)(mel), packaged(mel), atol=1e-6)
    with pytest.raises(CheckpointError, match="expected audio_vae or vocoder"):
        bundle.reuse("video_encoder", config, tmp_path)
