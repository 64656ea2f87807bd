"""Tiles of a stage as clips of their own: each begins with its part of everything, and the results are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ltx_core.model.common.tiling import Interval, TileCountConfig, box_slices, partition_of_unity, product
from ltx_core.types import SpatioTemporalScaleFactors, VideoLatentShape
from ltx_pipelines.planning.plan import ReferenceCondition, StagePlan
from ltx_pipelines.running.stage_inputs import StageInputs, StageResult

Box = tuple[Interval, ...]  # latent cells along frames, height and width


def tile_stages(stage: StagePlan, factors: SpatioTemporalScaleFactors) -> list[tuple[Box, StagePlan]]:
    """Each tile of a stage with its box, frames slowest."""
    assert stage.tiles is not None
    latent = VideoLatentShape.from_pixel_shape(stage.shape, scale_factors=factors)
    found = []
    for box in product(*TileCountConfig(*stage.tiles).split((latent.frames, latent.height, latent.width))):
        frames, height, width = (axis.length for axis in box)
        pixels = latent._replace(frames=frames, height=height, width=width).upscale(factors)
        shape = stage.shape._replace(frames=pixels.frames, height=pixels.height, width=pixels.width)
        found.append((box, replace(stage, shape=shape, tiles=None, apart=False, delivered=None)))
    return found


def references_of(stage: StagePlan) -> list[ReferenceCondition]:
    """The clips that a stage follows."""
    return [one for one in stage.streams["video"].conditions if isinstance(one, ReferenceCondition)]


def tile_inputs(inputs: StageInputs, box: Box) -> StageInputs:
    """The part of what a stage begins with, and of the references it is shown, that lies in a tile."""
    frames, height, width = box_slices(box)
    references = {
        one: latent[:, :, frames, smaller(height, one.downscale_factor), smaller(width, one.downscale_factor)]
        for one, latent in inputs.references.items()
    }
    video = inputs.latents["video"][:, :, frames, height, width]
    return replace(inputs, latents={"video": video}, references=references)


def smaller(cells: slice, factor: int) -> slice:
    """The cells of a grid that is so many times as coarse."""
    return slice(cells.start // factor, -(-cells.stop // factor))


def join_tiles(boxes: Sequence[Box], results: Sequence[StageResult], whole: Tensor) -> StageResult:
    """The video that tiles make of ``whole`` ``[1, C, F, h, w]``; where they overlap each fades into its neighbours."""
    axes = [list(dict.fromkeys(box[axis] for box in boxes)) for axis in range(3)]
    joined = torch.zeros_like(whole, dtype=torch.float32)
    for box, result, weights in zip(boxes, results, partition_of_unity(axes, whole.shape[2:]), strict=True):
        frames, height, width = box_slices(box)
        joined[:, :, frames, height, width] += result["video"].float() * weights.to(joined)
    return {"video": joined.to(whole.dtype)}
