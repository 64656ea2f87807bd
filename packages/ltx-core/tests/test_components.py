"""Patchifiers, shapes, schedules, steps, guiders and noise keep their promises for any valid input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltx_core.components.diffusion_steps import (
    EulerAncestralDiffusionStep,
    EulerCfgPpDiffusionStep,
    EulerDiffusionStep,
    HeunDiffusionStep,
    Res2sDiffusionStep,
)
from ltx_core.components.guiders import (
    CFGGuider,
    CFGStarRescalingGuider,
    LegacyStatefulAPGGuider,
    LtxAPGGuider,
    MultiModalGuider,
    MultiModalGuiderFactory,
    MultiModalGuiderParams,
    STGGuider,
    create_multimodal_guider_factory,
)
from ltx_core.components.helpers import (
    conform_latent_length,
    evenly_spaced_keyframe_positions,
    resolve_keyframe_positions,
    seconds_to_frames,
    temporal_subsample,
)
from ltx_core.components.noisers import GaussianNoiser, normalized_noise
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords, to_seconds
from ltx_core.components.schedulers import (
    BetaScheduler,
    LinearQuadraticScheduler,
    LTX2Scheduler,
    beta_cdf,
    beta_quantile,
)
from ltx_core.errors import ConfigError
from ltx_core.types import (
    AudioLatentShape,
    LatentState,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
    VideoPixelShape,
)
from ltx_core.utils import rms_norm, to_denoised, to_velocity

small = st.integers(1, 4)
video_shapes = st.builds(VideoLatentShape, small, small, small, small, small)
audio_shapes = st.builds(AudioLatentShape, small, small, st.integers(1, 9), small)
DEFAULT = SpatioTemporalScaleFactors.default()


# --- shapes


@given(video_shapes)
def test_video_shape_survives_pixels_and_back(shape: VideoLatentShape) -> None:
    pixels = shape.upscale()
    again = VideoPixelShape(shape.batch, pixels.frames, pixels.height, pixels.width, fps=24.0)
    DEFAULT.check(again)
    assert VideoLatentShape.from_pixel_shape(again, latent_channels=shape.channels) == shape
    assert VideoLatentShape.from_torch_shape(shape.to_torch_shape()) == shape


@given(st.integers(0, 400), st.integers(1, 600), st.integers(1, 600), st.sampled_from([1, 2]))
def test_refused_sizes_name_the_nearest_valid_one(frames: int, height: int, width: int, multiple: int) -> None:
    values = {"frames": frames, "height": height, "width": width}
    for _ in values:
        try:
            DEFAULT.check(VideoPixelShape(1, **values, fps=25.0), multiple)
        except ConfigError as error:
            name, nearest = str(error).split()[0], int(str(error).rsplit(" ", 1)[1])
            step = 8 if name == "frames" else 32 * multiple
            offset = 1 if name == "frames" else 0
            assert nearest % step == offset and nearest > 0
            assert abs(nearest - values[name]) <= step / 2 or nearest == max(step * (1 - offset), offset)
            values[name] = nearest
    DEFAULT.check(VideoPixelShape(1, **values, fps=25.0), multiple)


@pytest.mark.parametrize("bad", [{"batch": 0}, {"fps": 0.0}, {"fps": math.nan}, {"frames": 0}])
def test_impossible_shapes_are_refused(bad: dict[str, float]) -> None:
    shape = VideoPixelShape(1, 9, 64, 64, 24.0)._replace(**bad)
    with pytest.raises(ConfigError):
        DEFAULT.check(shape)


@given(st.floats(0, 100))
def test_audio_length_is_within_half_a_frame(seconds: float) -> None:
    assert abs(AudioLatentShape.from_duration(1, seconds).frames / 25 - seconds) <= 0.02 + 1e-9


# --- patchifiers


@given(video_shapes, st.integers(1, 3))
def test_video_tokens_and_back(shape: VideoLatentShape, patch_size: int) -> None:
    shape = shape._replace(height=shape.height * patch_size, width=shape.width * patch_size)
    latent = torch.arange(math.prod(shape)).view(shape)
    patchifier = VideoLatentPatchifier(patch_size)
    tokens = patchifier.patchify(latent)
    assert tokens.shape == (shape.batch, patchifier.get_token_count(shape), shape.channels * patch_size**2)
    assert torch.equal(patchifier.unpatchify(tokens, shape), latent)


@given(audio_shapes)
def test_audio_tokens_and_back(shape: AudioLatentShape) -> None:
    latent = torch.arange(math.prod(shape)).view(shape)
    tokens = AudioPatchifier().patchify(latent)
    assert tokens.shape == (shape.batch, shape.token_count, shape.channels * shape.mel_bins)
    assert torch.equal(AudioPatchifier().unpatchify(tokens, shape), latent)


@given(video_shapes)
def test_causal_spans_tile_the_clip(shape: VideoLatentShape) -> None:
    bounds = VideoLatentPatchifier(1).get_patch_grid_bounds(shape)
    coords = get_pixel_coords(bounds, DEFAULT, causal_fix=True)
    pixels = shape.upscale()
    times = coords[0, 0].unique(dim=0)
    assert times[0].tolist() == [0, 1]
    assert torch.equal(times[1:, 0], times[:-1, 1])
    assert coords[0, :, :, 1].amax(dim=1).tolist() == [pixels.frames, pixels.height, pixels.width]
    assert torch.equal(to_seconds(coords, 25.0)[:, 1:], coords[:, 1:].float())


def test_a_shape_of_the_other_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="AudioLatentShape"):
        VideoLatentPatchifier(1).get_patch_grid_bounds(AudioLatentShape(1, 8, 4, 16))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="VideoLatentShape"):
        AudioPatchifier(1).get_patch_grid_bounds(VideoLatentShape(1, 8, 4, 2, 2))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="multiples of patch_size 2"):
        VideoLatentPatchifier(2).patchify(torch.zeros(1, 1, 1, 3, 4))


# --- schedules


@given(st.integers(1, 60), st.integers(1, 10**7), st.sampled_from([0.0, 0.02, 0.1, 0.4]), st.booleans())
def test_ltx2_schedule_is_sane_for_any_size(steps: int, tokens: int, terminal: float, stretch: bool) -> None:
    latent = torch.empty(1, 1, tokens, 1, 1, device="meta")
    sigmas = LTX2Scheduler().execute(steps, latent, stretch=stretch, terminal=terminal)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    # The rounding of 1 - sigma in float32, 6e-8, is stretched with the rest: by 2e5 at two steps and 32,744 tokens.
    plain = LTX2Scheduler().execute(steps, latent, stretch=False)
    room = max(1 - float(plain[-2]), 1e-6)
    rounding = 1e-6 + (1.2e-7 / room if stretch and steps > 1 else 0)
    assert sigmas.isfinite().all() and sigmas[0] == pytest.approx(1, abs=rounding) and sigmas[-1] == 0
    assert (sigmas.diff() <= 1e-6).all()
    if stretch and steps > 1:
        assert sigmas[-2] == pytest.approx(terminal, abs=1e-5)


def test_ltx2_schedule_shifts_towards_noise_with_size() -> None:
    few, many = (LTX2Scheduler().execute(8, torch.empty(1, 8, n, 8, 8)) for n in (2, 64))
    assert (many[1:-2] > few[1:-2]).all()
    assert torch.equal(LTX2Scheduler().execute(8), LTX2Scheduler().execute(8, torch.empty(1, 1, 4096)))


@given(st.integers(1, 50), st.integers(1, 50))
def test_linear_quadratic_schedule_falls(steps: int, linear: int) -> None:
    sigmas = LinearQuadraticScheduler().execute(steps, linear_steps=min(linear, steps))
    assert sigmas.shape == (steps + 1,) and sigmas[0] == 1 and sigmas[-1] == 0
    assert sigmas.isfinite().all()
    default = LinearQuadraticScheduler().execute(steps)
    assert (default.diff() < 0).all()


@given(st.integers(1, 60), st.floats(0.1, 5), st.floats(0.1, 5))
def test_beta_schedule_falls(steps: int, alpha: float, beta: float) -> None:
    sigmas = BetaScheduler().execute(steps, alpha, beta)
    assert 2 <= len(sigmas) <= steps + 1
    assert sigmas[0] == pytest.approx(1, abs=1e-6) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: LTX2Scheduler().execute(0),
        lambda: LTX2Scheduler().execute(4, terminal=1.0),
        lambda: LinearQuadraticScheduler().execute(0),
        lambda: LinearQuadraticScheduler().execute(4, linear_steps=0),
        lambda: LinearQuadraticScheduler().execute(4, linear_steps=5),
        lambda: BetaScheduler().execute(0),
        lambda: BetaScheduler().execute(4, alpha=0.0),
        lambda: VideoLatentPatchifier(0),
        lambda: MultiModalGuiderFactory({}),
        lambda: evenly_spaced_keyframe_positions(8, 9),
        lambda: resolve_keyframe_positions([0, 9], 9),
        lambda: temporal_subsample(torch.zeros(1, 1, 9, 1, 1), 0),
    ],
)
def test_impossible_settings_are_refused(call: object) -> None:
    with pytest.raises(ConfigError, match="expected"):
        call()  # type: ignore[operator]


@given(st.floats(0.01, 0.99), st.floats(0.1, 30), st.floats(0.1, 30))
def test_beta_quantile_inverts_the_distribution(probability: float, a: float, b: float) -> None:
    x = beta_quantile(probability, a, b)
    below, above = (beta_cdf(x + nudge, a, b) for nudge in (-1e-15, 1e-15))
    assert below - 1e-9 <= probability <= above + 1e-9


@given(st.floats(0, 1))
def test_beta_quantile_where_it_has_a_closed_form(probability: float) -> None:
    assert beta_quantile(probability, 1, 1) == pytest.approx(probability)
    assert beta_quantile(probability, 2, 1) == pytest.approx(math.sqrt(probability))
    assert beta_quantile(probability, 1, 3) == pytest.approx(1 - (1 - probability) ** (1 / 3))
    x = beta_quantile(probability, 2, 2)  # I_x(2, 2) = 3x^2 - 2x^3
    assert 3 * x**2 - 2 * x**3 == pytest.approx(probability, abs=1e-12)


# --- velocity and steps


def sample_and_x0(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 3, generator=generator).to(dtype), torch.randn(2, 5, 3, generator=generator).to(dtype)


@given(st.floats(0.01, 1))
def test_velocity_and_x0_are_inverse(sigma: float) -> None:
    sample, x0 = sample_and_x0()
    assert torch.allclose(to_denoised(sample, to_velocity(sample, sigma, x0), sigma), x0, atol=1e-5)


def test_a_clean_sample_has_no_velocity() -> None:
    sample, x0 = sample_and_x0()
    with pytest.raises(ValueError, match="sigma is 0"):
        to_velocity(sample, 0.0, x0)


def test_rms_norm() -> None:
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    assert torch.allclose(rms_norm(x, weight), x / math.sqrt(12.5) * weight)


SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_keeps_dtype_and_lands_on_x0(dtype: torch.dtype) -> None:
    sample, x0 = sample_and_x0(dtype)
    noise = torch.randn(sample.shape)
    ends = [
        EulerDiffusionStep().step(sample, x0, SIGMAS, 3),
        HeunDiffusionStep().step(sample, x0, SIGMAS, 3),
        EulerAncestralDiffusionStep().step(sample, x0, SIGMAS, 3, noise),
        EulerCfgPpDiffusionStep().step(sample, x0, SIGMAS, 3, uncond_denoised=sample, noise=noise),
        Res2sDiffusionStep().step(sample, x0, SIGMAS, 3, noise),
    ]
    for end in ends:
        assert end.dtype == dtype
        assert torch.allclose(end.float(), x0.float(), atol=1e-6 if dtype == torch.float32 else 0.05)


@given(st.integers(0, 3))
def test_without_noise_the_ancestral_step_is_euler(index: int) -> None:
    sample, x0 = sample_and_x0()
    ancestral = EulerAncestralDiffusionStep(eta=0.0).step(sample, x0, SIGMAS, index)
    assert torch.allclose(ancestral, EulerDiffusionStep().step(sample, x0, SIGMAS, index), atol=1e-6)
    assert not EulerAncestralDiffusionStep(eta=0.0).draws_noise
    assert not EulerCfgPpDiffusionStep(eta=0.0).draws_noise


def test_the_ancestral_step_keeps_the_noise_level() -> None:
    """A sample on the straight path, x = (1 - s) * x0 + s * noise, stays on it in distribution."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((1, 1, 200_000), 0.7)
    sample = 0.2 * x0 + 0.8 * torch.randn(x0.shape, generator=generator)
    fresh = torch.randn(x0.shape, generator=generator)
    result = EulerAncestralDiffusionStep(eta=0.6).step(sample, x0, SIGMAS, 1, fresh)
    assert result.mean() == pytest.approx(0.5 * 0.7, abs=0.01)
    assert result.std() == pytest.approx(0.5, abs=0.01)


