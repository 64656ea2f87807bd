"""Pictures whose strength falls over time and over sigma: held to the bit at 1, absent at 0, no ghost in between."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx_core.components.strength import CURVES, Curve
from ltx_core.conditioning import ConditionByStart, VideoConditionByKeyframeIndex
from ltx_core.conditioning.tools import latent_tools
from ltx_core.errors import ConfigError
from ltx_core.sampling.denoisers import DenoisedLatentResult, Predictor
from ltx_core.sampling.release import ReleasingSampler, mask_at
from ltx_core.sampling.samplers import EulerSampler, HeunSampler, Sampler
from ltx_core.sampling.stage import StreamStart, begin_streams
from ltx_core.types import LatentState, SpatioTemporalScaleFactors, VideoPixelShape
from ltx_pipelines import ImageCondition, KeyframeInterpolationPipeline, TI2VidOneStagePipeline
from ltx_pipelines.cli.app import run
from ltx_pipelines.planning.schema import UsageError

FACTORS = SpatioTemporalScaleFactors(8, 32, 32)
SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.0])
X0 = 2.0  # what the model predicts everywhere


def noisy(latent_state: LatentState, noise_scale: float = 1.0) -> LatentState:
    mask = latent_state.denoise_mask
    noise = torch.randn(latent_state.latent.shape, generator=torch.Generator().manual_seed(1))
    return replace(latent_state, latent=torch.lerp(latent_state.clean_latent, noise, mask))


def begun(*items: Any) -> LatentState:
    tools = latent_tools(VideoPixelShape(1, 17, 32, 32, 24.0), ["video"], FACTORS, 4)
    return begin_streams({"video": StreamStart(tools["video"], None, items)}, noisy, "cpu", torch.float32)["video"]


def denoised(state: LatentState, inner: Sampler) -> list[LatentState]:
    """The states after each step of a model that always predicts ``X0``."""

    def model(transformer: Any, states: Any, call: Any) -> Any:
        groups, mask = call.memory.mask_groups["video"], states["video"].denoise_mask
        each = groups.values[:, None] if groups.index is None else groups.values[groups.index]
        assert each.expand(mask.shape[:2]).equal(mask[..., 0]), "modulation is told the level of every token"
        return {name: DenoisedLatentResult(torch.full_like(s.latent, X0)) for name, s in states.items()}

    noise = torch.randn(state.latent.shape, generator=torch.Generator().manual_seed(2))
    sampler = ReleasingSampler(inner, {"video": noise}) if state.release is not None else inner
    states: Any = {"video": state}
    predict, memory = Predictor(lambda: None, model, states, SIGMAS), sampler.begin(states)  # type: ignore[arg-type]
    found = []
    for index in range(len(SIGMAS) - 1):
        states = sampler.step(predict, states, index, memory)
        found.append(states["video"])
    return found


@pytest.mark.parametrize("inner", [EulerSampler(), HeunSampler()], ids=["euler", "heun"])
def test_a_full_strength_is_held_to_the_bit_and_a_released_one_leaves_no_ghost(inner: Sampler) -> None:
    key = torch.randn(1, 4, 1, 1, 1)
    firm = denoised(begun(VideoConditionByKeyframeIndex(key, 8)), inner)
    assert all(state.latent[:, -1].equal(key[:, :, 0, 0, 0]) for state in firm)
    for strength in (1.0, 0.5):
        for release in ("linear", "smoothstep"):
            start = ConditionByStart(key, (strength,), release)  # type: ignore[arg-type]
            last = denoised(begun(start), inner)[-1]
            if strength < 1:
                assert torch.allclose(last.latent, torch.full_like(last.latent, X0), atol=1e-5)
    ghost = denoised(begun(ConditionByStart(key, (0.5,))), inner)[-1].latent[:, 0]
    assert torch.allclose(ghost, 0.5 * key[:, :, 0, 0, 0] + 0.5 * X0, atol=1e-5)


@pytest.mark.parametrize("release", CURVES)
def test_strengths_fall_to_nothing_at_the_last_evaluated_sigma(release: Curve) -> None:
    mask, code = torch.tensor([[[0.3]]]), torch.tensor([[[CURVES.index(release)]]])
    found = [float(mask_at(mask, code, SIGMAS[:-1].tolist(), index)) for index in range(4)]
    assert found[0] == pytest.approx(0.3)
    if release == "hold":
        assert found == [pytest.approx(0.3)] * 4
    else:
        assert found[-1] == 1 and all(a < b for a, b in pairwise(found))


def test_places_of_a_picture() -> None:
    assert ImageCondition("a", 8, 0.9).places(49, 8) == {8: 0.9}
    assert ImageCondition("a", 8, 0.0, reach=16).places(49, 8) == {}
    around = ImageCondition("a", 16, 0.8, reach=23, curve="linear").places(25, 8)
    assert {frame: round(one, 6) for frame, one in around.items()} == {16: 0.8, 24: 0.533333, 8: 0.533333, 0: 0.266667}
    assert set(ImageCondition("a", 16, 1.0, reach=8).places(49, 8).values()) == {1.0}


def test_a_picture_of_no_strength_is_no_picture(here: Path) -> None:
    pipeline = TI2VidOneStagePipeline.from_pretrained()
    without = pipeline("a bell", output_type="latent", progress=False)
    for picture in (ImageCondition("photo.png", 8, 0.0), ImageCondition("photo.png", 0, 0.0, release="linear")):
        made = pipeline("a bell", images=[picture], output_type="latent", progress=False)
        assert made.latents["video"].equal(without.latents["video"])
    with_it = pipeline("a bell", images=[ImageCondition("photo.png", 0, 1.0)], output_type="latent", progress=False)
    assert not with_it.latents["video"].equal(without.latents["video"])


def test_a_fade_between_pictures_steers_and_is_let_go(here: Path) -> None:
    pipeline = KeyframeInterpolationPipeline.from_pretrained()
    images = [("first.png", 0), ("last.png", 8)]
    plan = pipeline.plan("a door opens", images=images, keyframe_fade=0.8)
    assert [stage.streams["video"].fade for stage in plan.stages] == [0.8, 0.0]
    plain = pipeline("a door opens", images=images, output_type="latent", progress=False)
    faded = pipeline("a door opens", images=images, keyframe_fade=0.8, output_type="latent", progress=False)
    assert not faded.latents["video"].equal(plain.latents["video"])
    with pytest.raises(UsageError, match="keyframe_fade has no effect without images"):
        pipeline.plan("a door opens", keyframe_fade=0.8)
    with pytest.raises(ConfigError, match=r"'slow'.*expected one of hold, linear, smoothstep"):
        pipeline.plan("a door opens", images=[{"path": "first.png", "release": "slow"}])


def test_curves_on_a_line(here: Path) -> None:
    line = ["plan", "a bell", "--pipeline", "ti2vid-one-stage", "-i", "photo.png", "0", "0.8", "20", "smoothstep", "8"]
    assert run([*line, "linear"]) == 0
    assert run([*line, "steep"]) != 0
