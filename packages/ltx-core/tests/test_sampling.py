"""The loop: every sampler lands on what the model predicts, repeats itself, holds what is held, waits for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ltx_core.components.diffusion_steps import EulerAncestralDiffusionStep, EulerCfgPpDiffusionStep
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import VideoLatentPatchifier
from ltx_core.components.schedulers import LTX2Scheduler
from ltx_core.conditioning import VideoConditionByKeyframeIndex
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig, PerturbationType
from ltx_core.model.common.tiling import TileCountConfig
from ltx_core.model.transformer.modality import Modality, TimestepGroups
from ltx_core.sampling import res2s, samplers
from ltx_core.sampling.denoisers import DenoiseCall, GuidedDenoiser
from ltx_core.sampling.loop import SamplingStep, denoise
from ltx_core.sampling.modality import modality_from_latent_state
from ltx_core.sampling.modality_tiling import TiledTransformer, VideoModalityTilingHelper
from ltx_core.sampling.res2s import Res2sSampler, refine_anchor
from ltx_core.sampling.samplers import (
    EulerSampler,
    GradientEstimatingSampler,
    HeunSampler,
    Sampler,
    StochasticSampler,
)
from ltx_core.types import LatentState, VideoLatentShape

ANCESTRAL, CFG_PP = EulerAncestralDiffusionStep(), EulerCfgPpDiffusionStep()
SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "euler": lambda seed: EulerSampler(),
    "heun": lambda seed: HeunSampler(),
    "gradient_estimating": lambda seed: GradientEstimatingSampler(),
    "euler_ancestral": lambda seed: StochasticSampler(ANCESTRAL, seed),
    "euler_cfg_pp": lambda seed: StochasticSampler(CFG_PP, seed),
    "res_2s": lambda seed: Res2sSampler(seed),
    "res_2s_per_token": lambda seed: Res2sSampler(seed, legacy_mode=False),
}
STOCHASTIC = ("euler_ancestral", "euler_cfg_pp", "res_2s", "res_2s_per_token")
every_sampler = pytest.mark.parametrize("name", SAMPLERS)

CONTEXTS = {"video": torch.full((1, 2, 3), 0.5), "audio": torch.full((1, 2, 3), -0.5)}
NEGATIVE = {name: -context for name, context in CONTEXTS.items()}
SIGMAS = LTX2Scheduler().execute(6)


class Model:
    """A smooth stand-in for the transformer: text, time, noise level, perturbations and the other stream all matter."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Modality], BatchedPerturbationConfig | None]] = []

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        given = {name: m for name, m in {"video": video, "audio": audio}.items() if m is not None}
        self.calls.append((given, perturbations))
        mean = sum(m.latent.float().mean(dim=(1, 2), keepdim=True) for m in given.values())
        x0 = {name: self.x0(m, mean, perturbations) for name, m in given.items()}
        return x0.get("video"), x0.get("audio")

    def x0(self, m: Modality, mean: Tensor | int, perturbations: BatchedPerturbationConfig | None) -> Tensor:
        pull = m.context.mean(dim=(1, 2)).view(-1, 1, 1) + m.positions[:, 0].mean(-1, keepdim=True)
        pull = pull + 0.1 * torch.tanh(m.latent.float()) * m.timesteps.float()
        if perturbations is not None:
            kinds = (PerturbationType.SKIP_VIDEO_SELF_ATTN, PerturbationType.SKIP_A2V_CROSS_ATTN)
            pull = pull + 0.2 * sum(1 - perturbations.mask(kind, 0).float() for kind in kinds)
        return (pull + 0.05 * mean).to(m.latent.dtype)


def constant(video: Modality | None = None, audio: Modality | None = None, **_: object) -> tuple[Tensor | None, ...]:
    """A model that always predicts 0.25."""
    return tuple(None if m is None else torch.full_like(m.latent, 0.25) for m in (video, audio))


def make_state(tokens: int = 6, axes: int = 3, batch: int = 1, dtype: torch.dtype = torch.float32) -> LatentState:
    generator = torch.Generator().manual_seed(tokens)
    latent = torch.randn(batch, tokens, 4, generator=generator).to(dtype)
    time = torch.linspace(0, 1, tokens + 1)
    spans = torch.stack((time[:-1], time[1:]), dim=-1).expand(batch, axes, -1, -1)
    return LatentState(latent, torch.ones(batch, tokens, 1), spans, clean_latent=torch.zeros_like(latent))


