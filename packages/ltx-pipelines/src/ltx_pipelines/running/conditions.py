"""From a plan's conditions and sources to the conditioning items and latents of one stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.components.helpers import conform_latent_length, temporal_subsample
from ltx_core.components.patchifiers import AudioPatchifier
from ltx_core.components.strength import smoothstep
from ltx_core.components.windows import FRAMES_PER_LATENT
from ltx_core.conditioning import (
    AudioConditionByReferenceLatent,
    ConditionByStart,
    ConditioningItem,
    ConditioningItemAttentionStrengthWrapper,
    TemporalRegionMask,
    VideoConditionByKeyframeIndex,
    VideoConditionByReferenceLatent,
    VideoGeneratedKeyframeSlots,
)
from ltx_core.conditioning.mask_utils import downsample_mask_video_to_latent
from ltx_core.conditioning.types.reference_cond import before_the_start
from ltx_core.conditioning.types.seen_cond import VideoConditionBySeen
from ltx_core.errors import MediaError
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.model.audio_vae.audio_vae import encode_audio
from ltx_core.networks import VideoEncoder
from ltx_core.types import Audio, AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape
from ltx_media.audio import read_audio
from ltx_media.camera.path import camera_path_from_json
from ltx_media.camera.warp import Warped, fill_holes, warp_still
from ltx_media.color import HDRColorSpace
from ltx_media.source import Wanted, load_mask_video, normalize_source
from ltx_media.video import probe_video
from ltx_pipelines.planning.plan import (
    AudioReferenceCondition,
    CameraCondition,
    CarriedKeyframes,
    Condition,
    ImageCondition,
    KeyframeSlots,
    Plan,
    ReferenceCondition,
    RegionCondition,
    Source,
    StagePlan,
)
from ltx_pipelines.running.stage_inputs import Continuation, StageInputs
from ltx_pipelines.utils.model_ledger import ModelLedger

FINER = 2  # how much larger than the clip the picture is warped from, so that a zoom finds something
SEEN_SHARE = 0.95  # of a cell in every one of its frames, for the cell to be held


def conditioning_items(
    plan: Plan, stage: StagePlan, modality: str, ledger: ModelLedger, inputs: StageInputs
) -> list[ConditioningItem]:
    """The items of one stream, in the plan's order; media are read and encoded at the stage's size."""
    conditions = stage.streams[modality].conditions
    items = [item for condition in conditions for item in _items(condition, plan, stage.shape, ledger, inputs)]
    fade = fade_items(plan, stage, ledger) if modality == "video" else ()
    return [*fade, *items, *start_items(inputs.start, modality)]


def _items(
    condition: Condition, plan: Plan, shape: VideoPixelShape, ledger: ModelLedger, inputs: StageInputs
) -> Iterator[ConditioningItem]:
    match condition:
        case ImageCondition():
            yield from _image_items(condition, shape, ledger, plan)
        case ReferenceCondition(downscale_factor=factor, temporal_scale_factor=every) if condition in inputs.references:
            latent = inputs.references[condition]
            yield VideoConditionByReferenceLatent(latent, factor, every, condition.strength)
        case ReferenceCondition():
            yield _reference_item(condition, wanted_reference(condition, shape, plan), shape, ledger, inputs)
        case CameraCondition():
            frames = warped_clip(condition, shape, plan.background)
            latent = encode_video(torch.stack([fill_holes(frame) for frame in frames], dim=1)[None], ledger)
            yield VideoConditionBySeen(latent, seen_cells(frames, ledger.scale_factors), condition.release)
        case AudioReferenceCondition():
            yield _audio_reference_item(condition, ledger, inputs)
        case RegionCondition():
            yield TemporalRegionMask(condition.start, condition.end, shape.fps)
        case KeyframeSlots(pixel_frame_indices=frames):
            yield VideoGeneratedKeyframeSlots(frames, _seeds(frames, ledger, inputs) if condition.seeded else None)
        case CarriedKeyframes(pixel_frame_indices=frames):
            for frame in frames:
                yield VideoConditionByKeyframeIndex(inputs.keyframes[frame], frame, condition.strength)


def wanted_image(image: ImageCondition, shape: VideoPixelShape, ledger: ModelLedger, plan: Plan) -> Wanted:
    """A still at the size of the clip, with the marks of video compression the model expects."""
    crf = ledger.defaults.image_crf if image.crf is None else image.crf
    return Wanted(shape.height, shape.width, 1, crf=crf, **looks_of(plan))


def looks_of(plan: Plan) -> dict[str, Any]:
    """Look of a plan's sources, as fields of `Wanted`."""
    space = None if plan.hdr is None or plan.transfer is not None else HDRColorSpace(plan.hdr)
    return {"background": plan.background, "color_space": space}