def test_an_ancestral_step_without_its_noise_is_refused() -> None:
    sample, x0 = sample_and_x0()
    with pytest.raises(ConfigError, match="expected noise"):
        EulerAncestralDiffusionStep(eta=1.0).step(sample, x0, SIGMAS, 0)


def test_res2s_noise_goes_by_token() -> None:
    sample, x0 = sample_and_x0()
    levels = torch.tensor([0.8, 0.5])
    per_token = levels.view(2, 1, 1, 1).expand(2, 2, 5, 1).clone()
    noise = torch.randn(sample.shape)
    whole = Res2sDiffusionStep().step(sample, x0, levels, 0, noise)
    assert torch.allclose(Res2sDiffusionStep().step(sample, x0, per_token, 0, noise), whole, atol=1e-6)
    per_token[1, 0, 3] = 0
    assert torch.equal(Res2sDiffusionStep().step(sample, x0, per_token, 0, noise), x0)


# --- guiders


@pytest.mark.parametrize(
    ("guider", "neutral"),
    [
        (CFGGuider(3.0), CFGGuider(1.0)),
        (CFGStarRescalingGuider(3.0), CFGStarRescalingGuider(1.0)),
        (STGGuider(scale=1.0), STGGuider(0.0)),
        (LtxAPGGuider(3.0, eta=0.3, norm_threshold=1.0), LtxAPGGuider(1.0)),
        (LegacyStatefulAPGGuider(2.0, eta=0.5), LegacyStatefulAPGGuider(0.0, eta=0.5)),
    ],
)
def test_guiders_treat_samples_alone_and_can_be_off(guider: CFGGuider, neutral: CFGGuider) -> None:
    cond, uncond = sample_and_x0()
    assert guider.enabled() and not neutral.enabled()
    assert neutral.delta(cond, uncond).abs().max() == 0
    alone = torch.cat([guider.delta(cond[i : i + 1], uncond[i : i + 1]) for i in range(2)])
    assert torch.allclose(guider.delta(cond, uncond), alone, atol=1e-6)


