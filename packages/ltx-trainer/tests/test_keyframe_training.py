"""Pictures as conditions: training sees the tokens that generation makes of a keyframe, and learns the others."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT
from tests.tiny_training import FRAMES, SIDE, make_config, write_dataset, write_model

from ltx_core.conditioning.tools import latent_tools
from ltx_core.conditioning.types.keyframe_cond import VideoConditionByKeyframeIndex
from ltx_core.errors import ConfigError
from ltx_core.model.transformer.modality import Modality
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape
from ltx_media.writer import write_video
from ltx_trainer.data_config import DataSetConfig
from ltx_trainer.datasets import PrecomputedDataset, collate
from ltx_trainer.draws import step_draws
from ltx_trainer.held_out import FixedSigma
from ltx_trainer.memory_plan import expected_tokens, pictures_read, plan_memory
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import write_record
from ltx_trainer.processing.options import ProcessingOptions
from ltx_trainer.processing.prepare import prepare_set
from ltx_trainer.trainer import LtxvTrainer
from ltx_trainer.training_strategies.config import FlexibleConfig
from ltx_trainer.training_strategies.strategies import FlexibleStrategy
from ltx_trainer.validation_config import SampleKeyframeImage, ValidationConfig
from ltx_trainer.validation_media import Studio
from ltx_trainer.validation_sampler import PreparedSample, ValidationSampler, keyframes_of

MODELS = ModelFiles.of(TINY_CHECKPOINT / "ltx-2-tiny.safetensors", TINY_CHECKPOINT / "gemma-3-tiny")
FACTORS = SpatioTemporalScaleFactors.default()
SIGMA = 0.5


def video(*conditions):
    return {"is_generated": True, "latents_dir": "latents", "conditions": list(conditions)}


def picture(frame, **options):
    return {"type": "keyframe_image", "frame": frame, **options}


def inputs_of(batch, *conditions, seed=0, causal=True):
    config = FlexibleConfig.model_validate({"name": "flexible", "video": video(*conditions)})
    strategy = FlexibleStrategy(FixedSigma(SIGMA), FACTORS, config, causal=causal)
    return strategy.prepare_training_inputs(batch, step_draws("cpu", seed)).modalities["video"]


def batch_of(*frames, fps=24.0):
    """Examples of 3 latent frames of 2 x 2 with pictures at ``frames``."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 3, 2, 2, generator=generator)
    pictures = torch.randn(2, 16, len(frames), 2, 2, generator=generator)
    return {
        "video_latents": {"latents": latents, "fps": torch.tensor([fps, fps], dtype=torch.float64)},
        "keyframe_latents": {"latents": pictures, "frames": torch.tensor([frames, frames])},
    }


@pytest.mark.parametrize("fps", [24.0, 25.0, 29.97])
@pytest.mark.parametrize("causal", [True, False])
def test_tokens_and_positions_are_those_of_the_condition_of_generation(fps, causal):
    batch = batch_of(0, 5, 16, fps=fps)
    found = inputs_of(batch, picture(0), picture(-1), picture(5), causal=causal)
    tools = latent_tools(VideoPixelShape(2, 17, 64, 64, fps), ["video"], FACTORS, 16)["video"]
    tools = replace(tools, causal_fix=causal)
    state = tools.create_initial_state("cpu", torch.float32, batch["video_latents"]["latents"])
    for place, frame in ((1, 5), (2, 16), (0, 0)):  # each is put in front of those before it
        latent = batch["keyframe_latents"]["latents"][:, :, place : place + 1]
        state = VideoConditionByKeyframeIndex(latent, frame).apply_to(state, tools)

    def in_front(tensor, axis=1):
        return torch.cat(tensor.split(12, dim=axis)[::-1], dim=axis)

    assert torch.equal(found.positions, in_front(state.positions, 2))
    assert torch.equal(found.latent[:, :12], in_front(state.clean_latent)[:, :12])
    assert torch.equal(found.timesteps, in_front(state.denoise_mask)[..., 0] * SIGMA)
    assert torch.equal(found.first_frame_mask(), in_front(state.keyframes_mask))
    assert found.loss_mask[0].tolist() == [False] * 12 + [True] * 12
    assert found.targets.shape == (2, 12, 16), "the generated tokens alone"


def test_any_draws_a_frame_of_each_example():
    batch = batch_of(0, 8, 16)
    starts = [inputs_of(batch, picture("any"), seed=seed).positions[:, 0, 0, 0] * 24 for seed in range(80)]
    assert {tuple(one.round().int().tolist()) for one in starts} == {(a, b) for a in (0, 8, 16) for b in (0, 8, 16)}
    counts = [inputs_of(batch, picture("any", probability=0.5), seed=seed).reference_tokens for seed in range(30)]
    assert set(counts) == {0, 4}


def test_a_frame_without_a_picture_is_refused():
    with pytest.raises(ConfigError, match=r"asks for frame 5 of 17, keyframe_latents holds frames 0, 8, 16; data"):
        inputs_of(batch_of(0, 8, 16), picture(5))


def test_a_keyframe_by_latent_index_is_what_it_was():
    batch = batch_of(0)
    found = inputs_of(batch, {"type": "keyframe", "latent_index": -1})
    assert found.latent.shape[1] == 12 and found.loss_mask[0].tolist() == [True] * 8 + [False] * 4
    assert torch.equal(found.latent[:, 8:], batch["video_latents"]["latents"][:, :, 2].flatten(2).transpose(1, 2))