def _image_items(
    image: ImageCondition, shape: VideoPixelShape, ledger: ModelLedger, plan: Plan
) -> Iterator[ConditioningItem]:
    """A still in place at frame 0, as extra tokens elsewhere; nothing where its strength is 0."""
    if not (places := image.places(shape.frames, ledger.scale_factors.time)):
        return
    latent = encode_still(image, shape, ledger, plan)
    for frame, strength in places.items():
        if frame == 0 and not image.as_keyframe:
            yield ConditionByStart(latent, (strength,), image.release)
        else:
            yield VideoConditionByKeyframeIndex(latent, frame, strength, release=image.release)


def encode_still(image: ImageCondition, shape: VideoPixelShape, ledger: ModelLedger, plan: Plan) -> Tensor:
    """A still as a latent of its own ``[1, C, 1, h, w]``."""
    return encode_video(normalize_source(image.path, wanted_image(image, shape, ledger, plan)).video, ledger)


def start_items(start: Continuation, modality: str) -> Iterator[ConditioningItem]:
    """Items that a window of a long clip goes on from, of one stream."""
    if modality in start.latents:
        yield ConditionByStart(start.latents[modality], start.strengths[modality], "smoothstep")
    if modality == "video" and start.anchor is not None:
        frames = FRAMES_PER_LATENT * start.anchor.shape[2]
        yield VideoConditionByKeyframeIndex(start.anchor, -frames, num_pixel_frames=frames)


def fade_items(plan: Plan, stage: StagePlan, ledger: ModelLedger) -> Iterator[ConditioningItem]:
    """The start of a stage whose pictures fade into each other, along a smoothstep; held before the first and behind
    the last."""
    stream = stage.streams["video"]
    images = sorted(
        (one for one in stream.conditions if isinstance(one, ImageCondition)), key=lambda one: one.frame_idx
    )
    if not stream.fade or not images:
        return
    known = [(image.frame_idx, encode_still(image, stage.shape, ledger, plan)) for image in images]
    latents = []
    for frame in range(0, stage.shape.frames, ledger.scale_factors.time):
        earliest = min(known, key=itemgetter(0))
        before, one = max((pair for pair in known if pair[0] <= frame), key=itemgetter(0), default=earliest)
        after, other = min((pair for pair in known if pair[0] > frame), key=itemgetter(0), default=(before, one))
        share = smoothstep((frame - before) / (after - before)) if after > before else 0.0
        latents.append(torch.lerp(one, other, share))
    yield ConditionByStart(torch.cat(latents, dim=2), (stream.fade,) * len(latents), "smoothstep")


def encode_picture(frame: Tensor, ledger: ModelLedger) -> Tensor:
    """A frame ``[H, W, 3]`` in [0, 1] as a latent of its own ``[1, C, 1, h, w]``."""
    return encode_video(frame.permute(2, 0, 1)[None, :, None] * 2 - 1, ledger)


def _seeds(frames: Sequence[int], ledger: ModelLedger, inputs: StageInputs) -> Tensor:
    """Start of keyframe slots ``[1, C, K, h, w]``: the keyframe handed over, else the nearest latent frame."""
    nearest = {frame: round(frame / ledger.scale_factors.time) for frame in frames}
    return torch.cat(
        [
            inputs.keyframes[frame] if frame in inputs.keyframes else inputs.latents["video"][:, :, at : at + 1]
            for frame, at in nearest.items()
        ],
        dim=2,
    )


def _reference_item(
    reference: ReferenceCondition, wanted: Wanted, shape: VideoPixelShape, ledger: ModelLedger, inputs: StageInputs
) -> ConditioningItem:
    factor, every = reference.downscale_factor, reference.temporal_scale_factor
    if reference.path is None:
        assert inputs.video_before is not None
        latent, frames = inputs.video_before, shape.frames
    else:
        latent, frames = encoded_reference(reference, wanted, ledger)
    item = VideoConditionByReferenceLatent(latent, factor, every, reference.strength)
    strength: float | Tensor = reference.attention_strength
    if reference.attention_mask is not None:
        mask = attention_mask(reference.attention_mask, shape._replace(frames=frames)).to(ledger.device)
        strength = strength * downsample_mask_video_to_latent(mask, VideoLatentShape.from_torch_shape(latent.shape))
    elif strength == 1.0:
        return item
    return ConditioningItemAttentionStrengthWrapper(item, strength)