def both() -> dict[str, LatentState]:
    return {"video": make_state(6), "audio": make_state(5, axes=1)}


def with_held_tokens(state: LatentState) -> LatentState:
    mask = state.denoise_mask.clone()
    mask[:, :2] = 0
    clean = torch.full_like(state.clean_latent, -3.0)
    latent = torch.where(mask == 0, clean, state.latent)
    return replace(state, denoise_mask=mask, clean_latent=clean, latent=latent)


def guided(params: MultiModalGuiderParams, force: bool = False) -> GuidedDenoiser:
    guiders = {name: MultiModalGuider(params, NEGATIVE[name]) for name in CONTEXTS}
    return GuidedDenoiser(CONTEXTS, guiders, force_uncond_pass=force)


PLAIN = GuidedDenoiser(CONTEXTS, {n: MultiModalGuider(negative_context=c) for n, c in NEGATIVE.items()}, True)
FULL = MultiModalGuiderParams(cfg_scale=3.0, stg_scale=1.0, stg_blocks=[0], modality_scale=2.0, rescale_scale=0.5)


def run(
    states: Mapping[str, LatentState],
    sampler: Sampler,
    model: Callable[..., tuple[Tensor | None, ...]] | None = None,
    denoiser: GuidedDenoiser = PLAIN,
    sigmas: Tensor = SIGMAS,
) -> dict[str, Tensor]:
    *_, last = denoise(model or Model(), denoiser, states, sigmas, sampler)
    return {name: state.latent for name, state in last.states.items()}


# --- every sampler


@every_sampler
def test_lands_on_the_prediction(name: str) -> None:
    for latent in run(both(), SAMPLERS[name](1), constant).values():
        assert torch.allclose(latent, torch.full_like(latent, 0.25), atol=1e-5)


@every_sampler
def test_one_seed_one_result(name: str) -> None:
    first, again, other = (run(both(), SAMPLERS[name](seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(torch.equal(first[key], other[key]) for key in first) == (name not in STOCHASTIC)


@every_sampler
def test_held_tokens_stay(name: str) -> None:
    states = {key: with_held_tokens(state) for key, state in both().items()}
    for latent in run(states, SAMPLERS[name](1)).values():
        assert torch.allclose(latent[:, :2], torch.full_like(latent[:, :2], -3.0), atol=1e-5)
        assert latent[:, 2:].isfinite().all() and (latent[:, 2:] > -2).all()


@every_sampler
@pytest.mark.parametrize("stream", ["video", "audio"])
def test_a_stream_alone(name: str, stream: str) -> None:
    """The same code with one entry less; the absent stream draws no noise."""
    result = run({stream: both()[stream]}, SAMPLERS[name](1))
    assert set(result) == {stream} and result[stream].isfinite().all()


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_states_keep_their_dtype(name: str, dtype: torch.dtype) -> None:
    model = Model()
    result = run({"video": make_state(dtype=dtype)}, SAMPLERS[name](1), model)
    assert result["video"].dtype == dtype
    assert all(given["video"].latent.dtype == dtype for given, _ in model.calls)


@every_sampler
def test_a_schedule_may_end_above_zero(name: str) -> None:
    sigmas = torch.tensor([0.9, 0.7, 0.7, 0.4])
    assert run(both(), SAMPLERS[name](1), sigmas=sigmas)["video"].isfinite().all()


@every_sampler
def test_no_step_reads_a_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values a step that looks at one raises; on an accelerator it would wait."""

    def seeded(*_: object) -> torch.Generator:
        return torch.Generator()

    monkeypatch.setattr(samplers, "make_generator", seeded)
    monkeypatch.setattr(res2s, "make_generator", seeded)
    monkeypatch.setattr(TimestepGroups, "of", classmethod(lambda cls, mask, _: cls(mask, mask.flatten(), None)))
    states = {
        key: replace(state, **{part: value.to("meta") for part, value in vars(state).items() if torch.is_tensor(value)})
        for key, state in both().items()
    }
    contexts = {key: context.to("meta") for key, context in CONTEXTS.items()}
    guiders = {
        key: MultiModalGuider(MultiModalGuiderParams(cfg_scale=3.0, rescale_scale=0.5), context)
        for key, context in contexts.items()
    }
    result = run(states, SAMPLERS[name](1), constant, GuidedDenoiser(contexts, guiders))
    assert result["video"].is_meta


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("res_2s", 2)])
def test_order_of_convergence(name: str, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving the steps' length divides the error by 2^order."""
    monkeypatch.setattr(res2s, "SUBSTEP_ETA", 0.0)
    sampler = Res2sSampler(eta=0.0, bongmath=False) if name == "res_2s" else SAMPLERS[name](0)

    def solve(steps: int, with_sampler: Sampler) -> Tensor:
        state = replace(make_state(), latent=make_state().latent.double())
        sigmas = torch.exp(torch.linspace(0, math.log(0.3), steps + 1, dtype=torch.float64))
        return run({"video": state}, with_sampler, smooth, sigmas=sigmas)["video"]

    truth = solve(2048, HeunSampler())
    coarse, fine = ((solve(steps, sampler) - truth).abs().max() for steps in (8, 16))
    assert coarse / fine > 2**order * 0.75


def smooth(video: Modality, audio: None = None, **_: object) -> tuple[Tensor, None]:
    """x0 = tanh(x)."""
    return torch.tanh(video.latent), None


# --- the loop


def test_the_loop_is_lazy_and_can_be_left() -> None:
    model = Model()
    steps = denoise(model, PLAIN, both(), SIGMAS)
    assert not model.calls
    first = next(steps)
    assert isinstance(first, SamplingStep) and len(model.calls) == 1
    assert (first.index, first.total) == (0, 6) and first.sigma == pytest.approx(SIGMAS[1].item())
    assert set(first.results) == {"video", "audio"}
    assert torch.is_grad_enabled()
    steps.close()
    assert len(model.calls) == 1


def test_given_states_are_not_changed() -> None:
    states = both()
    before = {name: state.latent.clone() for name, state in states.items()}
    run(states, EulerSampler())
    assert all(torch.equal(states[name].latent, before[name]) for name in states)


def test_order_of_streams_does_not_matter() -> None:
    forward, backward = both(), dict(reversed(both().items()))
    sampler = StochasticSampler(ANCESTRAL, 3)
    one, two = run(forward, sampler), run(backward, sampler)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 1.2, 0.0], [1.0, 0.0, 0.0], [0.5, -0.1], [1.0, math.nan]])
