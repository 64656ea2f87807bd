"""Changes that a plan makes to the files it was given, a line each, told from headers before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ltx_core.components.guiders import DEFAULT_NEGATIVE_PROMPT
from ltx_core.components.windows import FRAMES_PER_LATENT
from ltx_media.audio import probe_sound
from ltx_media.exr import exr_frames, is_exr
from ltx_media.source import Change, Wanted, changes_of, sound_changes
from ltx_media.video import VideoInfo, probe_video
from ltx_pipelines.ltx_video.media import wanted_media
from ltx_pipelines.planning.layout import PaddedSize, runs
from ltx_pipelines.planning.plan import (
    AudioReferenceCondition,
    Condition,
    ImageCondition,
    Plan,
    ReferenceCondition,
    Source,
    StagePlan,
)
from ltx_pipelines.planning.work import sparse_pattern
from ltx_pipelines.running.conditions import wanted_image, wanted_reference, wanted_source
from ltx_pipelines.utils.model_ledger import ModelLedger


def notes_of(plan: Plan, ledger: ModelLedger) -> tuple[str, ...]:
    """The lines of a plan; what is said of two stages is the last one's."""
    found: dict[tuple[str, str], str] = {}
    for path, changes in _changes(plan, ledger):
        for change in changes:
            found[path, change.what] = f"{Path(path).name}: {change.how}"
    if plan.long is not None and len(windows := plan.stages[0].windows) > 1:
        frames, shared = windows[0].last + 1, FRAMES_PER_LATENT * windows[1].shared
        found["", "windows"] = f"made in {len(windows)} windows of {frames} frames, each goes on from the last {shared}"
    return (*found.values(), *_of_work(plan, ledger), *_of_prompts(plan, ledger))


def _of_work(plan: Plan, ledger: ModelLedger) -> Iterator[str]:
    """Work that is left out although its result is not known."""
    for number, stage in enumerate(plan.stages, 1):
        if (sparse := stage.sparse_attention) is not None:
            kept = sparse_pattern(runs(stage)[0], sparse, ledger).kept
            where = f"after {sparse.steps} of {stage.steps} steps, but for {sparse.layers} layers at either end"
            yield f"stage {number}: the picture's self-attention computes {kept:.1%} of its pairs {where}"
        if (cache := stage.first_block_cache) is not None:
            steps = f"steps after the first {cache.steps} whose first block changes by less than {cache.threshold:g}"
            yield f"stage {number}: {steps} run no other; their number is not known before, and the cost counts none"


def _of_prompts(plan: Plan, ledger: ModelLedger) -> Iterator[str]:
    """Prompts that are longer than what the model reads of them."""
    for prompt in plan.prompts if ledger.files.text_encoder is not None else ():
        short = len(prompt.encode()) < ledger.text_tokens  # no token is less than a byte
        if prompt == DEFAULT_NEGATIVE_PROMPT or short:
            continue
        if (count := ledger.count_tokens(prompt)) > ledger.text_tokens:
            dropped = count - ledger.text_tokens
            yield f"the prompt has {count} tokens, the model reads {ledger.text_tokens}: the last {dropped} are dropped"


def _changes(plan: Plan, ledger: ModelLedger) -> Iterator[tuple[str, tuple[Change, ...]]]:
    if plan.ltx_video is not None:
        yield from _of_ltx_video(plan, ledger)
        return
    for stage, condition in plan.conditions():
        yield from _of_condition(condition, stage, plan, ledger)
    for name, source in plan.sources.items():
        if name == "audio":
            yield source.path, _of_sound(source, plan)
        else:
            stage = next(one for one in reversed(plan.stages) if one.streams[name].start == "source")
            wanted = wanted_source(source, stage.shape, ledger.scale_factors, plan)
            clip = probe_video(source.path)
            said = [change for change in changes_of(clip, wanted) if wanted.fit == "crop" or change.what != "size"]
            yield source.path, (*said, *_of_source(clip, stage))


def _of_ltx_video(plan: Plan, ledger: ModelLedger) -> Iterator[tuple[str, tuple[Change, ...]]]:
    assert plan.ltx_video is not None
    size = PaddedSize.of(plan.ltx_video.asked, ledger.scale_factors)
    given = [(source.path, 0) for source in plan.sources.values()]
    images = (condition for _, condition in plan.conditions() if isinstance(condition, ImageCondition))
    for path, start in [*given, *((image.path, image.frame_idx) for image in images)]:
        yield path, changes_of(probe_video(path), wanted_media(size, start, plan.background))


def _of_condition(
    condition: Condition, stage: StagePlan, plan: Plan, ledger: ModelLedger
) -> Iterator[tuple[str, tuple[Change, ...]]]:
    match condition:
        case ImageCondition(path=path) if not is_exr(path):
            wanted = wanted_image(condition, stage.shape, ledger, plan)
            yield path, changes_of(probe_video(path), wanted)
        case ReferenceCondition(path=str() as path) if not exr_frames(path):
            wanted, clip = wanted_reference(condition, stage.shape, plan), probe_video(path)
            yield path, (*changes_of(clip, wanted), *_of_reference(clip, stage), *_of_adapters(stage, ledger))
            if (mask := condition.attention_mask) is not None and not mask.endswith(".safetensors"):
                shape = stage.shape
                wanted = Wanted(shape.height, shape.width, shape.frames, shape.fps)
                yield mask, changes_of(probe_video(mask), wanted)
        case AudioReferenceCondition(path=str() as path):
            yield path, sound_changes(sound.channels if (sound := probe_sound(path)) else 0)


def _of_reference(clip: VideoInfo, stage: StagePlan) -> Iterator[Change]:
    """A reference that ends before the clip that follows it."""
    if clip.frames > 1 and clip.duration < stage.shape.duration - 1 / stage.shape.fps:
        lengths = f"{clip.duration:.2f} s long, the clip is {stage.shape.duration:.2f} s"
        yield Change("length", f"{lengths}: its rest follows nothing")


def _of_adapters(stage: StagePlan, ledger: ModelLedger) -> Iterator[Change]:
    """A reference that no adapter was trained to follow."""
    said = [name for lora in stage.loras for name in ledger.lora(lora).metadata]
    if not any(name.startswith("reference_") for name in said):
        which = "none of the adapters says that it takes references" if stage.loras else "no adapter is given (--lora)"
        yield Change("adapter", f"{which}, so nothing will follow it")


def _of_source(clip: VideoInfo, stage: StagePlan) -> Iterator[Change]:
    """Lines on how a source is made to fit the grid, and what is added to it."""
    work, shown = stage.shape, stage.shown
    if (shown.height, shown.width) != (clip.height, clip.width) and clip.height - shown.height in (0, 1):
        yield Change("even", f"an odd last row or column is left out: {shown.width} x {shown.height}")
    if (added := shown.frames - clip.frames) > 0:
        yield Change("added", f"{added / shown.fps:.2f} s ({added} frames) are added, the nearest length that fits")
    if work != shown:
        grid = f"{work.width} x {work.height} and {work.frames} frames"
        yield Change("grid", f"worked on at {grid}, cut back to {shown.width} x {shown.height} and {shown.frames}")


def _of_sound(source: Source, plan: Plan) -> tuple[Change, ...]:
    sound = probe_sound(source.path)
    if sound is None:
        return ()
    changes = sound_changes(sound.channels)
    length = min(sound.duration - source.start, source.duration or sound.duration)
    if length > plan.shape.duration + 1 / plan.shape.fps:
        changes += (Change("length", f"{length:.2f} s of sound cut to {plan.shape.duration:.2f} s"),)
    return changes
