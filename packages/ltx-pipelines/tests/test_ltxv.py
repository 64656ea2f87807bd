"""LTX-Video 0.9.x: schedules, guidance, token levels, placement, both pipelines and the command, on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ltx_core.components.schedulers import LTX2Scheduler
from ltx_core.errors import ConditioningError, ConfigError, MediaError
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.upsampler.model import LatentUpsampler
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.video_vae import VideoDecoder, VideoEncoder
from ltx_core.types import SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape
from ltx_pipelines.ltx_video.command import LTXVRequest, ledger_for, make_recipe, run, save
from ltx_pipelines.ltx_video.media import PaddedSize, blur, crop_to_aspect, load_condition, load_source
from ltx_pipelines.ltx_video.noise import GeneratorNoise, RecordedNoise
from ltx_pipelines.ltx_video.pipeline import LTXMultiScalePipeline, LTXVideoPipeline, LTXVInputs, pipeline_for
from ltx_pipelines.ltx_video.sampler import LTXVContexts, PassSettings, TokenLevels, denoise
from ltx_pipelines.ltx_video.schedule import (
    SchedulerConfig,
    StepGuidance,
    entry_per_step,
    guidance_per_step,
    pass_levels,
)
from ltx_pipelines.ltx_video.settings import PUBLISHED, LTXVConfig, Sampling, find_config, read_config
from ltx_pipelines.ltx_video.tokens import EncodedCondition, LTXVCondition, Placement, VideoTokens
from ltx_pipelines.utils.media_io import read_frames, read_recipe
from ltx_pipelines.utils.model_ledger import ModelLedger

FACTORS = SpatioTemporalScaleFactors.default()
CHANNELS = 8
CONFIG = {
    "transformer": {
        "_class_name": "Transformer3DModel",
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 12,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "causal_temporal_positioning": True,
    },
    "vae": {
        "_class_name": "CausalVideoAutoencoder",
        "latent_channels": CHANNELS,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "patch_size": 4,
        "encoder_base_channels": 4,
        "decoder_base_channels": 4,
        "timestep_conditioning": True,
        "encoder_blocks": [["compress_all", 1], ["compress_all", 1], ["compress_all", 1]],
        "decoder_blocks": [["compress_all", 1], ["compress_all", 1], ["compress_all", 1]],
    },
    "scheduler": {"_class_name": "RectifiedFlowScheduler", "shifting": "SD3", "target_shift_terminal": 0.1},
}
UPSCALER = {"_class_name": "LatentUpsampler", "in_channels": CHANNELS, "mid_channels": 32, "num_blocks_per_stage": 1}
PLAIN = Sampling(num_inference_steps=2, guidance_scale=1.0, stg_scale=0.0, rescaling_scale=1.0)
GUIDED = replace(PLAIN, guidance_scale=3.0, stg_scale=1.0, rescaling_scale=0.7, skip_block_list=(1,))
BASE = LTXVConfig((GUIDED,), decode_timestep=0.05, decode_noise_scale=0.025, precision="float32")
TWO_PASSES = replace(
    BASE,
    pipeline_type="multi-scale",
    passes=(replace(PLAIN, timesteps=(1.0, 0.7)), replace(PLAIN, timesteps=(0.9, 0.4), tone_map_compression_ratio=0.6)),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A random checkpoint and upscaler in the published layout."""
    folder = tmp_path_factory.mktemp("ltxv")
    torch.manual_seed(0)
    parts = {
        "model.diffusion_model.": LTXModel(TransformerConfig.from_metadata(CONFIG)),
        "vae.encoder.": VideoEncoder(VideoVaeConfig.from_metadata(CONFIG)),
        "vae.decoder.": VideoDecoder(VideoVaeConfig.from_metadata(CONFIG)),
    }
    tensors: dict[str, Tensor] = {}
    for prefix, network in parts.items():
        for name, tensor in network.state_dict().items():
            shared = name.startswith("per_channel_statistics.")
            tensors[("vae." if shared else prefix) + name] = torch.randn(tensor.shape) * 0.1 + ("std-of" in name)
    save_file(tensors, folder / "ltxv.safetensors", {"config": json.dumps(CONFIG)})
    upsampler = LatentUpsampler(LatentUpsamplerConfig.from_metadata(UPSCALER))
    save_file(upsampler.state_dict(), folder / "upscaler.safetensors", {"config": json.dumps(UPSCALER)})
    return str(folder / "ltxv.safetensors"), str(folder / "upscaler.safetensors")


@pytest.fixture
def ledger(model: tuple[str, str]) -> ModelLedger:
    config = replace(BASE, checkpoint_path=model[0], spatial_upscaler_model_path=model[1])
    return ledger_for(config, device="cpu", policy="resident")