def test_impossible_schedules_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        next(denoise(Model(), PLAIN, both(), torch.tensor(sigmas)))


def test_no_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match="no stream"):
        next(denoise(Model(), PLAIN, {}, SIGMAS))


def test_a_frozen_stream_is_seen_clean() -> None:
    audio = make_state(5, axes=1)
    audio = replace(audio, denoise_mask=torch.zeros_like(audio.denoise_mask), clean_latent=audio.latent, frozen=True)
    model = Model()
    result = run({"video": make_state(), "audio": audio}, EulerSampler(), model)
    assert torch.equal(result["audio"], audio.latent)
    for given, _ in model.calls:
        assert not given["audio"].timesteps.any() and given["audio"].sigma is not None
        assert not given["audio"].sigma.any() and bool(given["video"].sigma.all())  # type: ignore[union-attr]


def test_the_model_is_told_the_noise_of_every_token() -> None:
    model = Model()
    run({"video": with_held_tokens(make_state())}, EulerSampler(), model)
    for (given, _), sigma in zip(model.calls, SIGMAS, strict=False):
        video = given["video"]
        assert video.timesteps[0, :, 0].tolist() == [0, 0] + [pytest.approx(sigma.item())] * 4
        groups = video.grouped_timesteps()
        assert groups is video.timestep_groups, "grouped once for the whole run"
        assert torch.equal(groups.values[groups.index][..., None], video.timesteps)  # type: ignore[index]


def test_res2s_tells_the_midpoint_in_double_precision() -> None:
    model = Model()
    run({"video": make_state()}, Res2sSampler(), model)
    dtypes = [given["video"].timesteps.dtype for given, _ in model.calls]
    assert dtypes == [torch.float32, torch.float64] * 6 + [torch.float32]


@pytest.mark.parametrize("c", [0.01, 0.2])
@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_refined_anchor_is_the_iteration(c: float, iterations: int) -> None:
    anchor, midpoint, x0 = torch.randn(3, 2, 3, dtype=torch.float64).unbind()
    expected = anchor
    for _ in range(iterations):
        expected = midpoint - c * (x0 - expected)
    assert torch.allclose(refine_anchor(anchor, midpoint, x0, c, iterations), expected)


# --- guidance


