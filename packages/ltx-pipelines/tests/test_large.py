"""Clips of any size: stages in tiles, what they cost, and clips that are enlarged, made faster and joined."""

from __future__ import annotations

import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.errors import ConfigError
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.planning.cost import tiled_work
from ltx_pipelines.planning.layout import tiles_of
from ltx_pipelines.planning.plan import plan_from_json
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.retake import RetakePipeline
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.utils.model_ledger import ModelLedger

SMALL = {"prompt": "a bell rings", "height": 64, "width": 128, "num_frames": 9, "seed": 3}
LTX = SpatioTemporalScaleFactors.default()


@pytest.fixture(scope="module")
def ledger() -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")


def test_a_clip_is_enlarged_in_tiles_that_share_its_sound(ledger: ModelLedger) -> None:
    pipeline = DistilledPipeline(ledger)
    plan = pipeline.plan(**SMALL, upscale=4, tile_size=160)
    assert [(s.shape.height, s.shape.width) for s in plan.stages] == [(32, 64), (64, 128), (128, 256), (256, 512)]
    assert [stage.tiles for stage in plan.stages[2:]] == [((1, 0), (1, 0), (2, 1)), ((1, 0), (2, 1), (4, 1))]
    assert plan_from_json(plan.to_json()) == plan
    large, plain = (pipeline(**SMALL, **more, output_type="latent") for more in ({"upscale": 4, "tile_size": 160}, {}))
    assert large.latents["video"].shape[2:] == (2, 8, 16)
    assert torch.equal(large.stages[1]["video"], plain.latents["video"])
    assert torch.equal(large.latents["audio"], plain.latents["audio"]), "no tile makes sound of its own"


def test_one_tile_is_the_whole_picture(ledger: ModelLedger) -> None:
    whole, tiled = (DistilledPipeline(ledger).plan(**SMALL, upscale=2, tile_size=size) for size in (512, 64))
    assert [plan.stages[2].tiles for plan in (whole, tiled)] == [((1, 0),) * 3, ((1, 0), (3, 1), (7, 1))]
    (one,), (several,) = (list(tiled_work(plan.stages[2], ledger)) for plan in (whole, tiled))
    assert several.activations < one.activations and several.flops > 2 * one.flops, "21 tiles of which each is small"


def test_the_guided_schedule_goes_on_from_a_low_level(ledger: ModelLedger) -> None:
    plan = TI2VidOneStagePipeline(ledger).plan(**SMALL, num_inference_steps=8, upscale=2)
    first, second = plan.stages
    assert second.sigmas == (0.625, *(sigma for sigma in first.sigmas if sigma < 0.625))
    assert second.guided and second.streams["audio"].frozen and plan.shape.width == 256


def test_4k_mode_is_a_default_size(ledger: ModelLedger) -> None:
    pipeline = TI2VidTwoStagesPipeline(ledger).enable_4k_mode()
    assert pipeline.plan("a bell", num_frames=9).shape[2:4] == (2176, 3840)
    assert pipeline.plan("a bell", num_frames=9, height=64, width=64, upscale=1).shape[2:4] == (64, 64)
    with pytest.raises(ConfigError, match="RetakePipeline cannot enlarge"):
        RetakePipeline(ledger).enable_4k_mode()


def test_wrong_requests_are_named(ledger: ModelLedger) -> None:
    pipeline = DistilledPipeline(ledger)
    with pytest.raises(ConfigError, match=r"upscale is 3, expected 1, 2 or 4; nearest valid: 4"):
        pipeline.plan(**SMALL, upscale=3)
    with pytest.raises(UsageError, match="tile_size has no effect without upscale"):
        pipeline.plan(**SMALL, tile_size=256)


def test_tiles_are_few_and_small_enough() -> None:
    uhd = VideoPixelShape(1, 257, 2176, 3840, 24.0)
    assert tiles_of(uhd, LTX, 1408) == ((1, 0), (2, 4), (3, 4))
    assert tiles_of(uhd._replace(frames=1001), LTX, 1408)[0] == (4, 4), "long clips are cut in time too"
    assert tiles_of(uhd._replace(height=1088, width=1408), LTX, 1408) == ((1, 0), (1, 0), (1, 0))
    assert tiles_of(uhd, LTX, 64)[1:] == ((67, 1), (119, 1))
