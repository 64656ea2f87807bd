"""A keyframe in training and at generation: the same file becomes the same tokens at the same place, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ltx_core.sampling.stage import StreamStart
from ltx_media.images import write_png
from ltx_media.video import read_frames
from ltx_media.writer import write_video
from ltx_pipelines import KeyframeInterpolationPipeline
from ltx_pipelines.running.conditions import conditioning_items
from ltx_pipelines.running.stage_inputs import StageInputs
from ltx_pipelines.running.stages import tools_of
from ltx_trainer.data_config import DataSetConfig
from ltx_trainer.datasets import PrecomputedDataset, collate
from ltx_trainer.draws import step_draws
from ltx_trainer.held_out import FixedSigma
from ltx_trainer.model_files import find_model
from ltx_trainer.processing.prepare import prepare_set
from ltx_trainer.training_strategies.config import FlexibleConfig
from ltx_trainer.training_strategies.strategies import FlexibleStrategy


def trained(folder: Path):
    """The video of a step whose clip is given its first and its last frame."""
    (folder / "table.json").write_text(json.dumps([{"video": "clip.mp4", "caption": "x"}]))
    one = DataSetConfig(path=str(folder / "table.json"), resolution="64x64x17", keyframes=(0, -1))
    models = find_model("tiny")
    prepare_set(one, models, ("conditions", "latents", "keyframe_latents"), "cpu", 0)
    conditions = [{"type": "keyframe_image", "frame": frame} for frame in (-1, 0)]
    video = {"is_generated": True, "latents_dir": "latents", "conditions": conditions}
    config = FlexibleConfig.model_validate({"name": "flexible", "video": video})
    batch = collate([PrecomputedDataset(one.root, config.data_sources())[0]])
    strategy = FlexibleStrategy(FixedSigma(0.5), models.scale_factors(), config)
    return strategy.prepare_training_inputs(batch, step_draws("cpu", 0)).modalities["video"]


def generated(folder: Path):
    """The video of the stage of `ltx keyframe-interpolation` that has the clip's size, before noise."""
    for frame, picture in enumerate(read_frames(folder / "clip.mp4")):
        write_png(folder / f"{frame}.png", picture)
    images = [{"path": str(folder / f"{frame}.png"), "frame_idx": frame, "crf": 0} for frame in (0, 16)]
    pipeline = KeyframeInterpolationPipeline.from_pretrained("tiny")
    size = {"width": 64, "height": 64, "num_frames": 17, "frame_rate": 25.0}
    plan = pipeline.plan("a bell", images=images, **size)
    stage = plan.stages[-1]
    items = conditioning_items(plan, stage, "video", pipeline.ledger, StageInputs())
    tools = tools_of(stage, pipeline.ledger)["video"]
    return StreamStart(tools, items=items).condition("cpu", pipeline.ledger.dtype)


def test_training_gives_a_keyframe_as_the_pipeline_does(tmp_path):
    frames = torch.randint(0, 255, (17, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "clip.mp4", frames, 25.0)
    seen, asked = trained(tmp_path), generated(tmp_path)
    count = asked.latent.shape[1] - seen.reference_tokens
    assert seen.reference_tokens == 8 and seen.targets.shape[1] == count
    assert torch.equal(seen.latent[:, :8].bfloat16(), asked.clean_latent[:, count:].bfloat16())
    assert torch.equal(seen.positions[:, :, :8], asked.positions[:, :, count:])
    assert torch.equal(seen.positions[:, :, 8:], asked.positions[:, :, :count])
    assert not asked.denoise_mask[:, count:].any() and asked.denoise_mask[:, :count].all()