def reference_latent(reference: ReferenceCondition, shape: VideoPixelShape, ledger: ModelLedger, plan: Plan) -> Tensor:
    """A reference clip ``[1, C, f, h, w]`` as a stage of a shape is shown it."""
    return encoded_reference(reference, wanted_reference(reference, shape, plan), ledger)[0]


def encoded_reference(reference: ReferenceCondition, wanted: Wanted, ledger: ModelLedger) -> tuple[Tensor, int]:
    """A reference clip as a latent, and how many frames it was made of."""
    assert reference.path is not None
    every = reference.temporal_scale_factor
    clip = mirror_in_time(normalize_source(reference.path, wanted).video, every * ledger.scale_factors.time)
    return encode_video(temporal_subsample(clip, every), ledger), clip.shape[2]


def wanted_reference(reference: ReferenceCondition, shape: VideoPixelShape, plan: Plan) -> Wanted:
    """A reference clip at the time and a whole fraction of the size of the clip that follows it."""
    height, width = shape.height // reference.downscale_factor, shape.width // reference.downscale_factor
    fit: Literal["mirror", "crop"] = "mirror" if plan.hdr is not None else "crop"
    # A clip that keeps its size is as much smaller as the stage, whatever is added to fill the grid.
    shrink = 1 if plan.transfer is None else plan.stages[-1].shape.height // height
    return Wanted(height, width, shape.frames, shape.fps, fit=fit, shrink=shrink, **looks_of(plan))


def _audio_reference_item(
    reference: AudioReferenceCondition, ledger: ModelLedger, inputs: StageInputs
) -> ConditioningItem:
    """The whole sound as tokens that end just before the clip begins."""
    if reference.path is None:
        latent = inputs.latents["audio"]
    elif (sound := read_audio(reference.path)) is None:
        raise MediaError(f"{reference.path} has no sound, expected a file with an audio track")
    else:
        latent = encode_sound(sound, ledger)
    patchifier = AudioPatchifier()
    spans = patchifier.get_patch_grid_bounds(AudioLatentShape.from_torch_shape(latent.shape), latent.device)
    return AudioConditionByReferenceLatent(patchifier.patchify(latent), before_the_start(spans), reference.strength)


def attention_mask(path: str, shape: VideoPixelShape) -> Tensor:
    """Attention to a reference, ``[1, 1, F, h, w]`` in [0, 1]: a tensor ``mask`` in a file, or grey pictures.

    Grey pictures are taken by time; the last of them holds to the end.
    """
    if path.endswith(".safetensors"):
        return SafetensorsFile(Path(path)).read("mask").float()
    mask = load_mask_video(path, shape.height, shape.width, shape.frames, shape.fps)
    held = mask[:, :, -1:].expand(-1, -1, shape.frames - mask.shape[2], -1, -1)
    return torch.cat((mask, held), dim=2)


def source_latent(plan: Plan, modality: str, shape: VideoPixelShape, ledger: ModelLedger) -> Tensor:
    """The latent a stream starts from: the encoded source at its place in the new clip, empty where it has none."""
    source = plan.sources[modality]
    if modality == "audio":
        return _audio_source(source, shape, ledger)
    factors = ledger.scale_factors
    target = VideoLatentShape.from_pixel_shape(shape, scale_factors=factors)
    first = round(source.offset * shape.fps)
    clip = normalize_source(source.path, wanted_source(source, shape, factors, plan)).video
    if first:  # a clip that begins later is preceded by its first frame, so that the causal encoder sees no jump
        clip = torch.cat((clip[:, :, :1].expand(-1, -1, first, -1, -1), clip), dim=2)
    return conform_latent_length(encode_video(mirror_in_time(clip, factors.time), ledger), target.frames)


def wanted_source(source: Source, shape: VideoPixelShape, factors: SpatioTemporalScaleFactors, plan: Plan) -> Wanted:
    """A source as it enters a clip: at its own size where it fits into the working size, else scaled and cropped."""
    info = probe_video(source.path)
    room = shape.height - info.height, shape.width - info.width
    mirrored = 0 <= room[0] < factors.height and 0 <= room[1] < factors.width
    frames = shape.frames - round(source.offset * shape.fps)
    if source.duration is not None:
        frames = min(frames, max(round(source.duration * shape.fps), 1))
    fit: Literal["mirror", "crop"] = "mirror" if mirrored else "crop"
    return Wanted(shape.height, shape.width, frames, shape.fps, source.start, fit, **looks_of(plan))


