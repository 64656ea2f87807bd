"""Refuse what cannot work before any weight is read: each message names the field, its value and what would do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ltx_core.errors import ConditioningError, ConfigError, MediaError
from ltx_core.types import VideoPixelShape
from ltx_media.files import check_exists
from ltx_pipelines.planning.plan import (
    AudioReferenceCondition,
    CameraCondition,
    Condition,
    ImageCondition,
    KeyframeSlots,
    Plan,
    ReferenceCondition,
    RegionCondition,
    StagePlan,
)
from ltx_pipelines.planning.schema import options_of
from ltx_pipelines.request import Networks
from ltx_pipelines.running.model_facts import SLOTS

if TYPE_CHECKING:
    from ltx_pipelines.utils.model_ledger import ModelLedger

# Component -> field of `Networks` that gives a file of it, where that is not the slot it is read from.
FIELDS = {"embeddings": "text_projection", "transformer": "model", "text_encoder": "gemma_root"}
NEEDS = {  # stream -> components that decode it
    "video": ("video_decoder",),
    "audio": ("audio_decoder", "vocoder"),
}


def validate_plan(plan: Plan, ledger: ModelLedger) -> None:
    """Raise `ConfigError`, `ConditioningError`, `MediaError` or `CheckpointError` for a plan that would fail later."""
    if not (plan.prompt.strip() or any(files_given(plan))):
        raise ConfigError(
            "prompt is empty, expected a description of the clip, or a picture, clip or sound to begin with"
        )
    if not -(2**63) <= plan.seed < 2**63:
        raise ConfigError(f"seed is {plan.seed}, expected a 64-bit integer")
    if plan.background != "black":
        from ltx_media.pixels import parse_color

        parse_color(plan.background)
    check_files(plan)
    if ledger.is_ltx_video != (plan.ltx_video is not None):
        kind = "an LTX-Video 0.9.x model" if ledger.is_ltx_video else "no LTX-Video 0.9.x model"
        raise ConfigError(f"{ledger.files.checkpoint} is {kind}, which {plan.pipeline} cannot run")
    check_sizes(plan, ledger)
    for stage in plan.stages:
        check_tiles(stage)
        check_cheaper(stage, ledger)
    check_components(plan, ledger)
    if plan.text_embeddings is not None:
        check_text_embeddings(plan.text_embeddings, ledger)
    for stage, condition in plan.conditions():
        check_color_space(condition, plan)
        check_condition(condition, stage, ledger)
    for name, source in plan.sources.items():
        if name == "video":
            check_clip(source.path)
        else:
            check_sounding(source.path, source.start)
    if plan.long is not None and plan.long.anchor not in (None, "first"):
        check_image(ImageCondition(plan.long.anchor), plan.shape, may_be_clip=False)
    check_adapters(plan, ledger)  # last, since it takes torch
    check_headers(plan, ledger)


def files_given(plan: Plan) -> Iterator[str]:
    """The pictures, clips and sounds that a plan begins with."""
    yield from (source.path for source in plan.sources.values())
    paths = (getattr(condition, "path", None) for _, condition in plan.conditions())
    yield from (path for path in paths if path is not None)


def check_files(plan: Plan) -> None:
    """Every file of the model and every adapter is there."""
    for slot, path in plan.models.paths():
        if not Path(path).exists():
            raise ConfigError(f"{slot} is {path}, which does not exist")
    for lora in (lora for stage in plan.stages for lora in stage.loras):
        if not Path(lora.path).is_file():
            raise ConfigError(f"lora is {lora.path}, which does not exist")


def check_adapters(plan: Plan, ledger: ModelLedger) -> None:
    """Every adapter is one for this transformer."""
    if loras := {lora for stage in plan.stages for lora in stage.loras}:
        kinds = ledger.checkpoint.weights("transformer").kinds()
        for lora in loras:
            ledger.lora(lora).fit({name: kind.shape for name, kind in kinds.items()})


def check_sizes(plan: Plan, ledger: ModelLedger) -> None:
    """Sizes the VAE can hold exactly."""
    last = plan.stages[-1].shape
    if "video" in plan.stages[-1].streams:
        for stage in reversed(plan.stages):
            ledger.scale_factors.check(stage.shape)
    elif last.frames < 1 or not last.fps > 0:
        raise ConfigError(f"length is {last.frames} frames at {last.fps} fps, expected at least one frame")


def check_tiles(stage: StagePlan) -> None:
    """Tiles only hear a sound."""
    if stage.tiles is not None and any(not one.frozen for name, one in stage.streams.items() if name == "audio"):
        raise ConfigError("a stage in tiles makes sound, expected it frozen: each tile would make its own")


def check_cheaper(stage: StagePlan, ledger: ModelLedger) -> None:
    """Work is left out by torch on one device; of a self-attention where it has no strengths and is not compiled."""
    if (sparse := stage.sparse_attention) is None and stage.first_block_cache is None:
        return
    name = "first_block_cache" if sparse is None else "sparse_attention"
    excluded = {f"backend {ledger.backend}": ledger.backend != "torch", "several devices": ledger.devices is not None}
    if sparse is not None:
        count = int(ledger.config["transformer"].get("num_layers", 1))
        if 2 * sparse.layers >= count:
            said = f"sparse_attention leaves {sparse.layers} layers at either end dense, the model has {count}"
            raise ConfigError(f"{said}; nearest valid: {(count - 1) // 2}")
        excluded["compile_blocks"] = ledger.compile_blocks
        excluded["attention strengths of references"] = any(
            isinstance(one, ReferenceCondition) and (one.attention_strength != 1 or one.attention_mask is not None)
            for one in stage.streams["video"].conditions
        )
    for what in (one for one, given in excluded.items() if given):
        raise ConfigError(f"{name} is given with {what}, expected it left out")


def check_components(plan: Plan, ledger: ModelLedger) -> None:
    """Every network the plan uses is in the files."""
    texts_known = knows_texts(plan, ledger)
    wanted = {"transformer"} if texts_known or ledger.is_ltx_video else {"transformer", "embeddings"}
    wanted |= networks_of(plan) | (set() if texts_known else {"text_encoder"})
    if missing := [name for name in sorted(wanted) if not ledger.holds(name)]:
        found = ", ".join(f"{Path(path).name} ({slot})" for slot, path in ledger.files.paths())
        fields = options_of(Networks)
        options = ", ".join(dict.fromkeys(fields[FIELDS.get(name) or SLOTS[name]].flag for name in missing))
        lacks = f"the model has no {', '.join(missing)}, which {plan.pipeline} needs"
        raise ConfigError(f"{lacks}; found {found}; give the rest with {options}")
    sizes = {(stage.shape.height, stage.shape.width) for stage in plan.stages if "video" in stage.streams}
    if len(sizes) > 1:
        if plan.models.spatial_upsampler is None:
            raise ConfigError("spatial_upsampler is not given, expected the file of a x2 latent upsampler")
        if not ledger.holds("video_encoder"):
            raise ConfigError("the model has no video_encoder, whose statistics the upsampler needs")
    frames = {stage.shape.frames for stage in plan.stages if "video" in stage.streams}
    if len(frames) > 1 and plan.models.temporal_upsampler is None:
        raise ConfigError("temporal_upsampler is not given, expected the file of a latent upsampler in time")


def networks_of(plan: Plan) -> set[str]:
    """Components that encode and decode pixels and sound."""
    return {component for name in plan.decoded for component in NEEDS[name]} | set(plan.encoders())


def knows_texts(plan: Plan, ledger: ModelLedger) -> bool:
    """Whether no prompt has to be encoded."""
    return not plan.prompts or ledger.knows(plan.prompts)


def check_headers(plan: Plan, ledger: ModelLedger) -> None:
    """The files fill every network exactly, by the names and shapes in their headers."""
    texts = () if knows_texts(plan, ledger) else ("text_encoder",)
    ledger.check("transformer", *networks_of(plan), *texts)


def check_text_embeddings(path: str, ledger: ModelLedger) -> None:
    """The file holds encoded text of the width that the transformer reads."""
    from ltx_core.loader.safetensors_file import SafetensorsFile
    from ltx_core.model.transformer.config import TransformerConfig

    check_exists(path, "read text_embeddings")
    info = SafetensorsFile(path).tensors.get("video_context")
    if info is None:
        raise ConfigError(f"text_embeddings is {path}, which holds no video_context")
    config = TransformerConfig.from_metadata(ledger.config)
    width = config.caption_channels or (config.video.width if config.video else 0)
    if info.shape[-1] != width or len(info.shape) != 3 or info.shape[0] != 1:
        raise ConfigError(f"{path}: video_context is {list(info.shape)}, expected [1, tokens, {width}]")


def check_condition(condition: Condition, stage: StagePlan, ledger: ModelLedger) -> None:
    """The condition lies inside the clip, its file can be read, the model can use it."""
    shape = stage.shape
    match condition:
        case ImageCondition():
            check_image(condition, shape, may_be_clip=ledger.is_ltx_video)
        case ReferenceCondition():
            check_reference(condition, shape, ledger)
        case AudioReferenceCondition():
            check_strength("audio reference strength", condition.strength)
            if condition.path is not None:
                check_sounding(condition.path, 0.0)
        case RegionCondition():
            if condition.start >= stage.shown.duration:
                end = f"the clip ends at {stage.shown.duration:.3g} s"
                raise ConditioningError(f"start_time is {condition.start:g} s, {end}")
        case KeyframeSlots():
            check_slots(condition, shape, ledger)
        case CameraCondition():
            if condition.depth is not None:
                check_exists(condition.depth, "read depth")


def check_color_space(condition: Condition, plan: Plan) -> None:
    """EXR files are given where it is said what their numbers mean."""
    path = getattr(condition, "path", None)
    if plan.hdr is not None and isinstance(condition, CameraCondition):
        raise ConditioningError("a camera warps SDR pictures, expected no camera in an HDR clip")
    if path is None or (plan.hdr is not None and plan.transfer is None):
        return
    if Path(path).suffix.lower() == ".exr" or is_exr_folder(path):
        raise ConditioningError(f"{path} is HDR and needs its colour space: --hdr SRGB_LINEAR, ACESCG or ACESCCT")


def is_exr_folder(path: str) -> bool:
    if not Path(path).is_dir():
        return False
    from ltx_media.exr import exr_frames

    return bool(exr_frames(path))


def check_image(image: ImageCondition, shape: VideoPixelShape, may_be_clip: bool) -> None:
    check_strength("image strength", image.strength)
    image.check_place(shape.frames)
    if image.crf is not None and not 0 <= image.crf <= 51:
        raise ConditioningError(f"image crf is {image.crf}, expected 0 to 51")
    check_exists(image.path, "read image")
    if Path(image.path).suffix.lower() == ".exr":
        return
    from ltx_media.images import decode_image, is_image
    from ltx_media.video import probe_video

    if may_be_clip and not is_image(image.path):
        probe_video(image.path)
    else:
        decode_image(image.path)


def check_reference(reference: ReferenceCondition, shape: VideoPixelShape, ledger: ModelLedger) -> None:
    check_strength("reference strength", reference.strength)
    check_strength("conditioning_attention_strength", reference.attention_strength)
    factor = reference.downscale_factor
    for name, side in (("height", shape.height), ("width", shape.width)):
        step = factor * getattr(ledger.scale_factors, name)
        if side % step:
            expected = f"expected a multiple of {step} (reference factor {factor})"
            raise ConditioningError(f"first stage {name} is {side}, {expected}")
    if reference.path is not None:
        check_clip(reference.path)
    if reference.attention_mask is not None:
        check_exists(reference.attention_mask, "read video")
        from ltx_pipelines.running.conditions import attention_mask

        attention_mask(reference.attention_mask, shape._replace(frames=1))


def check_slots(slots: KeyframeSlots, shape: VideoPixelShape, ledger: ModelLedger) -> None:
    if not ledger.config.get("transformer", {}).get("use_keyframes_abs_pos_embedding"):
        raise ConditioningError("generated_keyframes need a model with keyframe embedding (LTX-2.5), this has none")
    indices = slots.pixel_frame_indices
    if not indices or indices[0] < 0 or indices[-1] >= shape.frames:
        raise ConditioningError(f"generated_keyframes are {list(indices)}, expected frames 0 to {shape.frames - 1}")


def check_strength(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConditioningError(f"{name} is {value}, expected 0 to 1; nearest valid: {min(max(value, 0.0), 1.0)}")


def check_clip(path: str) -> None:
    check_exists(path, "read video")
    if is_exr_folder(path):
        return
    from ltx_media.video import probe_video

    probe_video(path)


def check_sounding(path: str, start: float) -> None:
    check_exists(path, "read sound")
    from ltx_media.audio import read_audio

    if read_audio(path, start, 0.05) is None:
        raise MediaError(f"{path} has no sound at {start:g} s, expected a file with an audio track")