def contexts() -> LTXVContexts:
    generator = torch.Generator().manual_seed(5)
    positive, negative = torch.randn(2, 1, 4, 12, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0]])
    return LTXVContexts(positive, mask, negative, mask)


def inputs(**changes: object) -> LTXVInputs:
    return replace(LTXVInputs(contexts(), height=32, width=64, num_frames=17), **changes)


def picture(frames: int = 1, value: float | None = None) -> Tensor:
    video = torch.rand(1, 3, frames, 40, 48, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    return video if value is None else torch.full_like(video, value)


def final_tokens(pipeline: LTXVideoPipeline, given: LTXVInputs, seed: int = 0) -> Tensor:
    *_, last = pipeline.stream(given, GeneratorNoise(seed))
    return last.state.tokens


class TestSettings:
    def test_published_settings_give_valid_passes(self) -> None:
        for name, config in PUBLISHED.items():
            assert (config.decode_timestep, config.decode_noise_scale) == (0.05, 0.025)
            assert config.stochastic_sampling == (name == "2b-0.9.6-distilled")
            for sampling in config.passes:
                levels = pass_levels(sampling, SchedulerConfig(shifting="SD3", target_shift_terminal=0.1), 4096)
                assert len(guidance_per_step(sampling, levels)) == len(levels)

    def test_the_large_model_changes_guidance_along_the_way(self) -> None:
        first, second = PUBLISHED["13b-0.9.8-dev"].passes
        levels = pass_levels(first, SchedulerConfig(), 1)
        steps = guidance_per_step(first, levels)
        assert len(steps) == 27
        assert steps[0] == StepGuidance(1.0, 0.0, 1.0, (), True)  # at 1
        assert steps[2] == StepGuidance(1.0, 2.0, 1.0, (28,), True)  # at 0.933
        assert steps[-1] == StepGuidance(1.0, 1.0, 1.0, (28,), True)  # below all
        assert len(pass_levels(second, SchedulerConfig(), 1)) == 13

    def test_passes_override_what_stands_at_the_top(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").touch()
        (tmp_path / "config.yaml").write_text(
            "pipeline_type: multi-scale\ncheckpoint_path: model.safetensors\nspatial_upscaler_model_path: gone\n"
            "stg_mode: stg_as\nguidance_scale: 2\ncfg_star_rescale: true\n"
            "first_pass: {timesteps: [1.0, 0.5], skip_block_list: [[], [3]]}\nsecond_pass: {guidance_scale: [1, 4]}\n"
        )
        config = read_config(tmp_path / "config.yaml")
        first, second = config.passes
        assert (first.guidance_scale, first.timesteps, first.skip_block_list) == (2.0, (1.0, 0.5), ((), (3,)))
        assert (second.guidance_scale, second.cfg_star_rescale) == ((1.0, 4.0), True)
        assert config.checkpoint_path == str(tmp_path / "model.safetensors")
        assert config.spatial_upscaler_model_path == "gone"

    def test_configs_are_found_by_name_or_file(self, tmp_path: Path) -> None:
        for name in ("13b-0.9.8-dev", "ltxv-13b-0.9.8-dev", "configs/ltxv-13b-0.9.8-dev.yaml"):
            assert find_config(name) is PUBLISHED["13b-0.9.8-dev"]
        (tmp_path / "own.yaml").write_text("num_inference_steps: 3")
        assert find_config(tmp_path / "own.yaml").passes == (Sampling(num_inference_steps=3),)
        with pytest.raises(ConfigError, match=r"2b-0\.9\.6-dev"):
            find_config("ltxv-13b-0.9.7-dev.yaml")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"guidence_scale": 3}, "nearest valid: guidance_scale"),
            ({"first_pass": {}}, "unknown key 'first_pass'"),
            ({"pipeline_type": "multi-scale", "first_pass": {"seed": 1}}, "first_pass: unknown key 'seed'"),
            ({"stg_mode": "nothing"}, "stg_mode is 'nothing'"),
            ({"sampler": "ddim"}, "sampler is 'ddim'"),
            ({"num_inference_steps": "many"}, "num_inference_steps is 'many'"),
            ({"downscale_factor": 2}, "downscale_factor is 2"),
        ],
    )
    def test_what_does_not_fit_is_named(self, given: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            LTXVConfig.from_mapping(given)

    def test_unreadable_files_are_config_errors(self, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("a: [1")
        (tmp_path / "list.yaml").write_text("[1, 2]")
        for name in ("bad.yaml", "list.yaml", "missing.yaml"):
            with pytest.raises(ConfigError, match=name):
                read_config(tmp_path / name)


class TestSchedule:
    @settings(max_examples=25, deadline=None)
    @given(steps=st.integers(2, 40), cells=st.integers(1, 20000))
    def test_the_published_schedule_is_that_of_ltx2(self, steps: int, cells: int) -> None:
        config = SchedulerConfig(shifting="SD3", target_shift_terminal=0.1)
        latent = torch.empty(1, 1, 1, 1, cells)
        expected = LTX2Scheduler().execute(steps, latent)[:-1]
        torch.testing.assert_close(config.levels(steps, cells), expected, atol=2e-4, rtol=0)

    def test_samplers(self) -> None:
        assert SchedulerConfig().levels(4, 10).tolist() == [1.0, 0.75, 0.5, 0.25]
        quadratic = SchedulerConfig.chosen("linear-quadratic", CONFIG).levels(4, 10)
        assert quadratic[:2].tolist() == pytest.approx([1.0, 0.9875])
        constant = SchedulerConfig("Constant", shift=1.0).levels(2, 10)
        e = torch.e
        assert constant.tolist() == pytest.approx([1.0, e / (e + 1)])
        diffusion = SchedulerConfig(shifting="SimpleDiffusion", base_resolution=10)
        torch.testing.assert_close(diffusion.levels(4, 10), SchedulerConfig().levels(4, 10))
        assert (diffusion.levels(4, 40)[1:] > SchedulerConfig().levels(4, 10)[1:]).all()
        assert SchedulerConfig(shifting="SD3", target_shift_terminal=0.1).levels(1, 10).tolist() == [1.0]

    def test_skipped_steps_do_not_touch_given_levels(self) -> None:
        sampling = replace(PLAIN, num_inference_steps=5, skip_initial_inference_steps=1, skip_final_inference_steps=2)
        assert pass_levels(sampling, SchedulerConfig(), 1).tolist() == pytest.approx([0.8, 0.6])
        assert len(pass_levels(replace(sampling, timesteps=(0.9, 0.5, 0.1)), SchedulerConfig(), 1)) == 3

    @pytest.mark.parametrize(
        ("change", "scheduler", "message"),
        [
            ({"skip_initial_inference_steps": 1, "skip_final_inference_steps": 1}, {}, "less than num_inference_steps"),
            ({"num_inference_steps": 0}, {}, "less than num_inference_steps"),
            ({"timesteps": (0.5, 0.6)}, {}, "falling"),
            ({"timesteps": (1.0, 0.0)}, {}, "falling"),
            ({"timesteps": ()}, {}, "falling"),
            ({"timesteps": (1.0, 0.5)}, {"allowed_inference_steps": (1.0, 0.49)}, "0.5000.*nearest: 0.49"),
        ],
    )
    def test_levels_that_cannot_be(self, change: dict, scheduler: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            pass_levels(replace(PLAIN, **change), SchedulerConfig(**scheduler), 1)

    def test_incomplete_scheduler_sections(self) -> None:
        for section in ({"sampler": "DDIM"}, {"sampler": "Constant"}, {"shifting": "SimpleDiffusion"}):
            with pytest.raises(ConfigError, match="scheduler"):
                SchedulerConfig.from_metadata({"scheduler": section})


class TestGuidance:
    def test_entries_are_chosen_by_level_in_float32(self) -> None:
        levels = torch.tensor([1.0, 0.9933, 0.99, 0.3])
        assert entry_per_step((1.0, 0.9933, 0.618), levels) == [0, 1, 2, 2]
        assert entry_per_step(None, levels) == [0, 1, 2, 3]

    def test_lists_must_fit(self) -> None:
        levels = torch.tensor([1.0, 0.5])
        for change in ({"guidance_scale": (1.0,)}, {"skip_block_list": ((1,), (2,), (3,))}):
            with pytest.raises(ConfigError, match="entries, expected 2"):
                guidance_per_step(replace(PLAIN, **change), levels)

    def test_combination(self) -> None:
        u, c, p = torch.randn(3, 1, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
        plain = StepGuidance(1.0, 0.0, 0.7, (), False)
        assert torch.equal(plain.combine(c), c)  # nothing to rescale without STG
        cfg = replace(plain, cfg_scale=3.0)
        torch.testing.assert_close(cfg.combine(torch.cat((u, c))), u + 3 * (c - u))
        star = replace(cfg, cfg_star=True).combine(torch.cat((u, c)))
        scaled = u * ((c * u).sum() / ((u * u).sum() + 1e-8))
        torch.testing.assert_close(star, scaled + 3 * (c - scaled))
        both = replace(cfg, stg_scale=2.0)
        v = u + 3 * (c - u) + 2 * (c - p)
        torch.testing.assert_close(both.combine(torch.cat((u, c, p))), v * (0.7 * c.std() / v.std() + 0.3))
        alone = replace(plain, stg_scale=2.0, rescaling_scale=1.0)
        torch.testing.assert_close(alone.combine(torch.cat((c, p))), c + 2 * (c - p))


class TestTokenLevels:
    def test_tokens_wait_at_their_own_level(self) -> None:
        levels = TokenLevels.of(torch.tensor([1.0, 0.6, 0.3]), torch.tensor([[1.0, 0.5, 0.0]]))
        now = torch.stack([levels.per_token(row)[0, :, 0] for row in levels.now])
        after = torch.stack([levels.per_token(row)[0, :, 0] for row in levels.after])
        torch.testing.assert_close(now, torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 0.6], [0.0, 0.3, 0.3]]))
        torch.testing.assert_close(after, torch.tensor([[0.0, 0.5, 0.6], [0.0, 0.5, 0.3], [0.0, 0.0, 0.0]]))

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True),
        st.lists(st.integers(0, 100), min_size=1, max_size=6),
    )
    def test_every_token_comes_down_in_turn_and_never_up(self, steps: list[int], strengths: list[int]) -> None:
        given_levels = torch.tensor(sorted(steps, reverse=True)) / 1000
        levels = TokenLevels.of(given_levels, torch.tensor([strengths]) / 100)
        assert (levels.after <= levels.now).all()
        assert ((levels.after == levels.now) | (levels.now[:, :] > 0)).all()
        for before, next_one in pairwise(zip(levels.now, levels.after, strict=True)):
            assert ((next_one[0] <= before[1] + 1e-6) | (before[1] == before[0])).all()

    def test_one_row_serves_an_unconditioned_clip(self) -> None:
        levels = TokenLevels.of(torch.tensor([1.0, 0.5]), None)
        assert levels.index is None and levels.after.tolist() == [[0.5], [0.0]]