def test_a_clip_is_prepared_as_its_validation_sample_is(tmp_path):
    """From files to states: the picture of a clip, once through its record, once through a sample."""
    frames = torch.randint(0, 255, (17, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "clip.mp4", frames, 25.0)
    (tmp_path / "table.json").write_text(json.dumps([{"video": "clip.mp4", "caption": "x"}]))
    one = DataSetConfig(path=str(tmp_path / "table.json"), resolution="64x64x17", keyframes=(0, 5, -1))
    prepare_set(one, MODELS, ("conditions", "latents", "keyframe_latents"), "cpu", 0)
    sources = {"conditions": "conditions", "latents": "video_latents", "keyframe_latents": "keyframe_latents"}
    batch = collate([PrecomputedDataset(one.root, sources)[0]])
    found = inputs_of(batch, picture(-1), picture(5))

    shape, dtype = VideoPixelShape(1, 17, 64, 64, 25.0), ProcessingOptions(device="cpu").dtype
    file = str(tmp_path / "clip.mp4")
    conditions = [SampleKeyframeImage(type="keyframe_image", image_or_video=file, frame=frame) for frame in (5, 16)]
    studio = Studio(MODELS, torch.device("cpu"), dtype)
    sample = PreparedSample(shape, 0, {}, {}, tuple(studio.encode(condition, shape) for condition in conditions))
    assert keyframes_of(sample) == [5, 16]
    network = MODELS.model().build("transformer", torch.float32)
    sampler = ValidationSampler(ValidationConfig(generate_audio=False), network, FACTORS, torch.bfloat16)
    state = sampler.starts(sample)["video"].condition("cpu", torch.bfloat16)
    assert torch.equal(found.latent[:, :8].bfloat16(), state.clean_latent[:, 12:])
    assert torch.equal(found.positions[:, :, :8], state.positions[:, :, 12:])
    assert torch.equal(found.positions[:, :, 8:], state.positions[:, :, :12])


@pytest.fixture
def trainer(tmp_path):
    model, root = write_model(tmp_path / "m.safetensors"), write_dataset(tmp_path / "data")
    for index in range(4):
        record = {"latents": torch.randn(16, 3, SIDE, SIDE), "frames": torch.tensor([0, 7, 16])}
        write_record(root / "keyframe_latents" / f"clip_{index}.safetensors", record)
    strategy = {"name": "flexible", "video": video(picture(0), picture("any"))}
    return LtxvTrainer(make_config(model, root, tmp_path / "out", training_strategy=strategy))


def test_the_plan_counts_the_pictures_that_a_step_is_given(trainer, tmp_path):
    batch = collate([trainer.dataset[0], trainer.dataset[1]])
    strategy = trainer.config.training_strategy
    inputs = trainer.objective.strategy.prepare_training_inputs(batch, step_draws("cpu", 0))
    tokens = inputs.modalities["video"].latent.shape[:2].numel()
    assert plan_memory(trainer.config).tokens == tokens == 2 * (FRAMES + 2) * SIDE * SIDE
    (tmp_path / "clips.csv").write_text("video,caption\na.mp4,a\n")
    one = DataSetConfig(path=str(tmp_path / "clips.csv"), resolution="64x64x17", keyframes=(0, 8, -1))
    assert expected_tokens(one, pictures_read(strategy), FACTORS)["video"] == (FRAMES + 2) * SIDE * SIDE


def test_the_network_sees_in_training_what_it_sees_in_generation(trainer):
    batch = collate([trainer.dataset[0], trainer.dataset[1]])
    inputs = trainer.objective.strategy.prepare_training_inputs(batch, step_draws("cpu", 0))
    contexts = trainer.objective.contexts(batch["conditions"])
    given, one = 2 * SIDE * SIDE, inputs.modalities["video"]
    found = trainer.objective.predict(inputs, contexts)["video"][:, given:]

    def appended(tensor, axis):
        before, own = tensor.split((given, tensor.shape[axis] - given), dim=axis)
        return torch.cat((own, before), dim=axis)

    state = {name: appended(getattr(one, name), 1) for name in ("latent", "timesteps")}
    modality = Modality(
        sigma=one.sigma, positions=appended(one.positions, 2), context=contexts["video"], context_mask=None, **state
    )
    generated, _ = trainer.transformer(modality, None)
    torch.testing.assert_close(found, generated[:, :-given], rtol=1e-5, atol=1e-5)
    assert trainer.train(live=False).step == 3


def test_a_sample_cannot_be_given_a_picture_beyond_its_end(tmp_path):
    files = write_model(tmp_path / "model.safetensors"), write_dataset(tmp_path / "data")
    sample = {"prompt": "x", "conditions": [{"type": "keyframe_image", "image_or_video": "a.png", "frame": 17}]}
    validation = {"interval": 1, "samples": [sample], "video_dims": [64, 64, 17]}
    with pytest.raises(ConfigError, match=r"samples.0: keyframe_image frame is 17, the sample has 17 frames"):
        LtxvTrainer(make_config(*files, tmp_path / "out", validation=validation))


def test_keyframes_that_a_set_does_not_encode_are_refused_at_once(tmp_path):
    (tmp_path / "clips.csv").write_text("video,caption\na.mp4,a\n")
    model = write_model(tmp_path / "m.safetensors")

    def config(frame, *keyframes):
        one = {"path": str(tmp_path / "clips.csv"), "keyframes": list(keyframes)}
        strategy = {"name": "flexible", "video": video(picture(frame))}
        data = {"preprocessed_data_root": None, "sets": [one]}
        return make_config(model, tmp_path, tmp_path / "out", training_strategy=strategy, data=data)

    assert config(-1, 0, -1) and config("any", 0)
    for frame, keyframes in ((8, (0, -1)), ("any", ())):
        with pytest.raises(
            ConfigError, match=rf"gives frame {frame}, of .*clips.csv the keyframes \[.*name it in data"
        ):
            config(frame, *keyframes)
