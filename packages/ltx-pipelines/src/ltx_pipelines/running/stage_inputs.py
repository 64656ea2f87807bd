"""Inputs of a stage: latents and keyframes of the stage before, enlarged; dividing and joining windows and tiles.

::

    result of stage k -> larger in space or time -> StageInputs -> stage k + 1
                                                      |-> of window 1 -> result --\\
                                                      |-> of window 2 -> result ---+-> joined result

The result of a stage maps stream names to latents, and ``keyframes`` to what it carries on: one latent frame
``[1, C, K, h, w]`` for each of its ``keyframe_frames``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ltx_core.components.joining import adain
from ltx_core.conditioning.tools import LatentTools
from ltx_core.model.common.tiling import Interval, TileCountConfig, box_slices, partition_of_unity, product
from ltx_core.model.upsampler.model import upsample_latent
from ltx_core.sampling.denoisers import Denoiser
from ltx_core.sampling.modality import States
from ltx_core.sampling.samplers import Sampler
from ltx_core.types import SpatioTemporalScaleFactors, VideoLatentShape
from ltx_pipelines.planning.layout import window_stage
from ltx_pipelines.planning.plan import Plan, ReferenceCondition, StagePlan, Window
from ltx_pipelines.utils.model_ledger import ModelLedger

KEYFRAMES = "keyframes"
StageResult = Mapping[str, Tensor]


@dataclass(frozen=True)
class Continuation:
    """Start of a window of a long clip: first latent frames of each stream, and the strength of each."""

    latents: Mapping[str, Tensor] = field(default_factory=dict)
    strengths: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    anchor: Tensor | None = None  # [1, C, 1, h, w], shown before time 0


@dataclass(frozen=True)
class StageInputs:
    """Latents and keyframes at the size and rate of the stage that begins with them."""

    latents: Mapping[str, Tensor] = field(default_factory=dict)  # by stream
    keyframes: Mapping[int, Tensor] = field(default_factory=dict)  # [1, C, 1, h, w] by pixel frame
    video_before: Tensor | None = None  # [1, C, F, h, w] as the stage before left it
    start: Continuation = Continuation()
    references: Mapping[ReferenceCondition, Tensor] = field(default_factory=dict)  # those that are encoded already


@dataclass(frozen=True)
class StageRun:
    """A stage that is ready to be denoised."""

    tools: Mapping[str, LatentTools[Any]]  # by stream
    states: States  # noised
    denoiser: Denoiser
    sampler: Sampler


def carry_over(plan: Plan, index: int, result: StageResult, ledger: ModelLedger) -> StageInputs:
    """Inputs of stage ``index``, given the result of the one before."""
    larger, rate = plan.growth(index)
    latents = {name: latent for name, latent in result.items() if name != KEYFRAMES}
    keyframes = result.get(KEYFRAMES) if plan.stages[index].keyframe_conditions else None
    if larger:
        latents["video"] = enlarge(latents["video"], ledger)
        if plan.stages[index].match_statistics:
            latents["video"] = adain(latents["video"], result["video"])
        keyframes = None if keyframes is None else enlarge(keyframes, ledger)
    if rate > 1:
        latents["video"] = enlarge(latents["video"], ledger, "temporal")
    carried = {}
    if keyframes is not None:
        frames = [frame * rate for frame in plan.stages[index - 1].keyframe_frames]
        carried = dict(zip(frames, keyframes.split(1, dim=2), strict=True))
    return StageInputs(latents, carried, result.get("video"))


def enlarge(latent: Tensor, ledger: ModelLedger, kind: Literal["spatial", "temporal"] = "spatial") -> Tensor:
    """The video latent of twice the size ``[1, C, F, 2h, 2w]``, or of twice the frames ``[1, C, 2F - 1, h, w]``."""
    upsampler = ledger.latent_upsampler(kind)
    mean, std = ledger.latent_statistics()
    with torch.no_grad():
        return upsample_latent(latent[:1], upsampler, mean, std)


def window_inputs(inputs: StageInputs, window: Window, time_factor: int) -> StageInputs:
    """The part of what a stage begins with that lies in a window; ``time_factor`` is pixel frames per latent frame."""
    latents = slice(window.first // time_factor, window.last // time_factor + 1)
    keyframes = {
        frame - window.first: keyframe
        for frame, keyframe in inputs.keyframes.items()
        if window.first <= frame <= window.last
    }
    return StageInputs({"video": inputs.latents["video"][:, :, latents]}, keyframes, inputs.video_before)


def join_windows(stage: StagePlan, results: Sequence[StageResult], inputs: StageInputs) -> StageResult:
    """The result of a stage made in windows. A keyframe made twice is the earlier window's."""
    parts = zip(stage.windows, results, strict=True)
    video = torch.cat([result["video"][:, :, window.dropped :] for window, result in parts], dim=2)
    made = dict(inputs.keyframes)
    for number, (window, result) in enumerate(zip(stage.windows, results, strict=True)):
        if (keyframes := result.get(KEYFRAMES)) is not None:
            frames = [window.first + frame for frame in window_stage(stage, number).keyframe_frames]
            for frame, keyframe in zip(frames, keyframes.split(1, dim=2), strict=True):
                made.setdefault(frame, keyframe)
    return {"video": video, KEYFRAMES: torch.cat([made[frame] for frame in sorted(made)], dim=2)}


# Tiles of a stage as clips of their own: each begins with its part of everything, and the results are joined ------

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