def test_passes_follow_the_parameters() -> None:
    def names(denoiser: GuidedDenoiser, streams: tuple[str, ...] = ("video", "audio")) -> list[str]:
        guiders = {name: g for name, g in denoiser.guiders.items() if isinstance(g, MultiModalGuider)}
        return [each.name for each in denoiser.passes(guiders, streams)]

    assert names(GuidedDenoiser(CONTEXTS)) == ["cond"]
    assert names(guided(MultiModalGuiderParams())) == ["cond"]
    assert names(guided(MultiModalGuiderParams(), force=True)) == ["cond", "uncond"]
    assert names(guided(FULL)) == ["cond", "uncond", "ptb", "mod"]
    assert names(guided(FULL), ("video",)) == ["cond", "uncond", "ptb"]


def test_guidance_is_made_of_its_passes() -> None:
    call = DenoiseCall.at(SIGMAS, 1)
    result = guided(FULL)(Model(), both(), call)["video"]
    assert result.cond is not None
    expected = MultiModalGuider(FULL).calculate(result.cond, result.uncond, result.ptb, result.mod)
    assert torch.equal(result.denoised, expected)
    assert not torch.allclose(result.denoised, result.cond)
    single = GuidedDenoiser(CONTEXTS)(Model(), both(), call)["video"]
    assert torch.equal(single.denoised, result.cond)


def test_skipped_steps_reuse_the_last_prediction() -> None:
    model, skip = Model(), MultiModalGuiderParams(cfg_scale=2.0, skip_step=1)
    steps = list(denoise(model, guided(skip), both(), SIGMAS))
    assert len(model.calls) == 3
    assert torch.equal(steps[1].results["video"].denoised, steps[0].results["video"].denoised)
    half = GuidedDenoiser(CONTEXTS, {"video": MultiModalGuider(skip, NEGATIVE["video"])})
    model = Model()
    list(denoise(model, half, both(), SIGMAS))
    assert [given["video"].enabled for given, _ in model.calls] == [True, False] * 3
    assert all(given["audio"].enabled for given, _ in model.calls)


def test_guidance_by_noise_level() -> None:
    bins = {0.5: MultiModalGuiderParams(), 1.0: MultiModalGuiderParams(cfg_scale=2.0)}
    factory = MultiModalGuiderFactory.from_dict(bins, NEGATIVE["video"])
    model = Model()
    run({"video": make_state()}, EulerSampler(), model, GuidedDenoiser(CONTEXTS, {"video": factory}))
    assert [given["video"].batch_size for given, _ in model.calls] == [2 if s > 0.5 else 1 for s in SIGMAS[:-1]]


def test_missing_predictions_and_contexts_are_named() -> None:
    cfg = MultiModalGuiderParams(cfg_scale=2.0)
    with pytest.raises(ConfigError, match=r"video has cfg_scale .* and no negative context"):
        run(both(), EulerSampler(), denoiser=GuidedDenoiser(CONTEXTS, {"video": MultiModalGuider(cfg)}))
    with pytest.raises(ConfigError, match="force_uncond_pass"):
        run(both(), StochasticSampler(CFG_PP), denoiser=GuidedDenoiser(CONTEXTS))


# --- tiles


def tiled_case() -> tuple[VideoModalityTilingHelper, Modality]:
    tools = VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(1, 3, 4, 5, 6), fps=25.0)
    state = tools.create_initial_state(torch.device("cpu"), torch.float32, torch.randn(1, 3, 4, 5, 6))
    for frame in (0, 20):
        state = VideoConditionByKeyframeIndex(torch.randn(1, 3, 1, 5, 6), frame).apply_to(state, tools)
    state = replace(state, attention_mask=torch.rand(1, 180, 180))
    tiling = TileCountConfig((2, 1), (2, 2), (3, 1))
    modality = modality_from_latent_state(
        state, torch.zeros(1, 1, 1), torch.tensor([0.5]), mask_groups=TimestepGroups.of(state.denoise_mask)
    )
    return VideoModalityTilingHelper(tiling, tools), modality


def test_tiles_blend_back_to_the_whole() -> None:
    helper, modality = tiled_case()
    output = torch.zeros_like(modality.latent)
    tiles = helper.tiles(modality.positions)
    assert len(tiles) == 12
    for tile in tiles:
        helper.blend(helper.tile_modality(modality, tile).latent, tile, output)
    assert torch.allclose(output, modality.latent, atol=1e-6)