class TestStep:
    def steps(self, levels: tuple[float, ...], strengths: Tensor | None = None, **changes: object) -> list[Tensor]:
        """Tokens of ones after each step of a model that always answers 0.5."""
        grid = VideoLatentShape(1, 2, 3, 1, 1)
        start = VideoTokens(torch.ones(1, 3, 2), torch.zeros(1, 3, 3), strengths, grid)
        guidance = [StepGuidance(1.0, 0.0, 1.0, (), False)] * len(levels)
        given = PassSettings(torch.tensor(levels), guidance, 30.0, **changes)
        half = lambda video, audio, perturbations: (torch.full_like(video.latent, 0.5), None)  # noqa: E731
        noise = RecordedNoise([torch.full((1, 3, 2), 10.0)] * 4)
        return [state.tokens for state in denoise(half, start, given, contexts(), noise)]

    def test_plain_steps_follow_the_velocity(self) -> None:
        first, last = self.steps((1.0, 0.6), torch.tensor([[1.0, 0.2, 0.0]]))
        torch.testing.assert_close(first[0, :, 0], torch.tensor([1.0, 1.0, 0.8]))
        torch.testing.assert_close(last[0, :, 0], torch.tensor([1.0, 0.7, 0.5]))

    def test_stochastic_steps_noise_the_prediction_again(self) -> None:
        first, last = self.steps((1.0, 0.6), torch.tensor([[1.0, 0.2, 0.0]]), stochastic=True)
        torch.testing.assert_close(first[0, :, 0], torch.tensor([1.0, 1.0, 0.4 * 0.5 + 6.0]))
        torch.testing.assert_close(last[0, :, 0], torch.tensor([1.0, 0.7, 6.2 - 0.3]))

    def test_only_fully_held_tokens_are_noised_again(self) -> None:
        first, last = self.steps((1.0, 0.6), torch.tensor([[1.0, 0.8, 0.0]]), image_cond_noise_scale=0.1)
        torch.testing.assert_close(first[0, :, 0], torch.tensor([2.0, 1.0, 0.8]))
        torch.testing.assert_close(last[0, :, 0], torch.tensor([1.36, 1.0, 0.5]))


