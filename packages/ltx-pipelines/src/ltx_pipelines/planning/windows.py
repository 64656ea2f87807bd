"""Stages made in windows: each is a run of the transformer over a part of the clip's frames."""

from __future__ import annotations

from dataclasses import replace

from ltx_pipelines.planning.plan import CarriedKeyframes, Condition, ImageCondition, KeyframeSlots, StagePlan, Window


def runs(stage: StagePlan) -> list[StagePlan]:
    """The runs of the transformer a stage is made of."""
    return [window_stage(stage, number) for number in range(len(stage.windows))] or [stage]


def window_stage(stage: StagePlan, number: int) -> StagePlan:
    """A window as a stage of its own, whose frames count from its start. Its sampler draws noise of its own."""
    window, video, sampler = stage.windows[number], stage.streams["video"], stage.sampler
    conditions = [inside for condition in video.conditions if (inside := _inside(condition, window)) is not None]
    return replace(
        stage,
        shape=stage.shape._replace(frames=window.last - window.first + 1),
        streams={**stage.streams, "video": replace(video, conditions=tuple(conditions))},
        sampler=sampler if sampler.seed is None else replace(sampler, seed=sampler.seed + number),
        windows=(),
        window=window,
        delivered=None,
    )


def _inside(condition: Condition, window: Window) -> Condition | None:
    """The condition with its frames counted from the window's start; None where none of them lies in it."""
    match condition:
        case ImageCondition(frame_idx=frame):
            inside = window.first <= frame <= window.last and frame >= window.first_new
            return replace(condition, frame_idx=frame - window.first) if inside else None
        case KeyframeSlots(pixel_frame_indices=frames) | CarriedKeyframes(pixel_frame_indices=frames):
            local = tuple(frame - window.first for frame in frames if window.first <= frame <= window.last)
            return replace(condition, pixel_frame_indices=local) if local else None
    return condition