def mirror_in_time(clip: Tensor, step: int) -> Tensor:
    """Frames ``[1, 3, F, h, w]`` continued by their mirror image in time to a whole number of latent frames."""
    count = clip.shape[2]
    total, period = -(-(count - 1) // step) * step + 1, max(2 * (count - 1), 1)
    order = [min(index % period, period - index % period) if count > 1 else 0 for index in range(total)]
    return clip if total == count else clip[:, :, order]


def _audio_source(source: Source, shape: VideoPixelShape, ledger: ModelLedger) -> Tensor:
    target = AudioLatentShape.from_video_pixel_shape(shape)
    sound = read_audio(source.path, source.start, source.duration)
    if sound is None:
        raise MediaError(f"{source.path} has no sound at {source.start:g} s, expected a file with an audio track")
    if source.offset:
        silence = round(source.offset * sound.sampling_rate)
        sound = Audio(F.pad(sound.waveform, (silence, 0)), sound.sampling_rate)
    return conform_latent_length(encode_sound(sound, ledger), target.frames)


@torch.no_grad()
def encode_sound(sound: Audio, ledger: ModelLedger) -> Tensor:
    """A sound as a normalised latent ``[1, C, T, M]``."""
    return encode_audio(sound.to(device=ledger.device), ledger.network("audio_encoder")).to(ledger.dtype)


def encode_video(pixels: Tensor, ledger: ModelLedger) -> Tensor:
    """Pixels ``[1, 3, F, H, W]`` in [-1, 1] to a normalised latent, streamed so that memory does not grow with F."""
    encoder: VideoEncoder = ledger.network("video_encoder")
    pixels = pixels.to(ledger.device, ledger.dtype)
    with torch.no_grad():
        if pixels.shape[2] > 1 and encoder.can_stream:
            return encoder.encode_streaming(pixels.split(4 * ledger.scale_factors.time, dim=2))
        return encoder(pixels)


# Views of the first picture by a moved camera: held where it is seen, made where it is not --------------------------


def warped_clip(camera: CameraCondition, shape: VideoPixelShape, background: str) -> list[Warped]:
    """The camera's view of the picture at each frame, ``[3, H, W]`` in [-1, 1], and its holes."""
    keys = camera_path_from_json(camera.camera_path).frames(shape.frames, shape.fps)
    height, width = FINER * shape.height, FINER * shape.width
    still = normalize_source(camera.image, Wanted(height, width, 1, background=background)).video[0, :, 0]
    depth = None if camera.depth is None else read_depth(camera.depth, height, width)
    return warp_still(still, keys, depth, camera.plane, (shape.height, shape.width))


def seen_cells(frames: list[Warped], factors: SpatioTemporalScaleFactors) -> Tensor:
    """Latent cells ``[f, h, w]`` that show the picture alone in all their frames, as do their neighbours."""
    shown = torch.stack([(~frame.hole).float() for frame in frames])[:, None]
    size = shown.shape[2] // factors.height, shown.shape[3] // factors.width
    cells = F.interpolate(shown, size=size, mode="area")[:, 0]
    grouped = cells[1:].unflatten(0, (-1, factors.time)).amin(dim=1) if len(frames) > 1 else cells[:0]
    lowest = torch.cat((cells[:1], grouped))
    around = -F.max_pool2d(-lowest[:, None], 3, stride=1, padding=1)[:, 0]  # the encoder looks beyond its cell
    return around >= SEEN_SHARE


def read_depth(path: str, height: int, width: int) -> np.ndarray:
    """A depth map ``[height, width]`` in scene units from .npy or the tensor ``depth`` of .safetensors, by area."""
    try:
        if path.endswith(".safetensors"):
            values = SafetensorsFile(Path(path)).read("depth").float()
        else:
            values = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot read depth, expected .npy or .safetensors with `depth`: {error}") from error
    values = values.squeeze()
    if values.ndim != 2 or not bool((values > 0).all()):
        raise MediaError(f"{path}: depth has shape {list(values.shape)}, expected [H, W] of values above 0")
    return F.interpolate(values[None, None], size=(height, width), mode="nearest")[0, 0].double().numpy()