class TestPlacement:
    def placed(self, *conditions: EncodedCondition, causal: bool = True):
        latent = torch.zeros(1, 2, 5, 1, 2)
        return Placement(FACTORS, causal, GeneratorNoise(3)).tokens(latent, conditions)

    def test_first_frames_go_into_the_grid(self) -> None:
        tokens = self.placed(EncodedCondition(torch.ones(1, 2, 2, 1, 2), 0, 0.75))
        assert tokens.num_extra == 0
        assert tokens.strengths.tolist() == [[0.75] * 4 + [0.0] * 6]
        assert tokens.latent[0, 0, :, 0, 0].tolist() == [0.75, 0.75, 0, 0, 0]

    def test_extra_tokens_stand_in_front_in_order(self) -> None:
        first, second = (EncodedCondition(torch.ones(1, 2, 1, 1, 2), start, s) for start, s in ((9, 0.5), (20, 1.0)))
        tokens = self.placed(first, second)
        assert tokens.num_extra == 4 and tokens.latent.abs().sum() == 0
        assert tokens.strengths[0, :4].tolist() == [0.5, 0.5, 1.0, 1.0]
        assert tokens.pixel_coords[0, :, :4].tolist() == [[9, 9, 20, 20], [0, 0, 0, 0], [0, 32, 0, 32]]
        noise = torch.randn(1, 2, 1, 1, 2, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(tokens.tokens[0, :2], (noise * 0.5 + 0.5)[0, :, 0, 0].T)
        torch.testing.assert_close(tokens.tokens[0, 2:4], torch.ones(2, 2))

    def test_a_clip_inside_is_split(self) -> None:
        latent = torch.arange(1.0, 4.0).view(1, 1, 3, 1, 1).expand(1, 2, 3, 1, 2)
        tokens = self.placed(EncodedCondition(latent, 8, 1.0))
        assert tokens.num_extra == 4
        assert tokens.tokens[0, :4, 0].tolist() == [1, 1, 2, 2]
        assert tokens.pixel_coords[0, 0, :4].tolist() == [8, 8, 9, 9]
        assert tokens.latent[0, 0, :, 0, 0].tolist() == [0, 0, 0, 3, 0]
        assert tokens.strengths[0, 4:].tolist() == [0] * 6 + [1, 1, 0, 0]

    def test_positions_follow_the_file(self) -> None:
        assert self.placed().pixel_coords[0, 0, ::2].tolist() == [0, 1, 9, 17, 25]
        assert self.placed(causal=False).pixel_coords[0, 0, ::2].tolist() == [0, 8, 16, 24, 32]
        assert self.placed().positions(8.0)[0, 0, -1] == 25 / 8

    @pytest.mark.parametrize(
        ("condition", "message"),
        [
            (LTXVCondition(picture(4)), "4 frames, expected 8k\\+1; nearest valid: 1"),
            (LTXVCondition(picture(9), 5), "starts at frame 5, expected a multiple of 8; nearest: 8"),
            (LTXVCondition(picture(9), 16), "expected 0 to 8 in 17"),
            (LTXVCondition(picture(), -1), "starts at -1"),
            (LTXVCondition(picture(), 0, 1.5), "strength is 1.5"),
            (LTXVCondition(picture()[0]), "shape"),
        ],
    )
    def test_conditions_that_do_not_fit(self, condition: LTXVCondition, message: str) -> None:
        with pytest.raises(ConditioningError, match=message):
            condition.check(VideoPixelShape(1, 17, 32, 64, 30.0), FACTORS)


class TestPipeline:
    def test_a_seed_decides_everything(self, ledger: ModelLedger) -> None:
        pipeline = LTXVideoPipeline(ledger, BASE)
        frames = pipeline(inputs(), 1)
        assert frames.shape == (17, 32, 64, 3) and frames.min() >= 0 and frames.max() <= 1
        assert torch.equal(frames, pipeline(inputs(), 1))
        assert not torch.equal(frames, pipeline(inputs(), 2))

    def test_half_precision_and_one_network_at_a_time(self, model: tuple[str, str], ledger: ModelLedger) -> None:
        config = replace(TWO_PASSES, checkpoint_path=model[0], spatial_upscaler_model_path=model[1])
        small = ledger_for(replace(config, precision="bfloat16"), device="cpu", policy="sequential")
        given = inputs(
            height=64,
            width=128,
            num_frames=9,
            conditions=(LTXVCondition(picture(), 0, 0.5),),
            image_cond_noise_scale=0.1,
        )
        frames = pipeline_for(small, config)(given, 0)
        assert frames.dtype == torch.bfloat16
        assert (frames.float() - pipeline_for(ledger, config)(given, 0)).abs().mean() < 0.05

    def test_recorded_noise_gives_the_same_clip(self, ledger: ModelLedger) -> None:
        drawn: list[Tensor] = []

        class Recorder(GeneratorNoise):
            def draw(self, use, shape, like):
                drawn.append(super().draw(use, shape, like))
                return drawn[-1]

        given = inputs(conditions=(LTXVCondition(picture(), 8, 0.5),), image_cond_noise_scale=0.1)
        pipeline = LTXVideoPipeline(ledger, replace(BASE, stochastic_sampling=True))
        frames = pipeline(given, Recorder(4))
        # initial, posterior, condition, two steps of renoise and stochastic, decoder
        assert [tuple(d.shape) for d in drawn] == [
            (1, 6, CHANNELS),
            (1, CHANNELS, 1, 1, 2),
            (1, CHANNELS, 1, 1, 2),
            *[(1, 8, CHANNELS)] * 4,
            (1, CHANNELS, 3, 1, 2),
        ]
        assert torch.equal(pipeline(given, RecordedNoise(drawn)), frames)
        with pytest.raises(ValueError, match=r"recorded decoder noise is none"):
            pipeline(given, RecordedNoise(drawn[:-1]))

    def test_guidance_is_what_separates_the_passes(self, ledger: ModelLedger) -> None:
        def tokens(**changes: object) -> Tensor:
            pipeline = LTXVideoPipeline(ledger, replace(BASE, passes=(replace(PLAIN, **changes),)))
            return final_tokens(pipeline, inputs())

        plain = tokens()
        assert torch.equal(plain, tokens(stg_scale=0.0, skip_block_list=(1,)))
        stg = {"stg_scale": 1.0, "rescaling_scale": 1.0}
        torch.testing.assert_close(plain, tokens(**stg))  # perturbs nothing
        for changes in ({"guidance_scale": 3.0}, {**stg, "skip_block_list": (0,)}):
            assert (tokens(**changes) - plain).abs().max() > 1e-4

    def test_strategies(self, ledger: ModelLedger) -> None:
        sampling = replace(PLAIN, stg_scale=4.0, skip_block_list=(0, 1))
        results = {
            mode: final_tokens(LTXVideoPipeline(ledger, replace(BASE, passes=(sampling,), stg_mode=mode)), inputs())
            for mode in ("attention_values", "attention_skip", "transformer_block", "residual", "stg_av")
        }
        assert torch.equal(results.pop("stg_av"), results["attention_values"])
        plain = final_tokens(LTXVideoPipeline(ledger, replace(BASE, passes=(PLAIN,))), inputs())
        torch.testing.assert_close(results.pop("residual"), plain)
        assert min((one - plain).abs().max().item() for one in results.values()) > 1e-4

    def test_held_tokens_stay_where_they_are_put(self, ledger: ModelLedger) -> None:
        latent = torch.ones(1, CHANNELS, 1, 1, 2)
        given = inputs(conditions=(LTXVCondition(picture()), LTXVCondition(picture(), 8, 0.9)))
        pipeline = LTXVideoPipeline(ledger, replace(BASE, passes=(replace(PLAIN, timesteps=(1.0, 0.5)),)))
        events = list(pipeline.stream(given, GeneratorNoise(0), lambda pixels: latent))
        first, last = events[1].state, events[-1].state
        assert torch.equal(last.latent[:, :, :1], latent)
        assert torch.equal(last.tokens[:, :2], first.tokens[:, :2])  # the pass ends above their level, 0.1
        assert not torch.equal(last.latent[:, :, 1:], first.latent[:, :, 1:])
        # Noise on held tokens is made anew from the clean ones at each step, and moves their neighbours.
        noisy = list(pipeline.stream(replace(given, image_cond_noise_scale=1.0), GeneratorNoise(0), lambda _: latent))
        drift = (noisy[-1].latent[:, :, :1] - latent).abs().mean()
        assert 0.05 < drift < 0.5  # |normal| times 0.5^2
        assert torch.equal(noisy[-1].state.tokens[:, :2], first.tokens[:, :2])  # softly held: not noised again
        assert not torch.equal(noisy[-1].latent[:, :, 1:], last.latent[:, :, 1:])

    def test_the_encoder_samples_its_posterior(self, ledger: ModelLedger) -> None:
        encode = LTXVideoPipeline(ledger, BASE).posterior(GeneratorNoise(0))
        pixels = picture()[..., :32, :32]
        one, other = encode(pixels), encode(pixels)
        mean = ledger.network("video_encoder")(pixels)
        assert not torch.equal(one, other) and (one - mean).abs().max() < 10

    def test_a_clip_to_start_from_is_mixed_with_noise(self, ledger: ModelLedger) -> None:
        latents = torch.full((1, CHANNELS, 3, 1, 2), 3.0)
        sampling = replace(PLAIN, num_inference_steps=10, skip_initial_inference_steps=8)
        pipeline = LTXVideoPipeline(ledger, replace(BASE, passes=(sampling,), sampler="uniform"))
        start = next(e for e in pipeline.stream(inputs(latents=latents), GeneratorNoise(0)) if e.phase == "denoise")
        noise = torch.randn(1, 6, CHANNELS, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(start.state.tokens, 0.2 * noise + 0.8 * 3.0)
        media = pipeline(inputs(media=picture(17)), 0)
        assert media.shape == (17, 32, 64, 3)

    def test_two_passes(self, ledger: ModelLedger) -> None:
        pipeline = pipeline_for(ledger, TWO_PASSES)
        assert isinstance(pipeline, LTXMultiScalePipeline)
        given = inputs(height=64, width=128, num_frames=9, conditions=(LTXVCondition(picture(), 0, 0.5),))
        events = list(pipeline.stream(given, GeneratorNoise(0)))
        assert [(e.phase, e.stage, e.step) for e in events] == [
            ("conditions", 0, 0),
            *[("denoise", 0, step) for step in range(3)],
            ("upsample", 1, 0),
            ("conditions", 1, 0),
            *[("denoise", 1, step) for step in range(3)],
        ]
        assert events[3].latent.shape == (1, CHANNELS, 2, 1, 2)
        assert events[-1].latent.shape == (1, CHANNELS, 2, 2, 4)
        assert pipeline(given, 0).shape == (9, 64, 128, 3)

    def test_the_second_pass_starts_with_the_statistics_of_the_first(self, ledger: ModelLedger) -> None:
        latent = torch.randn(1, CHANNELS, 2, 3, 4) * 3 + 1
        enlarged = LTXMultiScalePipeline(ledger, TWO_PASSES).enlarged(latent)
        assert enlarged.shape == (1, CHANNELS, 2, 6, 8)
        for statistic in (torch.mean, torch.std):
            torch.testing.assert_close(statistic(enlarged, (2, 3, 4)), statistic(latent, (2, 3, 4)))

    @pytest.mark.parametrize(
        ("config", "changes", "message"),
        [
            (BASE, {"num_frames": 16}, "frames is 16.*nearest valid: 17"),
            (BASE, {"height": 40}, "height is 40"),
            (BASE, {"contexts": LTXVContexts(torch.zeros(1, 1, 12))}, "negative prompt"),
            (BASE, {"latents": torch.zeros(1)}, "begin at 1"),
            (BASE, {"conditions": (LTXVCondition(picture(2)),)}, "2 frames"),
            (replace(BASE, passes=(replace(PLAIN, skip_initial_inference_steps=1),)), {}, "no clip to start from"),
            (TWO_PASSES, {"height": 32}, "height is 0"),
            (replace(TWO_PASSES, passes=(PLAIN, PLAIN)), {"height": 64, "width": 64}, "begin at 1"),
        ],
    )
    def test_refusals_come_before_weights(self, ledger: ModelLedger, config, changes: dict, message: str) -> None:
        with pytest.raises((ConfigError, ConditioningError), match=message):
            next(pipeline_for(ledger, config).stream(inputs(**changes), GeneratorNoise(0)))
        assert ledger.bytes_read == 0

    def test_a_latent_of_another_size_is_refused(self, ledger: ModelLedger) -> None:
        config = replace(BASE, passes=(replace(PLAIN, timesteps=(0.5,)),))
        with pytest.raises(ConfigError, match=r"shape \[1, 8, 3, 2, 2\], expected \[1, 8, 3, 1, 2\]"):
            list(LTXVideoPipeline(ledger, config).stream(inputs(latents=torch.zeros(1, 8, 3, 2, 2)), GeneratorNoise(0)))

    def test_one_pass_is_not_two(self, ledger: ModelLedger) -> None:
        with pytest.raises(ConfigError, match="expected multi-scale"):
            LTXMultiScalePipeline(ledger, BASE)
        with pytest.raises(ConfigError, match="expected 2"):
            replace(BASE, pipeline_type="multi-scale")


class TestMedia:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 30))
    def test_padding_is_cut_off_again(self, height: int, width: int, frames: int) -> None:
        size = PaddedSize.of(height, width, frames, FACTORS)
        FACTORS.check(VideoPixelShape(1, size.padded_frames, size.padded_height, size.padded_width, 30.0))
        assert size.padded_height - height < 32 and size.padded_frames - frames < 8
        video = torch.rand(1, 3, 1, height, width)
        padded = size.pad(video)
        assert padded.shape[-2:] == (size.padded_height, size.padded_width)
        chunk = padded[0].permute(1, 2, 3, 0)
        assert torch.equal(size.crop(chunk)[0], video[0, :, 0].permute(1, 2, 0))
        assert len(size.crop(chunk, frames)) == 0

    def test_crops_keep_the_middle(self) -> None:
        columns = torch.arange(10).view(1, 1, 10, 1).expand(1, 4, 10, 3)
        assert crop_to_aspect(columns, 1.0)[0, 0, :, 0].tolist() == [3, 4, 5, 6]
        assert crop_to_aspect(columns, 0.1).shape == (1, 1, 10, 3)

    def test_blur_spreads_a_point(self) -> None:
        frame = torch.zeros(5, 5, 3, dtype=torch.uint8)
        frame[2, 2] = 255
        blurred = blur(frame)[..., 0]
        assert blurred[2, 2] == 52 and blurred[1, 2] == 32 and blurred[1, 1] == 19 and blurred[0, 0] == 0
        assert torch.equal(blur(torch.full_like(frame, 77)), torch.full_like(frame, 77))

    def test_clips_are_cut_to_what_fits(self, clip: Path) -> None:
        size = PaddedSize.of(40, 60, 15, FACTORS)  # 17 frames of 64 x 64
        assert load_condition(clip, size, 0, FACTORS).shape == (1, 3, 17, 64, 64)
        assert load_condition(clip, size, 8, FACTORS).shape[2] == 9
        assert load_condition(clip, size, 10, FACTORS).shape[2] == 1
        video = load_condition(clip, size, 16, FACTORS)
        assert video.shape[2] == 1 and video[..., :12, :].abs().max() == 0 and video[..., 12:52, 2:62].abs().min() > 0

    def test_sources_are_filled_with_their_last_frame(self, clip: Path) -> None:
        source = load_source(clip, PaddedSize.of(40, 60, 20, FACTORS))
        assert source.shape == (1, 3, 25, 64, 64)
        assert torch.equal(source[:, :, 19], source[:, :, 24])
        with pytest.raises(MediaError, match="holds 20 frames, expected at least num_frames, 21"):
            load_source(clip, PaddedSize.of(40, 60, 21, FACTORS))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of 60 x 40, each of one grey that differs from mid-grey."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=24, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 60, 40, "yuv420p"
        for value in range(20):
            pixels = torch.full((40, 60, 3), 150 + 4 * value, dtype=torch.uint8).numpy()
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        sink.mux(stream.encode())
    return path


