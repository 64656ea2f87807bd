"""LTX-Video 0.9.x: settings, schedules, guidance, token levels, where stages begin; pipeline and commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ltx_core.components.guiders import VelocityGuidance
from ltx_core.components.schedulers import LTX2Scheduler
from ltx_core.errors import ConfigError, LtxError, MediaError
from ltx_core.loader.backend import TorchBackend
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.upsampler.model import LatentUpsampler
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.video_vae import VideoDecoder, VideoEncoder
from ltx_core.networks import Contexts
from ltx_core.sampling.loop import SamplingStep, denoise
from ltx_core.sampling.velocity import TokenLevelSampler, VelocityDenoiser
from ltx_core.types import LatentState, SpatioTemporalScaleFactors, VideoPixelShape
from ltx_pipelines.cli.app import run as ltx
from ltx_pipelines.ltx_video import run as ltx_video_run
from ltx_pipelines.ltx_video.media import (
    blur,
    crop,
    crop_to_aspect,
    load_condition,
    load_source,
    pad,
    read_media,
    wanted_media,
)
from ltx_pipelines.ltx_video.pipeline import LTXVideoPipeline
from ltx_pipelines.ltx_video.run import LTXVideoRun, SeededNoise
from ltx_pipelines.ltx_video.schedule import SchedulerConfig, entry_per_step, guidance_per_step, pass_levels
from ltx_pipelines.ltx_video.settings import PUBLISHED, LTXVConfig, Sampling, find_config, read_config
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.layout import PaddedSize
from ltx_pipelines.planning.plan import ImageCondition, ModelFiles, plan_from_json
from ltx_pipelines.running.engine import generate
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.stage_inputs import StageInputs
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
PLAIN_BASE = replace(BASE, passes=(PLAIN,))
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
    return make_ledger(model)


def make_ledger(model: tuple[str, str], **how: Any) -> ModelLedger:
    """A session that knows the contexts of two prompts."""
    files = ModelFiles(model[0], spatial_upsampler=model[1])
    ledger = ModelLedger(files, **{"dtype": "float32", "device": "cpu", "policy": "resident", **how})
    generator = torch.Generator().manual_seed(5)
    mask = torch.tensor([[1, 1, 1, 0]])
    for prompt in ("a boat", "ugly"):
        ledger.texts.remember(prompt, Contexts(torch.randn(1, 4, 12, generator=generator).to(ledger.dtype), mask=mask))
    return ledger


def pipeline_on(ledger: ModelLedger, config: LTXVConfig = BASE) -> LTXVideoPipeline:
    pipeline = LTXVideoPipeline(ledger)
    pipeline.config = config
    return pipeline


def asked(**changes: Any) -> dict[str, Any]:
    return {"prompt": "a boat", "negative_prompt": "ugly", "height": 32, "width": 64, "num_frames": 17} | changes


def made(ledger: ModelLedger, config: LTXVConfig = BASE, seed: int = 0, **changes: Any) -> Tensor:
    """The video latent of the last stage."""
    generation = pipeline_on(ledger, config)(**asked(seed=seed, **changes), output_type="latent")
    return generation.latents["video"]


def frames_of(generation: Generation) -> Tensor:
    assert generation.video is not None
    return torch.cat(list(generation.video))


@pytest.fixture
def still(tmp_path: Path) -> str:
    Image.new("RGB", (50, 30), (200, 30, 90)).save(tmp_path / "still.png")
    return str(tmp_path / "still.png")


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
        assert steps[0] == VelocityGuidance(1.0, 0.0, 1.0, (), True)  # at 1
        assert steps[2] == VelocityGuidance(1.0, 2.0, 1.0, (28,), True)  # at 0.933
        assert steps[-1] == VelocityGuidance(1.0, 1.0, 1.0, (28,), True)  # below all
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
        plain = VelocityGuidance(1.0, 0.0, 0.7)
        assert torch.equal(plain.combine(c), c)  # nothing to rescale without STG
        cfg = replace(plain, cfg_scale=3.0)
        torch.testing.assert_close(cfg.combine(c, u), u + 3 * (c - u))
        star = replace(cfg, cfg_star=True).combine(c, u)
        scaled = u * ((c * u).sum() / ((u * u).sum() + 1e-8))
        torch.testing.assert_close(star, scaled + 3 * (c - scaled))
        both = replace(cfg, stg_scale=2.0)
        v = u + 3 * (c - u) + 2 * (c - p)
        torch.testing.assert_close(both.combine(c, u, p), v * (0.7 * c.std() / v.std() + 0.3))
        alone = replace(plain, stg_scale=2.0, rescale_scale=1.0)
        torch.testing.assert_close(alone.combine(c, None, p), c + 2 * (c - p))


class TestSteps:
    def walk(
        self, levels: tuple[float, ...], strengths: list[float], seen: list[Tensor] | None = None, **sampler: Any
    ) -> Iterator[SamplingStep]:
        """Steps of a model that always answers 0.5, from tokens of ones; ``seen`` gets the timesteps it is told."""
        count = len(strengths)
        ones, mask = torch.ones(1, count, 2), 1 - torch.tensor(strengths).view(1, count, 1)
        state = LatentState(ones, mask, torch.zeros(1, 3, count), ones)

        def half(video: Any, audio: Any, perturbations: Any) -> tuple[Tensor, None]:
            if seen is not None:
                seen.append(video.timesteps.expand(1, count, 1).flatten())
            return torch.full_like(video.latent, 0.5), None

        denoiser = VelocityDenoiser(Contexts(torch.zeros(1, 1, 1)), None, [VelocityGuidance()] * len(levels))
        tens = lambda use, like: torch.full_like(like, 10.0)  # noqa: E731
        sigmas = torch.tensor([*levels, 0.0])
        return denoise(half, denoiser, {"video": state}, sigmas, TokenLevelSampler(tens, **sampler))

    def tokens(self, *given: Any, **sampler: Any) -> list[Tensor]:
        return [step.states["video"].latent[0, :, 0] for step in self.walk(*given, **sampler)]

    def test_plain_steps_follow_the_velocity(self) -> None:
        first, last = self.tokens((1.0, 0.6), [1.0, 0.2, 0.0])
        torch.testing.assert_close(first, torch.tensor([1.0, 1.0, 0.8]))
        torch.testing.assert_close(last, torch.tensor([1.0, 0.7, 0.5]))

    def test_stochastic_steps_noise_the_prediction_again(self) -> None:
        first, last = self.tokens((1.0, 0.6), [1.0, 0.2, 0.0], stochastic=True)
        torch.testing.assert_close(first, torch.tensor([1.0, 1.0, 0.4 * 0.5 + 6.0]))
        torch.testing.assert_close(last, torch.tensor([1.0, 0.7, 6.2 - 0.3]))

    def test_only_fully_held_tokens_are_noised_again(self) -> None:
        first, last = self.tokens((1.0, 0.6), [1.0, 0.8, 0.0], renoise=0.1)
        torch.testing.assert_close(first, torch.tensor([2.0, 1.0, 0.8]))
        torch.testing.assert_close(last, torch.tensor([1.36, 1.0, 0.5]))

    def test_tokens_wait_at_their_own_level(self) -> None:
        seen: list[Tensor] = []
        list(self.walk((1.0, 0.6, 0.3), [1.0, 0.5, 0.0], seen))
        expected = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 0.6], [0.0, 0.3, 0.3]])
        torch.testing.assert_close(torch.stack(seen), expected)

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True),
        st.lists(st.integers(0, 100), min_size=1, max_size=6),
    )
    def test_every_token_comes_down_from_the_level_it_waits_for(self, steps: list[int], strengths: list[int]) -> None:
        """At velocity 0.5 a token moves half of what its level falls; one the schedule never reaches stays."""
        levels = tuple(step / 1000 for step in sorted(steps, reverse=True))
        *_, last = self.tokens(levels, [strength / 100 for strength in strengths])
        limits = [1 - strength / 100 for strength in strengths]
        reached = [min(limit, max((lv for lv in levels if lv - 1e-6 < limit), default=0.0)) for limit in limits]
        torch.testing.assert_close(last, 1 - 0.5 * torch.tensor(reached), atol=1e-5, rtol=0)


class TestStart:
    """Where the conditions of a stage stand, given the latents of their media."""

    def started(
        self, ledger: ModelLedger, *conditions: tuple[Tensor, int, float], monkeypatch: pytest.MonkeyPatch
    ) -> tuple[LatentState, Tensor]:
        """The state of a 5 x 1 x 2 grid, and the grid of its first channel ``[5, 2]`` without the noise in it."""
        plan = pipeline_on(ledger, PLAIN_BASE).plan(**asked(num_frames=33, seed=3))
        latents = iter([latent for latent, _, _ in conditions])
        monkeypatch.setattr(ltx_video_run, "load_condition", lambda *given: next(latents))
        run = LTXVideoRun(plan, ledger, (Contexts(torch.zeros(1, 1, 1)), None))
        monkeypatch.setattr(run, "encode", lambda latent, stage: latent)
        images = tuple(ImageCondition("", frame, strength) for _, frame, strength in conditions)
        (stage,) = plan.stages
        stage = replace(stage, streams={"video": replace(stage.streams["video"], conditions=images)})
        state = run.start(stage, run.tools(stage), StageInputs())
        noise = torch.randn(1, 10, CHANNELS, generator=torch.Generator().manual_seed(3))
        return state, (state.latent[:, -10:] - noise * state.denoise_mask[:, -10:])[0, :, 0].view(5, 2)

    def test_first_frames_go_into_the_grid(self, ledger: ModelLedger, monkeypatch: pytest.MonkeyPatch) -> None:
        state, grid = self.started(ledger, (torch.ones(1, CHANNELS, 2, 1, 2), 0, 0.75), monkeypatch=monkeypatch)
        assert state.denoise_mask.flatten().tolist() == [0.25] * 4 + [1.0] * 6
        torch.testing.assert_close(grid[:, 0], torch.tensor([0.75, 0.75, 0, 0, 0]))

    def test_soft_tokens_stand_in_front_in_order(self, ledger: ModelLedger, monkeypatch: pytest.MonkeyPatch) -> None:
        still = torch.ones(1, CHANNELS, 1, 1, 2)
        state, grid = self.started(ledger, (still, 9, 0.5), (still, 20, 1.0), monkeypatch=monkeypatch)
        torch.testing.assert_close(grid, torch.zeros(5, 2))
        assert state.denoise_mask[0, :4, 0].tolist() == [0.5, 0.5, 0.0, 0.0]
        starts = state.positions[0, :, :4] * torch.tensor([[30.0], [1.0], [1.0]])
        torch.testing.assert_close(starts, torch.tensor([[9.0, 9, 20, 20], [0, 0, 0, 0], [0, 32, 0, 32]]))
        generator = torch.Generator().manual_seed(3)
        torch.randn(1, 10, CHANNELS, generator=generator)
        noise = torch.randn(1, CHANNELS, 1, 1, 2, generator=generator)
        torch.testing.assert_close(state.latent[0, :2], (noise * 0.5 + 0.5)[0, :, 0, 0].T)
        torch.testing.assert_close(state.latent[0, 2:4], torch.ones(2, CHANNELS))

    def test_a_clip_inside_is_split(self, ledger: ModelLedger, monkeypatch: pytest.MonkeyPatch) -> None:
        latent = torch.arange(1.0, 4.0).view(1, 1, 3, 1, 1).expand(1, CHANNELS, 3, 1, 2)
        state, grid = self.started(ledger, (latent, 8, 1.0), monkeypatch=monkeypatch)
        assert state.latent[0, :4, 0].tolist() == [1, 1, 2, 2]
        torch.testing.assert_close(state.positions[0, 0, :4] * 30, torch.tensor([8.0, 8, 9, 9]))
        torch.testing.assert_close(grid[:, 0], torch.tensor([0.0, 0, 0, 3, 0]))
        assert state.denoise_mask[0, 4:, 0].tolist() == [1] * 6 + [0, 0, 1, 1]

    def test_positions_follow_the_file(self, ledger: ModelLedger, monkeypatch: pytest.MonkeyPatch) -> None:
        state, _ = self.started(ledger, monkeypatch=monkeypatch)
        torch.testing.assert_close(state.positions[0, 0, ::2] * 30, torch.tensor([0.0, 1, 9, 17, 25]))
        monkeypatch.setitem(ledger.config["transformer"], "causal_temporal_positioning", False)  # type: ignore[arg-type]
        state, _ = self.started(ledger, monkeypatch=monkeypatch)
        torch.testing.assert_close(state.positions[0, 0, ::2] * 30, torch.tensor([0.0, 8, 16, 24, 32]))


class TestPipeline:
    def test_a_seed_decides_everything(self, ledger: ModelLedger) -> None:
        pipeline = pipeline_on(ledger)
        frames = frames_of(pipeline(**asked(seed=1)))
        assert frames.shape == (17, 32, 64, 3) and frames.min() >= 0 and frames.max() <= 1
        assert torch.equal(frames, frames_of(pipeline(**asked(seed=1))))
        assert not torch.equal(frames, frames_of(pipeline(**asked(seed=2))))

    def test_half_precision_and_one_network_at_a_time(
        self, model: tuple[str, str], ledger: ModelLedger, still: str
    ) -> None:
        small = make_ledger(model, dtype="bfloat16", policy="sequential")
        wanted = asked(height=64, width=128, num_frames=9, images=[(still, 0, 0.5)], image_cond_noise_scale=0.1)
        frames = frames_of(pipeline_on(small, TWO_PASSES)(**wanted))
        assert frames.dtype == torch.bfloat16
        whole = frames_of(pipeline_on(ledger, TWO_PASSES)(**wanted))
        assert (frames.float() - whole).abs().mean() < 0.05
        assert small.resident() == ("latent_statistics", "video_decoder")

    def test_streamed_blocks_give_the_same_clip(self, model: tuple[str, str], ledger: ModelLedger) -> None:
        torch.testing.assert_close(made(make_ledger(model, policy="streamed")), made(ledger))

    def test_draws_come_in_their_order(self, ledger: ModelLedger, still: str, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[tuple[str, tuple[int, ...]]] = []
        draw = SeededNoise.draw

        def recording(self: SeededNoise, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
            drawn.append((use, shape))
            return draw(self, use, shape, like)

        monkeypatch.setattr(SeededNoise, "draw", recording)
        config = replace(BASE, stochastic_sampling=True)
        frames_of(pipeline_on(ledger, config)(**asked(images=[(still, 8, 0.5)], image_cond_noise_scale=0.1)))
        one = (1, CHANNELS, 1, 1, 2)
        step = [("renoise", (1, 8, CHANNELS)), ("stochastic", (1, 8, CHANNELS))]
        start = [("initial", (1, 6, CHANNELS)), ("posterior", one), ("condition", one)]
        assert drawn == [*start, *step, *step, ("decoder", (1, CHANNELS, 3, 1, 2))]

    def test_guidance_is_what_separates_the_passes(self, ledger: ModelLedger) -> None:
        def latent(**changes: Any) -> Tensor:
            return made(ledger, replace(BASE, passes=(replace(PLAIN, **changes),)))

        plain = latent()
        assert torch.equal(plain, latent(stg_scale=0.0, skip_block_list=(1,)))
        stg = {"stg_scale": 1.0, "rescaling_scale": 1.0}
        torch.testing.assert_close(plain, latent(**stg))  # perturbs nothing
        for changes in ({"guidance_scale": 3.0}, {**stg, "skip_block_list": (0,)}):
            assert (latent(**changes) - plain).abs().max() > 1e-4

    def test_strategies(self, ledger: ModelLedger) -> None:
        sampling = replace(PLAIN, stg_scale=4.0, skip_block_list=(0, 1))
        results = {
            mode: made(ledger, replace(BASE, passes=(sampling,), stg_mode=mode))
            for mode in ("attention_values", "attention_skip", "transformer_block", "residual", "stg_av")
        }
        assert torch.equal(results.pop("stg_av"), results["attention_values"])
        plain = made(ledger, PLAIN_BASE)
        torch.testing.assert_close(results.pop("residual"), plain)
        assert min((one - plain).abs().max().item() for one in results.values()) > 1e-4

    def test_held_tokens_stay_where_they_are_put(
        self, ledger: ModelLedger, still: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        latent = torch.ones(1, CHANNELS, 1, 1, 2)
        monkeypatch.setattr(LTXVideoRun, "encode", lambda self, pixels, stage: latent)
        pipeline = pipeline_on(ledger, replace(BASE, passes=(replace(PLAIN, timesteps=(1.0, 0.5)),)))
        images = [(still, 0, 1.0), (still, 8, 0.9)]

        def ends(noise: float) -> tuple[Tensor, Tensor]:
            events = list(pipeline.stream(**asked(images=images, image_cond_noise_scale=noise)))
            states = [event.states["video"].latent for event in events if event.states]
            return states[0], states[-1]

        first, last = ends(0.0)
        assert torch.equal(last[:, 2:4], torch.ones(1, 2, CHANNELS))  # the first latent frame
        assert torch.equal(last[:, :2], first[:, :2])  # the pass ends above their level, 0.1
        assert not torch.equal(last[:, 4:], first[:, 4:])
        # Noise on held tokens is made anew from the clean ones at each step, and moves their neighbours.
        _, noisy = ends(1.0)
        drift = (noisy[:, 2:4] - 1).abs().mean()
        assert 0.05 < drift < 0.5  # |normal| times 0.5^2
        assert not torch.equal(noisy[:, 4:], last[:, 4:])

    def test_the_encoder_samples_its_posterior(self, ledger: ModelLedger) -> None:
        plan = pipeline_on(ledger).plan(**asked())
        run = LTXVideoRun(plan, ledger, (Contexts(torch.zeros(1, 1, 1)), None))
        pixels = torch.rand(1, 3, 1, 32, 64) * 2 - 1
        one, other = (run.encode(pixels, plan.stages[0]) for _ in range(2))
        mean = ledger.network("video_encoder")(pixels)
        assert not torch.equal(one, other) and (one - mean).abs().max() < 10

    def test_a_clip_to_start_from_is_mixed_with_noise(
        self, ledger: ModelLedger, clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sampling = replace(PLAIN, num_inference_steps=10, skip_initial_inference_steps=8)
        pipeline = pipeline_on(ledger, replace(BASE, passes=(sampling,), sampler="uniform"))
        assert frames_of(pipeline(**asked(input_media_path=str(clip)))).shape == (17, 32, 64, 3)
        monkeypatch.setattr(LTXVideoRun, "encode", lambda self, pixels, stage: torch.full((1, CHANNELS, 3, 1, 2), 3.0))
        events = pipeline.stream(**asked(input_media_path=str(clip), seed=0))
        start = next(event for event in events if event.phase == "denoise")
        noise = torch.randn(1, 6, CHANNELS, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(start.states["video"].latent, 0.2 * noise + 0.8 * 3.0)

    def test_two_passes(self, ledger: ModelLedger, still: str) -> None:
        plan = pipeline_on(ledger, TWO_PASSES).plan(
            **asked(height=64, width=128, num_frames=9, images=[(still, 0, 0.5)])
        )
        assert [(stage.shape.height, stage.shape.width) for stage in plan.stages] == [(32, 64), (64, 128)]
        events = list(generate(plan, ledger))
        phases = ["text", "conditions", *["denoise"] * 3, "upsample", "conditions", *["denoise"] * 3, "decode", "done"]
        assert [event.phase for event in events] == phases
        generation = events[-1].generation
        assert generation is not None and generation.upsampled is not None
        first = generation.stages[0]["video"]
        for statistic in (torch.mean, torch.std):
            got, want = (statistic(latent, dim=(2, 3, 4)) for latent in (generation.upsampled, first))
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        assert frames_of(generation).shape == (9, 64, 128, 3)

    def test_sizes_that_two_passes_cannot_hold_are_resized(self, ledger: ModelLedger) -> None:
        plan = pipeline_on(ledger, TWO_PASSES).plan(**asked(height=96, width=96, num_frames=9))
        assert [stage.shape.height for stage in plan.stages] == [32, 64]
        *_, done = generate(plan, ledger)
        assert done.generation is not None
        assert frames_of(done.generation).shape == (9, 96, 96, 3)

    def test_tone_mapping_comes_before_decoding(self, ledger: ModelLedger) -> None:
        plain = replace(
            TWO_PASSES, passes=tuple(replace(one, tone_map_compression_ratio=0.0) for one in TWO_PASSES.passes)
        )
        mapped, kept = (
            frames_of(pipeline_on(ledger, config)(**asked(height=64, width=128))) for config in (TWO_PASSES, plain)
        )
        assert (mapped - kept).abs().max() > 1e-3

    @pytest.mark.parametrize(
        ("sampling", "changes", "message"),
        [
            ({}, {"input_media_path": "clip"}, "begin at 1"),
            ({"skip_initial_inference_steps": 1}, {}, "skip_initial_inference_steps is 1"),
            ({}, {"images": [("still", 17, 1.0)]}, "frame_idx is 17, expected 0 to 16"),
            ({}, {"images": [("clip", 5, 1.0)]}, "starts at frame 5, expected a multiple of 8; nearest: 8"),
            ({}, {"images": [("still", 0, 1.5)]}, "strength is 1.5"),
            ({}, {"images": [("still", 0, 1.0, 20)]}, "expected nothing more"),
            ({}, {"height": 0}, "height is 0"),
        ],
    )
    def test_refusals_come_before_weights(
        self, ledger: ModelLedger, still: str, clip: Path, sampling: dict, changes: dict, message: str
    ) -> None:
        names = {"still": still, "clip": str(clip)}
        if "images" in changes:
            changes = {"images": [(names[name], *rest) for name, *rest in changes["images"]]}
        elif "input_media_path" in changes:
            changes = {"input_media_path": names["clip"]}
        with pytest.raises(LtxError, match=message):
            pipeline_on(ledger, replace(BASE, passes=(replace(PLAIN, **sampling),))).plan(**asked(**changes))
        assert ledger.bytes_read == 0

    def test_settings_follow_the_name_of_the_file(
        self, model: tuple[str, str], tmp_path: Path, ledger: ModelLedger
    ) -> None:
        with pytest.raises(ConfigError, match=r"pipeline_config is not given, expected a YAML file or one of 2b-0\.9"):
            LTXVideoPipeline(ledger).plan(**asked())
        named = tmp_path / "ltxv-2b-0.9.6-distilled-04-25.safetensors"
        named.symlink_to(model[0])
        pipeline = LTXVideoPipeline.from_pretrained(named, dtype="float32", device="cpu")
        plan = _with_texts(pipeline, ledger).plan(**asked())
        assert plan.stages[0].steps == 8 and plan.stages[0].sampler.params["stochastic"]
        guided = pipeline.plan(**asked(pipeline_config="2b-0.9"))
        assert guided.stages[0].steps == 40 and guided.stages[0].velocity_guidance[0].stg_blocks == (19,)

    def test_a_yaml_file_names_model_and_settings(self, model: tuple[str, str], tmp_path: Path) -> None:
        config = tmp_path / "own.yaml"
        config.write_text(f"checkpoint_path: {model[0]}\nprecision: float32\nnum_inference_steps: 3\n")
        pipeline = LTXVideoPipeline.from_pretrained(config, device="cpu")
        assert pipeline.ledger.files.checkpoint == model[0] and pipeline.ledger.precision.name == "float32"
        assert pipeline.config is not None and pipeline.config.passes[0].num_inference_steps == 3

    def test_models_and_pipelines_must_match(self, ledger: ModelLedger) -> None:
        from ltx_pipelines import TI2VidOneStagePipeline

        with pytest.raises(ConfigError, match=r"is an LTX-Video 0\.9\.x model, which TI2VidOneStagePipeline cannot"):
            TI2VidOneStagePipeline(ledger).plan("a boat", height=32, width=32, num_frames=9)
        tiny = LTXVideoPipeline.from_pretrained("tiny", device="cpu")
        with pytest.raises(ConfigError, match=r"is no LTX-Video 0\.9\.x model"):
            tiny.plan("a boat")


class TestPlan:
    def test_a_plan_is_kept_and_costed(self, ledger: ModelLedger, still: str) -> None:
        plan = pipeline_on(ledger, TWO_PASSES).plan(**asked(height=60, width=100, images=[still]))
        assert plan_from_json(plan.to_json()) == plan
        assert (plan.shape.height, plan.shape.width, plan.shape.frames) == (60, 100, 17)
        assert plan.encoders() == ["video_encoder"]
        cost = cost_of(plan, ledger)
        assert [phase.name for phase in cost.phases] == [
            "text",
            "conditions",
            "stage 1",
            "upsample",
            "stage 2",
            "video",
        ]
        one, two = (phase.work.flops for phase in cost.phases if phase.name.startswith("stage"))
        assert two > one > 0

    def test_guided_steps_cost_what_they_predict(self, ledger: ModelLedger) -> None:
        guided, plain = (cost_of(pipeline_on(ledger, config).plan(**asked()), ledger) for config in (BASE, PLAIN_BASE))
        assert 1.5 < guided.phases[1].work.flops / plain.phases[1].work.flops < 3  # the blocks before the perturbed

    def test_going_on_from_the_first_stage_equals_one_go(self, ledger: ModelLedger, still: str) -> None:
        config = replace(TWO_PASSES, stochastic_sampling=True)
        plan = pipeline_on(ledger, config).plan(**asked(height=64, width=128, num_frames=9, images=[(still, 0, 0.5)]))
        *_, whole = generate(plan, ledger)
        *_, first = generate(replace(plan, stages=plan.stages[:1]), ledger, decode=False)
        *_, rest = generate(plan, ledger, resume=first.generation)
        assert whole.generation is not None and rest.generation is not None
        assert torch.equal(frames_of(whole.generation), frames_of(rest.generation))


def _with_texts(pipeline: LTXVideoPipeline, ledger: ModelLedger) -> LTXVideoPipeline:
    for prompt in ("a boat", "ugly"):
        pipeline.ledger.texts.remember(prompt, ledger.texts.contexts([prompt])[0])
    return pipeline


def padded_size(height: int, width: int, frames: int) -> PaddedSize:
    return PaddedSize.of(VideoPixelShape(1, frames, height, width, 24.0), FACTORS)


class TestMedia:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 30))
    def test_padding_is_cut_off_again(self, height: int, width: int, frames: int) -> None:
        size = padded_size(height, width, frames)
        FACTORS.check(size.padded)
        assert size.padded.height - height < 32 and size.padded.frames - frames < 8
        video = torch.rand(1, 3, 1, height, width)
        padded = pad(video, size)
        assert padded.shape[-2:] == (size.padded.height, size.padded.width)
        chunk = padded[0].permute(1, 2, 3, 0)
        assert torch.equal(crop(chunk, size)[0], video[0, :, 0].permute(1, 2, 0))

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
        size = padded_size(40, 60, 15)  # 17 frames of 64 x 64

        def load(start: int) -> torch.Tensor:
            return load_condition(str(clip), size, wanted_media(size, start), FACTORS)

        assert load(0).shape == (1, 3, 17, 64, 64)
        assert load(8).shape[2] == 9
        assert load(10).shape[2] == 1
        video = load(16)
        assert video.shape[2] == 1 and video[..., :12, :].abs().max() == 0 and video[..., 12:52, 2:62].abs().min() > 0

    def test_sources_are_filled_with_their_last_frame(self, clip: Path) -> None:
        size = padded_size(40, 60, 20)
        source = load_source(str(clip), size, wanted_media(size))
        assert source.shape == (1, 3, 25, 64, 64)
        assert torch.equal(source[:, :, 19], source[:, :, 24])

    def test_clips_are_taken_by_time_and_said(self, ledger: ModelLedger, clip: Path) -> None:
        plan = pipeline_on(ledger, PLAIN_BASE).plan(**asked(images=[(str(clip), 0, 1.0)], frame_rate=12))
        assert plan.notes == (
            "clip.mp4: 60 x 40 scaled and cropped to 64 x 32",
            "clip.mp4: 24 fps sampled by time at 12 fps",
        )
        size = padded_size(40, 60, 17)
        size = PaddedSize(size.asked._replace(fps=12.0), size.padded._replace(fps=12.0))
        slow = read_media(str(clip), wanted_media(size))
        assert torch.equal(slow, torch.stack(list(read_frames(clip)))[::2])
        sampling = replace(PLAIN, num_inference_steps=10, skip_initial_inference_steps=8)
        pipeline = pipeline_on(ledger, replace(BASE, passes=(sampling,), sampler="uniform"))
        with pytest.raises(MediaError, match=r"lasts 10 frames at 12 fps, expected at least num_frames, 17"):
            pipeline.plan(**asked(input_media_path=str(clip), frame_rate=12))


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


class TestCommands:
    """The commands that every pipeline has, on this one."""

    @pytest.fixture
    def line(
        self, model: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str, str], str]:
        """A line of `ltx` with the model, in an empty folder; prompts are encoded as their lengths."""

        class Encoded:
            def __init__(self, prompts: list[str], dtype: torch.dtype) -> None:
                lengths = torch.tensor([float(len(prompt)) for prompt in prompts], dtype=dtype)
                self.video_context = (lengths / 10)[:, None, None].expand(-1, 4, 12)
                self.attention_mask = torch.ones(len(prompts), 4, dtype=torch.int64)

        monkeypatch.setattr(TorchBackend, "text_encoder", lambda *given: Encoded)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "t5").mkdir()
        save_file({"shared.weight": torch.zeros(1)}, tmp_path / "t5" / "model.safetensors")
        (tmp_path / "own.yaml").write_text(
            f"checkpoint_path: {model[0]}\nspatial_upscaler_model_path: {model[1]}\npipeline_type: multi-scale\n"
            "text_encoder_model_name_or_path: t5\nguidance_scale: 1\nstg_scale: 0\n"
            "first_pass: {timesteps: [1.0, 0.7]}\nsecond_pass: {timesteps: [0.9, 0.4]}\n"
        )
        Image.new("RGB", (50, 30), (200, 30, 90)).save(tmp_path / "still.png")

        def run(command: str, rest: str = "") -> str:
            shared = "--device cpu --trust" if command in ("rerun", "finish") else f"{NETWORKS} {SMALL}"
            assert ltx([*command.split(), *shared.split(), *rest.split()]) == 0
            return rest

        return run

    def test_any_size_comes_back_as_asked(self, line: Callable[..., str]) -> None:
        line("ltxv", "-p boat -i still.png 0 0.5 -i still.png 5 -o clip.mp4 --num-frames 12")
        frames = list(read_frames("clip.mp4"))
        assert len(frames) == 12 and frames[0].shape == (40, 60, 3)
        recipe = read_recipe(Path("clip.mp4"))
        assert recipe is not None and recipe["pipeline"] == "LTXVideoPipeline"
        assert recipe["request"]["options"]["pipeline_config"] == "own.yaml"

    def test_a_clip_is_made_again_and_finished(self, line: Callable[..., str]) -> None:
        line("ltxv", "-p boat -o clip.mp4 --keep-latents")
        line("rerun", "clip.mp4 -o again.mp4")
        line("finish", "clip.stage1.safetensors -o finished.mp4")
        line("rerun", "clip.mp4 -o other.mp4 --seed 5")
        clips = [
            torch.stack(list(read_frames(name))) for name in ("clip.mp4", "again.mp4", "finished.mp4", "other.mp4")
        ]
        assert torch.equal(clips[0], clips[1]) and torch.equal(clips[0], clips[2])
        assert not torch.equal(clips[0], clips[3])

    def test_it_is_chosen_planned_and_batched(
        self, line: Callable[..., str], model: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        line("generate", f"-p boat -m {model[0]} -o chosen.mp4 --json")
        events = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
        assert events[-1]["event"] == "done" and Path("chosen.mp4").exists()
        line("plan --pipeline ltxv", "-p boat")
        said = capsys.readouterr().out
        assert "LTXVideoPipeline" in said or "ltxv" in said
        request = {"prompt": "boat", "pipeline": "ltxv", "pipeline_config": "own.yaml", "device": "cpu"}
        request |= {"height": 40, "width": 60, "num_frames": 9, "output": "one.mp4"}
        Path("clips.jsonl").write_text(json.dumps(request) + "\n")
        assert ltx(["batch", "clips.jsonl"]) == 0
        assert len(list(read_frames(next(Path().rglob("one.mp4"))))) == 9


NETWORKS = "--pipeline-config own.yaml --device cpu"
SMALL = "--height 40 --width 60 --num-frames 9"
