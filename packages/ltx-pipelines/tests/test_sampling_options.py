"""Schedules, samplers and guiders as arguments of every guided pipeline: what a plan holds, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.components.schedulers import BetaScheduler, LinearQuadraticScheduler, LTX2Scheduler
from ltx_core.errors import ConfigError
from ltx_pipelines.cli.app import run
from ltx_pipelines.pipeline import GUIDED, pipelines
from ltx_pipelines.planning.cost import cost_of
from ltx_pipelines.planning.plan import SamplerName, plan_from_json
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.ti2vid_two_stages_hq import TI2VidTwoStagesHQPipeline
from ltx_pipelines.utils.model_ledger import ModelLedger

SMALL = {"prompt": "a bell rings", "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 3}
PLAIN = {"video_stg_scale": 0.0, "audio_stg_scale": 0.0, "video_modality_scale": 1.0, "audio_modality_scale": 1.0}


@pytest.fixture(scope="module")
def ledger() -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")


def latents(ledger: ModelLedger, **request: Any) -> torch.Tensor:
    generation: Generation = TI2VidOneStagePipeline(ledger)(**SMALL, **PLAIN, **request, output_type="latent")
    return generation.latents["video"]


def test_every_guided_pipeline_takes_them() -> None:
    names = {"scheduler", "sampler", "guider", "eta", "s_noise", "gamma", "apg_eta", "apg_norm_threshold"}
    own_schedule = {"ltxv", "ltxav"}  # LTX-Video has a schedule and a sampler of its own
    guided = {name for name, kind in pipelines().items() if "negative_prompt" in kind.fields()} - own_schedule
    assert guided >= {"ti2vid-one-stage", "ti2vid-two-stages", "a2vid-two-stage", "retake", "extend", "t2a-one-stage"}
    assert all(names <= pipelines()[name].fields().keys() for name in guided)
    assert all(
        GUIDED.isdisjoint(kind.fields()) for name, kind in pipelines().items() if name not in guided | own_schedule
    )


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("ltx2", LTX2Scheduler()), ("linear-quadratic", LinearQuadraticScheduler()), ("beta", BetaScheduler())],
)
def test_schedules(ledger: ModelLedger, name: str, scheduler: Any) -> None:
    plan = TI2VidOneStagePipeline(ledger).plan(**SMALL, scheduler=name)
    assert plan.stages[0].sigmas == tuple(scheduler.execute(3).tolist())


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_samplers_run_and_differ_from_euler(ledger: ModelLedger, name: str) -> None:
    made = latents(ledger, sampler=name)
    assert bool(made.isfinite().all())
    assert torch.equal(made, latents(ledger)) is (name == "euler")


def test_settings_of_samplers(ledger: ModelLedger) -> None:
    plain, calm = latents(ledger), latents(ledger, sampler="euler_ancestral", eta=0.0)
    assert torch.allclose(plain, calm, atol=1e-5)
    plan = TI2VidOneStagePipeline(ledger).plan(**SMALL, sampler="gradient-estimating", gamma=1.5)
    assert plan.stages[0].sampler.params == {"gamma": 1.5}
    hq = TI2VidTwoStagesHQPipeline(ledger)
    assert [stage.sampler.kind for stage in hq.plan(**SMALL).stages] == ["res_2s", "res_2s"]
    assert [stage.sampler.kind for stage in hq.plan(**SMALL, sampler="heun").stages] == ["heun", "heun"]
    with pytest.raises(UsageError, match="gamma has no effect with the sampler euler"):
        TI2VidOneStagePipeline(ledger).plan(**SMALL, gamma=1.5)
    with pytest.raises(ConfigError, match="sampler is 'hein', expected one of euler"):
        TI2VidOneStagePipeline(ledger).plan(**SMALL, sampler="hein")


def test_ancestral_noise_follows_the_seed(ledger: ModelLedger) -> None:
    first, again, other = (latents(ledger, sampler="euler_ancestral", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_guiders(ledger: ModelLedger) -> None:
    plain, star, apg = (latents(ledger, guider=name) for name in ("cfg", "cfg_star", "apg"))
    assert torch.allclose(plain, apg, atol=1e-4)  # with all of the guidance along the prediction kept
    assert not torch.allclose(plain, star, atol=1e-3)
    flat = latents(ledger, guider="apg", apg_eta=0.0)
    capped = latents(ledger, guider="apg", apg_norm_threshold=1e-6)
    moved = latents(ledger, guider="apg", apg_momentum=0.5)
    unguided = latents(ledger, video_cfg_scale=1.0, audio_cfg_scale=1.0)
    assert torch.allclose(capped, unguided, atol=1e-4)
    assert all(not torch.allclose(plain, other, atol=1e-3) for other in (flat, moved, unguided))
    with pytest.raises(UsageError, match="have no effect with guider cfg"):
        latents(ledger, apg_eta=0.5)


def test_guidance_by_noise_level(ledger: ModelLedger) -> None:
    same = latents(ledger, video_cfg_scale={0.5: 3.0, 1.0: 3.0})
    assert torch.equal(same, latents(ledger))
    late = latents(ledger, video_cfg_scale={0.0: 3.0, 1.0: 1.0}, audio_cfg_scale={0.0: 7.0, 1.0: 1.0})
    assert torch.equal(late, latents(ledger, video_cfg_scale=1.0, audio_cfg_scale=1.0))  # no step begins at 0
    pipeline = TI2VidOneStagePipeline(ledger)
    plan = pipeline.plan(**SMALL, video_cfg_scale={0.9: 1, 1: 6}, video_rescale_scale={0.5: 0, 1: 0.7})
    bins = plan.stages[0].streams["video"].guidance_by_sigma
    assert [(level, params.cfg_scale, params.rescale_scale) for level, params in bins] == [
        (0.5, 1.0, 0.0),
        (0.9, 1.0, 0.7),
        (1.0, 6.0, 0.7),
    ]
    assert bins[0][1].stg_blocks == ledger.defaults.stg_blocks
    assert plan_from_json(plan.to_json()) == plan
    whole = {0.9: MultiModalGuiderParams(), 1.0: MultiModalGuiderParams(cfg_scale=4.0)}
    stage = pipeline.plan(**SMALL, video_guider_params=whole).stages[0]
    assert stage.streams["video"].guidance_by_sigma == tuple(whole.items())


def test_cost_counts_the_passes_of_each_step(ledger: ModelLedger) -> None:
    pipeline = TI2VidOneStagePipeline(ledger)
    full, first, none = (
        cost_of(pipeline.plan(**SMALL, **PLAIN, video_cfg_scale=scale, audio_cfg_scale=1.0), ledger).flops
        for scale in (3.0, {0.99: 1.0, 1.0: 3.0}, 1.0)
    )
    assert 0 < none < first < full < none + 3 * (first - none)  # the second text is projected once


def test_on_a_line_and_in_the_recipe(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = "plan bell --pipeline one-stage --scheduler beta --sampler euler-ancestral --eta 0.5 --guider apg"
    assert run([*line.split(), "--apg-eta", "0", "--cfg", "0.9:1", "1:6", "--json"]) == 0
    stage = json.loads(capfd.readouterr().out)["plan"]["stages"][0]
    assert stage["sampler"]["kind"] == "euler_ancestral" and stage["sampler"]["params"] == {"eta": 0.5}
    levels = stage["streams"]["video"]["guidance_by_sigma"]
    assert [(level, params["cfg_scale"], params["guider"]) for level, params in levels] == [
        (0.9, 1, "apg"),
        (1, 6, "apg"),
    ]
    assert run(["one-stage", "-p", "bell", "--cfg", "0.9:1", "1:6", "-o", "bell.mp4", "-q"]) == 0
    assert run(["rerun", "bell.mp4", "--seed", "4", "-q"]) == 0
    assert run(["inspect", "bell-again.mp4"]) == 0
    assert "up to 0.9: cfg_scale 1.0" in capfd.readouterr().out
    assert run(["one-stage", "-p", "bell", "--sigmas", "1", "0.5", "0", "--steps", "3", "-q"]) == 2
    assert "the number of steps is given twice" in capfd.readouterr().err