class TestCommand:
    def test_any_size_comes_back_as_asked(self, ledger: ModelLedger, clip: Path, tmp_path: Path) -> None:
        Image.new("RGB", (50, 30), (200, 30, 90)).save(tmp_path / "still.png")
        request = LTXVRequest(
            "a boat",
            height=40,
            width=60,
            num_frames=12,
            conditioning_media_paths=(str(tmp_path / "still.png"), str(clip)),
            conditioning_start_frames=(0, 8),
            conditioning_strengths=(1.0, 0.5),
        )
        events = list(run(request, ledger, BASE, contexts()))
        assert [event.phase for event in events] == ["text", "conditions", *["denoise"] * 3, "decode", "done"]
        recipe = make_recipe(request, replace(BASE, checkpoint_path=ledger.files.checkpoint))
        path = save(events[-1], tmp_path / "out.mp4", request.frame_rate, {"recipe": json.dumps(recipe)})
        frames = list(read_frames(path))
        assert len(frames) == 12 and frames[0].shape == (40, 60, 3)
        assert read_recipe(path)["request"]["prompt"] == "a boat"

    def test_two_passes_and_one_frame(self, ledger: ModelLedger, tmp_path: Path) -> None:
        request = LTXVRequest("a boat", height=127, width=129, num_frames=1)
        *_, done = run(request, ledger, TWO_PASSES, contexts())
        path = save(done, tmp_path / "out.mp4", request.frame_rate)
        with Image.open(path) as image:
            assert path.suffix == ".png" and image.size == (129, 127)

    def test_a_clip_to_start_from(self, ledger: ModelLedger, clip: Path) -> None:
        config = replace(BASE, passes=(replace(GUIDED, timesteps=(0.6, 0.3)),))
        request = LTXVRequest("a boat", height=32, width=48, num_frames=9, input_media_path=str(clip))
        *_, done = run(request, ledger, config, contexts())
        assert torch.cat(list(done.frames)).shape == (9, 32, 48, 3)

    def test_prompts_go_through_the_text_encoder_together(self, ledger: ModelLedger) -> None:
        asked: list[str] = []

        def encoder(prompts: list[str], dtype: torch.dtype):
            asked.extend(prompts)
            return torch.ones(2, 4, 12, dtype=dtype), torch.ones(2, 4, dtype=torch.int64)

        request = LTXVRequest("a boat", "ugly", height=32, width=32, num_frames=1)
        assert [event.phase for event in run(request, ledger, BASE, encoder)][-1] == "done"
        assert asked == ["ugly", "a boat"]

    def test_without_text_encoder(self, ledger: ModelLedger) -> None:
        with pytest.raises(ConfigError, match="text_encoder_model_name_or_path"):
            list(run(LTXVRequest("a boat", height=32, width=32, num_frames=1), ledger, BASE))
        assert ledger.bytes_read == 0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"height": 0}, "height is 0"),
            ({"conditioning_media_paths": ("a.png",)}, "conditioning_start_frames has 0 entries for 1"),
            ({"conditioning_strengths": (1.0,)}, "conditioning_strengths has 1 entries for 0"),
            ({"conditioning_media_paths": ("a.png",), "conditioning_start_frames": (121,)}, "expected 0 to 120"),
        ],
    )
    def test_requests_that_contradict_themselves(self, changes: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            LTXVRequest("a boat", **changes)

    def test_sessions_need_their_files(self) -> None:
        with pytest.raises(ConfigError, match="checkpoint_path"):
            ledger_for(BASE)
        with pytest.raises(ConfigError, match="spatial_upscaler_model_path"):
            ledger_for(replace(TWO_PASSES, checkpoint_path="model.safetensors"))