def test_a_tile_is_a_consistent_cut() -> None:
    helper, modality = tiled_case()
    tile = helper.tiles(modality.positions)[-1]
    part = helper.tile_modality(modality, tile)
    keep = tile.keep_indices
    assert torch.equal(part.attention_mask, modality.attention_mask[:, keep][:, :, keep])  # type: ignore[index]
    assert torch.equal(part.grouped_timesteps().timesteps, modality.timesteps[:, keep])
    assert part.positions[:, :, : tile.num_generated, 0].amin(dim=2).flatten().tolist() == [0, 0, 0]
    raw = helper.tile_modality(modality, tile, normalize_positions=False)
    assert torch.equal(raw.positions, modality.positions[:, :, keep])


def canvas() -> tuple[VideoLatentTools, dict[str, LatentState]]:
    """A noised video of 9 x 7 x 8 cells with two keyframes appended, one cell held, and a frozen sound."""
    generator = torch.Generator().manual_seed(5)
    tools = VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(1, 4, 9, 7, 8), fps=25.0)
    clip = torch.randn(1, 4, 9, 7, 8, generator=generator)
    video = tools.create_initial_state("cpu", torch.float32, clip)
    for frame in (4, 43):
        key = torch.randn(1, 4, 1, 7, 8, generator=generator)
        video = VideoConditionByKeyframeIndex(key, frame, 0.5).apply_to(video, tools)
    mask = video.denoise_mask.clone()
    mask[:, 30] = 0
    video = GaussianNoiser(generator)(replace(video, denoise_mask=mask), 0.8)
    sound = make_state(30, axes=1)
    sound = replace(sound, positions=sound.positions * 5, denoise_mask=torch.zeros(1, 30, 1), frozen=True)
    return tools, {"video": video, "audio": replace(sound, clean_latent=sound.latent)}


class Known:
    """Knows the clip: answers with the truth at the places of the tokens it is given."""

    def __init__(self, state: LatentState) -> None:
        self.places, self.truth, self.heard = state.positions, state.clean_latent, list[int]()

    def __call__(self, video: Modality, audio: Modality, **_: object) -> tuple[Tensor, Tensor]:
        same = (video.positions[0, :, :, None] == self.places[0, :, None]).all(dim=(0, 3))  # [n, N]
        assert bool((same.sum(dim=1) >= 1).all())
        self.heard.append(audio.latent.shape[1])
        return self.truth[:, same.float().argmax(dim=1)].expand(len(video.latent), -1, -1), audio.latent + 1


LAYOUTS = [
    TileCountConfig(),
    TileCountConfig(height=(2, 2), width=(3, 2)),
    TileCountConfig((3, 2), (2, 1), (2, 3)),
    TileCountConfig((2, 7), (3, 2), (7, 1)),
]


@pytest.mark.parametrize("tiling", LAYOUTS, ids=str)
def test_any_tiles_of_a_model_that_knows_the_clip_give_the_clip(tiling: TileCountConfig) -> None:
    tools, states = canvas()
    known = Known(states["video"])
    tiled = TiledTransformer(known, VideoModalityTilingHelper(tiling, tools))
    made = run(states, EulerSampler(), tiled, sigmas=torch.tensor([0.8, 0.5, 0.2, 0.0]))
    assert torch.allclose(made["video"], states["video"].clean_latent, atol=1e-6)
    assert torch.equal(made["audio"], states["audio"].latent), "frozen sound stays as it is"
    assert (min(known.heard) < 30) == (tiling.frames[0] > 1), "tiles in time hear the sound around them"


def test_one_tile_is_no_tile_and_tiles_draw_no_noise() -> None:
    tools, states = canvas()
    sampler, sigmas = SAMPLERS["euler_ancestral"](3), torch.tensor([0.8, 0.5, 0.2])
    plain = run(states, sampler, guided_model := Model(), guided(FULL), sigmas)
    whole = VideoModalityTilingHelper(TileCountConfig(), tools)
    again = run(states, sampler, TiledTransformer(Model(), whole), guided(FULL), sigmas)
    assert torch.equal(again["video"], plain["video"])
    calls, tiles = len(guided_model.calls), VideoModalityTilingHelper(LAYOUTS[1], tools)
    run(states, sampler, TiledTransformer(cut := Model(), tiles), guided(FULL), sigmas)
    assert len(cut.calls) == 6 * calls, "one call for each tile and step, whatever the guidance"
    known = TiledTransformer(Known(states["video"]), tiles)
    fresh = run(states, sampler, known, sigmas=sigmas)
    assert torch.allclose(
        fresh["video"], run(states, sampler, Known(states["video"]), sigmas=sigmas)["video"], atol=1e-6
    )