def test_projected_guidance_is_capped_and_orthogonal() -> None:
    cond, uncond = sample_and_x0()
    delta = LtxAPGGuider(2.0, eta=0.0, norm_threshold=0.5).delta(cond, uncond)
    assert (delta.flatten(1).norm(dim=1) <= 0.5 + 1e-6).all()
    assert (delta * cond).flatten(1).sum(dim=1).abs().max() < 1e-5


def test_momentum_belongs_to_one_object() -> None:
    cond, uncond = sample_and_x0()
    guider = LegacyStatefulAPGGuider(1.0, eta=1.0, norm_threshold=0.0, momentum=0.5)
    first, second = guider.delta(cond, uncond), guider.delta(cond, uncond)
    assert torch.allclose(second, 1.5 * first, atol=1e-6)


def test_multimodal_guidance() -> None:
    cond, weak = sample_and_x0()
    params = MultiModalGuiderParams(cfg_scale=3.0, stg_scale=1.0, modality_scale=2.0)
    guided = MultiModalGuider(params).calculate(cond, weak, weak, weak)
    assert torch.allclose(guided, cond + (2 + 1 + 1) * (cond - weak), atol=1e-5)
    assert torch.equal(MultiModalGuider().calculate(cond), cond)
    rescaled = MultiModalGuider(MultiModalGuiderParams(cfg_scale=5.0, rescale_scale=1.0)).calculate(cond, weak)
    assert rescaled.std() == pytest.approx(cond.std().item(), rel=1e-5)


