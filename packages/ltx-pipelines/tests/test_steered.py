"""Clips whose camera follows a path: what is held, what is made, adapters by name, and wrong requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.golden.case import TINY_CHECKPOINT
from tests.motion import global_motion

from ltx_core.components.patchifiers import VideoLatentPatchifier
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.conditioning.types.seen_cond import VideoConditionBySeen
from ltx_core.errors import ConditioningError, ConfigError, MediaError
from ltx_core.types import SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape
from ltx_media.camera import CameraPath, Key, Pose
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.planning.camera import ADAPTER, adapter_for, steer
from ltx_pipelines.planning.plan import CameraCondition, Lora, plan_from_json
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.request import Request
from ltx_pipelines.running.conditions import read_depth, seen_cells, warped_clip
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.utils.media_io import write_png
from ltx_pipelines.utils.model_ledger import ModelLedger

LTX = SpatioTemporalScaleFactors.default()
SHAPE = VideoPixelShape(1, 9, 128, 192, 8.0)
PAN = CameraPath((Key(0.0), Key(1.0, Pose(rotation=(10, 0, 0)))), "linear")


@pytest.fixture(scope="module")
def ledger() -> ModelLedger:
    return ModelLedger(find_model(str(TINY_CHECKPOINT)).files, dtype=torch.float32, device="cpu", policy="resident")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A smooth texture of 384 x 256."""
    path = tmp_path_factory.mktemp("media") / "photo.png"
    v, u = np.mgrid[0:256, 0:384]
    texture = 127 + 60 * np.sin(u / 17)[..., None] * np.cos(v / 13)[..., None] + 40 * np.sin((u + v) / 23)[..., None]
    write_png(path, torch.from_numpy(texture.repeat(3, -1).astype(np.uint8)))
    return str(path)


def test_a_pan_moves_the_picture_by_f_tan(photo: str) -> None:
    frames = warped_clip(CameraCondition(photo, PAN.to_json()), SHAPE, "black")
    focal = 96 / np.tan(np.radians(25))
    x, y = global_motion(frames[0].image, torch.where(frames[8].hole, 0, frames[8].image))
    assert len(frames) == 9 and not bool(frames[0].hole.any())
    assert x == pytest.approx(-focal * np.tan(np.radians(10)), abs=1.5) and abs(y) < 1
    seen = seen_cells(frames, LTX)
    assert seen.shape == (2, 4, 6) and bool(seen[0].all())
    assert bool(seen[1, :, :2].all()) and not bool(seen[1, :, 3:].any()), (
        "the hole opens at the right, and one cell more"
    )


def test_what_is_seen_is_held_and_the_rest_is_made(ledger: ModelLedger, photo: str) -> None:
    pipeline, size = TI2VidOneStagePipeline(ledger), {"height": 128, "width": 192, "num_frames": 9}
    plan = pipeline.plan("a wall", images=photo, camera=PAN, num_inference_steps=2, frame_rate=8.0, **size)
    condition = plan.stages[0].streams["video"].conditions[-1]
    assert isinstance(condition, CameraCondition) and plan_from_json(plan.to_json()) == plan
    events = list(pipeline.stream("a wall", images=photo, camera=PAN, num_inference_steps=2, frame_rate=8.0, **size))
    states = [event.states["video"] for event in events if event.states]
    start, end = states[0], states[-1]
    held = (start.denoise_mask == 0)[0, :, 0].view(2, 4, 6)
    assert bool(held[0].all()) and bool(held[1, :, :2].all()) and not bool(held[1, :, 3:].any())
    assert torch.equal(end.latent[0, held.flatten()], start.clean_latent[0, held.flatten()])


def test_seen_tokens_fit_the_clip() -> None:
    tools = VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(1, 4, 2, 3, 3), fps=24.0)
    state = tools.create_initial_state("cpu", torch.float32)
    latent, seen = torch.ones(1, 4, 2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool)
    seen[:, 1, 1] = True
    made = VideoConditionBySeen(latent, seen, "smoothstep").apply_to(state, tools)
    assert made.denoise_mask.sum() == 17 and made.release is not None and made.release.count_nonzero() == 1
    assert float(made.clean_latent.sum()) == 4, "frame 0 is left to the picture itself"
    with pytest.raises(ConditioningError, match="seen has shape"):
        VideoConditionBySeen(latent, seen[:1]).apply_to(state, tools)


def test_published_adapters_are_taken_by_name(ledger: ModelLedger, tmp_path: Path) -> None:
    from ltx_media.camera import parse_moves

    assert adapter_for(parse_moves("dolly in 1"), tmp_path) is None
    path = tmp_path / ADAPTER.format("dolly-in")
    path.write_bytes(b"")
    assert adapter_for(parse_moves("dolly in 1"), tmp_path) == (Lora(str(path)), "The camera pushes in.")
    assert adapter_for(parse_moves("dolly in 1, pan left 5"), tmp_path) is None, "one move each"
    stages = DistilledPipeline(ledger).plan("a bell", height=64, width=64, num_frames=9).stages
    request, steered_stages = steer(Request("a bell", camera="dolly in 1"), stages, tmp_path, (2, 0))
    assert request.prompt == "a bell The camera pushes in."
    assert all(stage.loras == (Lora(str(path)),) for stage in steered_stages)
    with pytest.raises(ConfigError, match="camera needs a picture at frame 0"):
        steer(Request("a bell", camera="dolly in 1"), stages, tmp_path, (2, 3))


def test_wrong_requests_are_named(ledger: ModelLedger, photo: str, tmp_path: Path) -> None:
    pipeline = DistilledPipeline(ledger)
    wrong = {
        "expected camera_depth or camera_plane": {"camera": "orbit right 10"},
        "no effect without camera": {"camera_plane": 2.0},
        "'pam' is no move": {"camera": "pam left 4"},
        "runs to 9.0 s, expected within the clip": {"camera": "pan left 4, 0-9s"},
    }
    for message, request in wrong.items():
        with pytest.raises(ConfigError, match=message):
            pipeline.plan("a wall", images=photo, num_frames=9, **request)
    with pytest.raises(ConfigError, match=r"cannot read lost.json"):
        pipeline.plan("a wall", images=photo, camera="lost.json")
    with pytest.raises(UsageError, match="no effect without camera"):
        pipeline.plan("a wall", camera_depth=photo)
    np.save(tmp_path / "depth.npy", np.full((8, 12), 2.0))
    assert read_depth(str(tmp_path / "depth.npy"), 16, 24).shape == (16, 24)
    (tmp_path / "bad.npy").write_text(json.dumps([1]))
    with pytest.raises(MediaError, match="cannot read depth"):
        read_depth(str(tmp_path / "bad.npy"), 16, 24)
