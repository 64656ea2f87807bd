"""What a stage takes over from the one before: enlarged latents and keyframes; and how windows share and join them.

::

    result of stage k -> larger in space or time -> Given -> stage k + 1
                                                      |-> Given of window 1 -> result --\\
                                                      |-> Given of window 2 -> result ---+-> joined result

The result of a stage maps stream names to latents, and ``keyframes`` to what it carries on: one latent frame
``[1, C, K, h, w]`` for each of `keyframe_frames`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor

from ltx_core.model.upsampler.model import LatentUpsampler, upsample_latent
from ltx_pipelines.planning.plan import (
    CarriedKeyframes,
    Condition,
    ImageCondition,
    KeyframeSlots,
    Plan,
    StagePlan,
    Window,
)
from ltx_pipelines.utils.model_ledger import ModelLedger

KEYFRAMES = "keyframes"
Result = Mapping[str, Tensor]


@dataclass(frozen=True)
class Given:
    """What a stage begins with, at its own size and rate."""

    latents: Mapping[str, Tensor] = field(default_factory=dict)  # by stream
    keyframes: Mapping[int, Tensor] = field(default_factory=dict)  # [1, C, 1, h, w] by pixel frame
    video_before: Tensor | None = None  # [1, C, F, h, w] as the stage before left it


def growth(plan: Plan, index: int) -> tuple[bool, int]:
    """Whether a stage's picture is larger than that of the stage before, and how many times its frames."""
    if index == 0 or "video" not in plan.stages[index].streams:
        return False, 1
    before, now = plan.stages[index - 1].shape, plan.stages[index].shape
    larger = (before.height, before.width) != (now.height, now.width)
    return larger, (now.frames - 1) // max(before.frames - 1, 1) if now.frames != before.frames else 1


def handed_over(plan: Plan, index: int, result: Result, ledger: ModelLedger) -> Given:
    """What stage ``index`` begins with, given the result of the one before."""
    larger, rate = growth(plan, index)
    latents = {name: latent for name, latent in result.items() if name != KEYFRAMES}
    keyframes = result.get(KEYFRAMES) if keyframe_conditions(plan.stages[index]) else None
    if larger:
        latents["video"] = enlarged(latents["video"], ledger)
        keyframes = None if keyframes is None else enlarged(keyframes, ledger)
    if rate > 1:
        latents["video"] = enlarged(latents["video"], ledger, "temporal")
    carried = {}
    if keyframes is not None:
        frames = [frame * rate for frame in keyframe_frames(plan.stages[index - 1])]
        carried = dict(zip(frames, keyframes.split(1, dim=2), strict=True))
    return Given(latents, carried, result.get("video"))


def enlarged(latent: Tensor, ledger: ModelLedger, kind: Literal["spatial", "temporal"] = "spatial") -> Tensor:
    """The video latent of twice the size ``[1, C, F, 2h, 2w]``, or of twice the frames ``[1, C, 2F - 1, h, w]``."""
    upsampler = cast(LatentUpsampler, ledger.latent_upsampler(kind))
    mean, std = ledger.latent_statistics()
    with torch.no_grad():
        return upsample_latent(latent[:1], upsampler, mean, std)


def keyframe_conditions(stage: StagePlan) -> list[KeyframeSlots | CarriedKeyframes]:
    """The conditions that make keyframes or show those of the stage before."""
    conditions = stage.streams["video"].conditions if "video" in stage.streams else ()
    return [condition for condition in conditions if isinstance(condition, KeyframeSlots | CarriedKeyframes)]


def keyframe_frames(stage: StagePlan) -> list[int]:
    """The pixel frames of the keyframes a stage carries on: those it made and those it was shown."""
    return sorted({frame for condition in keyframe_conditions(stage) for frame in condition.pixel_frame_indices})


# Windows ------------------------------------------------------------------------------------------------------------


def window_stage(stage: StagePlan, number: int) -> StagePlan:
    """A window as a stage of its own, whose frames count from its start. Its sampler draws noise of its own."""
    window, video, sampler = stage.windows[number], stage.streams["video"], stage.sampler
    conditions = [inside for condition in video.conditions if (inside := _inside(condition, window)) is not None]
    return replace(
        stage,
        shape=stage.shape._replace(frames=window.last - window.first + 1),
        streams={"video": replace(video, conditions=tuple(conditions))},
        sampler=sampler if sampler.seed is None else replace(sampler, seed=sampler.seed + number),
        windows=(),
        delivered=None,
    )


def runs(stage: StagePlan) -> list[StagePlan]:
    """The runs of the transformer a stage is made of."""
    return [window_stage(stage, number) for number in range(len(stage.windows))] or [stage]


def window_given(given: Given, window: Window, time_factor: int) -> Given:
    """The part of what a stage begins with that lies in a window; ``time_factor`` is pixel frames per latent frame."""
    latents = slice(window.first // time_factor, window.last // time_factor + 1)
    keyframes = {
        frame - window.first: keyframe
        for frame, keyframe in given.keyframes.items()
        if window.first <= frame <= window.last
    }
    return Given({"video": given.latents["video"][:, :, latents]}, keyframes, given.video_before)


def joined(stage: StagePlan, results: Sequence[Result], given: Given) -> Result:
    """The result of a stage made in windows. A keyframe made twice is the earlier window's."""
    parts = zip(stage.windows, results, strict=True)
    video = torch.cat([result["video"][:, :, window.dropped :] for window, result in parts], dim=2)
    made = dict(given.keyframes)
    for number, (window, result) in enumerate(zip(stage.windows, results, strict=True)):
        if (keyframes := result.get(KEYFRAMES)) is not None:
            frames = [window.first + frame for frame in keyframe_frames(window_stage(stage, number))]
            for frame, keyframe in zip(frames, keyframes.split(1, dim=2), strict=True):
                made.setdefault(frame, keyframe)
    return {"video": video, KEYFRAMES: torch.cat([made[frame] for frame in sorted(made)], dim=2)}


def _inside(condition: Condition, window: Window) -> Condition | None:
    """The condition with its frames counted from the window's start; None where none of them lies in it."""
    match condition:
        case ImageCondition(frame_idx=frame):
            inside = window.first <= frame <= window.last
            return replace(condition, frame_idx=frame - window.first) if inside else None
        case KeyframeSlots(pixel_frame_indices=frames) | CarriedKeyframes(pixel_frame_indices=frames):
            local = tuple(frame - window.first for frame in frames if window.first <= frame <= window.last)
            return replace(condition, pixel_frame_indices=local) if local else None
    return condition