def test_guidance_by_noise_level() -> None:
    params = [MultiModalGuiderParams(cfg_scale=scale) for scale in (2.0, 3.0)]
    negative = torch.zeros(1, 2, 3)
    factory = MultiModalGuiderFactory.from_dict({0.5: params[0], 1.0: params[1]}, negative)
    assert [factory.params(sigma).cfg_scale for sigma in (0.0, 0.5, 0.51, 1.0, 1.5)] == [2, 2, 3, 3, 3]
    assert create_multimodal_guider_factory(factory) is factory
    assert create_multimodal_guider_factory(factory, torch.ones(1, 2, 3)).negative_context is not negative
    assert create_multimodal_guider_factory(params[0]).build_from_sigma(0.3).params is params[0]


# --- noise


def blank_state(dtype: torch.dtype = torch.float32) -> LatentState:
    latent = torch.zeros(2, 6, 8, dtype=dtype)
    mask = torch.ones(2, 6, 1)
    mask[:, :2], mask[:, 2] = 0, 0.5
    return LatentState(latent, mask, torch.zeros(2, 1, 6, 2), clean_latent=torch.ones_like(latent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_seed_one_noise(dtype: torch.dtype) -> None:
    first, again, other = (GaussianNoiser(torch.Generator().manual_seed(s))(blank_state(dtype)) for s in (1, 1, 2))
    assert torch.equal(first.latent, again.latent) and not torch.equal(first.latent, other.latent)
    assert first.latent.dtype == dtype
    assert (first.latent[:, :2] == 1).all()
    quiet = GaussianNoiser(torch.Generator())(blank_state(dtype), noise_scale=0.0).latent
    assert (quiet[:, 3:] == 0).all() and (quiet[:, 2] == 0.5).all()


def test_normalized_noise() -> None:
    noise = normalized_noise(torch.empty(2, 9, 4, dtype=torch.bfloat16), torch.Generator().manual_seed(0))
    assert noise.dtype == torch.float64
    assert noise.mean(dim=(1, 2)).abs().max() < 1e-12
    assert torch.allclose(noise.std(dim=(1, 2)), torch.ones(2, dtype=torch.float64))


# --- helpers


@given(st.floats(0.01, 60), st.sampled_from([24.0, 25.0, 29.97]), st.integers(1, 40), st.integers(41, 500))
def test_seconds_give_valid_frame_counts(seconds: float, rate: float, least: int, most: int) -> None:
    frames = seconds_to_frames(seconds, rate, least, most)
    assert least <= frames <= most
    assert frames % 8 == 1 or frames == most


@given(st.integers(0, 8), st.integers(10, 300))
def test_keyframes_lie_inside_the_clip(count: int, frames: int) -> None:
    positions = evenly_spaced_keyframe_positions(count, frames)
    assert len(positions) == count and positions == sorted(set(positions))
    assert all(0 < position < frames - 1 for position in positions)
    assert resolve_keyframe_positions([*reversed(positions), *positions], frames) == positions


def test_latent_length_and_reference_frames() -> None:
    latent = torch.arange(1.0, 6.0).view(1, 1, 5, 1)
    assert conform_latent_length(latent, 7).flatten().tolist() == [1, 2, 3, 4, 5, 0, 0]
    assert conform_latent_length(latent, 2).flatten().tolist() == [1, 2]
    video = torch.arange(9.0).view(1, 1, 9, 1, 1)
    assert temporal_subsample(video, 4).flatten().tolist() == [0, 1, 5]
    assert temporal_subsample(video, 1) is video


def test_sizes_that_fill_no_whole_cells_are_floored_with_a_line() -> None:
    with pytest.warns(UserWarning, match="frames is 24, the latent holds 17") as told:
        latent = VideoLatentShape.from_pixel_shape(VideoPixelShape(1, 24, 2160, 3840, 24.0))
    assert latent == (1, 128, 3, 67, 120)
    assert [str(each.message) for each in told][1:] == ["height is 2160, the latent holds 2144"]
