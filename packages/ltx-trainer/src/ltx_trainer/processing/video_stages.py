"""Videos, references and masks to records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ltx_core.errors import ConfigError, MediaError
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_media.images import decode_image, is_image
from ltx_media.pixels import resize_and_crop
from ltx_media.source import Wanted, normalize_source, sampling_rate, source_frames
from ltx_media.video import STILL_FPS, VideoInfo, probe_video
from ltx_trainer.precomputed import Record
from ltx_trainer.processing.buckets import Bucket, select_bucket
from ltx_trainer.processing.controls import find_control
from ltx_trainer.processing.masks import alpha_planes, image_mask, kept_frames, video_mask, weights_on_grid
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.stage import Prepared, Stage
from ltx_trainer.processing.tiles import encode_in_tiles
from ltx_trainer.processing.workspace import Report, Workspace


def video_stage(work: Workspace) -> Stage:
    """Target clips to ``latents``."""

    def prepare(row: Row) -> Prepared:
        path = row.media["video"]
        info = probe_video(path)
        rate = sampling_rate(info, work.options.fps)
        bucket, frames = _fit_bucket(row, info, rate, work)
        still = bucket.frames == 1
        return frames, {"fps": float(STILL_FPS) if still else rate or float(info.fps)}

    return Stage("latents", prepare, lambda clips: encode_clips(clips, work), work.options.batch_size)


def reference_stage(work: Workspace) -> Stage:
    """References to ``reference_latents``: the target's size and length, or whole fractions of them."""
    scale, factor = work.options.reference_downscale_factor, work.options.reference_temporal_scale_factor
    asked = work.options.control
    found = None if asked is None else find_control(asked, work.options.device)

    def prepare(row: Row) -> Prepared:
        path, target = row.media["reference_video"], target_bucket(work, row)
        height, width = target.height // scale, target.width // scale
        control = found if row.control else None
        if is_image(path):
            picture = fitted_frames(path, 1, (height, width), None, work)
            return control(picture) if control else picture, {"fps": float(STILL_FPS)}
        fps = target_fps(work, row)
        frames = fitted_frames(path, target.frames, (height, width), fps, work, work.crop(row), row.start)
        if len(frames[0]) < target.frames:
            raise MediaError(f"{path}: it holds {len(frames[0])} frames, its target has {target.frames}")
        frames = control(frames) if control else frames
        return frames[:, kept_frames(target.frames, factor)], {"fps": fps / factor}

    return Stage("reference_latents", prepare, lambda clips: encode_clips(clips, work), work.options.batch_size)


def mask_stage(work: Workspace) -> Stage:
    """Masks to ``video_masks``, on the target's latent grid and cut like it."""

    def prepare(row: Row) -> Prepared:
        path, target = row.media["video_mask"], target_bucket(work, row)
        grid, frames = _grid(work, target), _grey_frames(work, row, path, target, "nearest")
        if is_image(path):
            return image_mask(frames[0, 0], grid, work.factors), {}
        # The first latent frame covers one frame only: repeating it puts every other group of frames where it belongs.
        return video_mask(torch.cat([frames[:1]] * (work.factors.time - 1) + [frames]), grid, work.factors), {}

    return Stage("video_masks", prepare, lambda masks: [{"mask": mask} for mask in masks])


def loss_mask_stage(work: Workspace) -> Stage:
    """Weights of latent cells in the loss, to ``loss_masks``: a file's brightness, or the video's alpha."""

    def prepare(row: Row) -> Prepared:
        path, target = row.media["loss_mask"], target_bucket(work, row)
        if path == row.media.get("video"):
            alpha = alpha_planes(path, target.frames, target_fps(work, row), row.start)
            frames = resize_and_crop(alpha, target.height, target.width, crop=work.crop(row)).clamp(0, 1)
        else:
            frames = _grey_frames(work, row, path, target, "bicubic")
        return weights_on_grid(frames, _grid(work, target), work.factors), {}

    return Stage("loss_masks", prepare, lambda masks: [{"mask": mask} for mask in masks])


def keyframe_stage(work: Workspace) -> Stage:
    """Pictures of the target, each encoded as a clip of its own, to ``keyframe_latents``."""

    def prepare(row: Row) -> Prepared:
        path, target = row.media["video"], target_bucket(work, row)
        rate, size = sampling_rate(probe_video(path), work.options.fps), (target.height, target.width)
        quiet = replace(work, report=Report())  # what is changed was said of the target
        frames = fitted_frames(path, target.frames, size, rate, quiet, work.crop(row), row.start)
        kept = keyframes_of(target.frames, work.options.keyframes)
        return (frames[:, kept], torch.tensor(kept)), {}

    def encode(clips: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Record]:
        for pictures, frames in clips:  # one at a time, as generation encodes them
            made = [next(encode_clips([picture], work)) for picture in pictures.split(1, dim=1)]
            latents = torch.cat([torch.as_tensor(record["latents"]) for record in made], dim=1)
            yield {**made[0], "latents": latents, "num_frames": len(frames), "frames": frames}

    return Stage("keyframe_latents", prepare, encode)


def keyframes_of(count: int, keyframes: Sequence[int]) -> list[int]:
    """The frames of a clip of ``count`` that ``keyframes`` name, rising; negative ones count from the end."""
    return sorted({range(count)[frame] for frame in keyframes})


def check_keyframes(buckets: Sequence[Bucket], keyframes: Sequence[int]) -> None:
    """Refuse keyframes that lie outside of some bucket."""
    for bucket in buckets:
        if beyond := [frame for frame in keyframes if not -bucket.frames <= frame < bucket.frames]:
            raise ConfigError(f"keyframes name frame {beyond[0]}, bucket {bucket} has {bucket.frames} frames")


def _grid(work: Workspace, target: Bucket) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a target."""
    factors = work.factors
    rows, columns = target.height // factors.height, target.width // factors.width
    return factors.latent_frames(target.frames), rows, columns


def _grey_frames(work: Workspace, row: Row, path: Path, target: Bucket, mode: Literal["nearest", "bicubic"]) -> Tensor:
    """A mask file cut like the target, ``[F, 1, H, W]`` in [0, 1]; a picture is one frame and always smoothed."""
    size, crop = (target.height, target.width), work.crop(row)
    if is_image(path):
        grey = decode_image(path).float().mean(dim=-1)[None, None] / 255
        return resize_and_crop(grey, *size, crop=crop).clamp(0, 1)
    info, fps = probe_video(path), target_fps(work, row)
    start = info.start + row.start if row.start else 0.0
    frames = source_frames(info, fps, target.frames, start)
    planes = (_planes(frame).mean(dim=1, keepdim=True) for frame in frames)
    return torch.cat([resize_and_crop(plane, *size, mode=mode, crop=crop).clamp(0, 1) for plane in planes])


def target_bucket(work: Workspace, row: Row) -> Bucket:
    """The size a row's target has, from its record. Raises `ConfigError` where it has none."""
    values = work.values("latents", row)
    if values is None:
        raise ConfigError("its video has no latents")
    factors = work.factors
    frames = (values["num_frames"] - 1) * factors.time + 1
    return Bucket(frames, values["height"] * factors.height, values["width"] * factors.width)


def target_fps(work: Workspace, row: Row) -> float:
    values = work.values("latents", row) or {}
    return float(values.get("fps", STILL_FPS))


def check_reference_factors(
    buckets: Sequence[Bucket], scale: int, factor: int, factors: SpatioTemporalScaleFactors
) -> None:
    """Refuse reference factors that leave no whole latent cells of some bucket."""
    for bucket in buckets:
        for name, side, cell in (("height", bucket.height, factors.height), ("width", bucket.width, factors.width)):
            if side % (scale * cell):
                raise ConfigError(f"bucket {bucket}: {name} divided by {scale} is no multiple of {cell}")
        if (bucket.frames - 1) % (factor * factors.time):
            raise ConfigError(
                f"bucket {bucket}: frames - 1 is {bucket.frames - 1}, expected a multiple of "
                f"{factor * factors.time} for references slowed by {factor}"
            )


def encode_clips(clips: Sequence[Tensor], work: Workspace) -> Iterator[Record]:
    """Clips ``[3, F, H, W]`` of one size to records with their latent and its grid."""
    encoder, batch = work.network("video_encoder"), torch.stack(list(clips))
    if work.options.tiling:
        latents = encode_in_tiles(encoder, batch, work.factors)
    else:
        latents = encoder(batch)
    for latent in latents.to("cpu", torch.bfloat16):
        frames, height, width = latent.shape[1:]
        yield {"latents": latent.clone(), "num_frames": frames, "height": height, "width": width}


def fitted_frames(
    path: Path,
    count: int,
    size: tuple[int, int],
    fps: float | None,
    work: Workspace,
    crop: tuple[float, float] = (0.5, 0.5),
    start: float = 0.0,
) -> Tensor:
    """At most ``count`` frames of a file as the encoder takes them, ``[3, F, height, width]``; changes are reported."""
    first = probe_video(path).start + start if start else 0.0
    source = normalize_source(path, wanted_clip(count, size, fps, work, crop, first))
    work.report.note_changes(path, source.changes)
    return source.video[0]


def wanted_clip(
    count: int, size: tuple[int, int], fps: float | None, work: Workspace, crop: tuple[float, float], start: float
) -> Wanted:
    """What `fitted_frames` asks for, from ``start`` seconds of the file on."""
    return Wanted(*size, count, fps, start, fit="cover", at=crop, dtype=work.options.dtype)


def _fit_bucket(row: Row, info: VideoInfo, rate: float | None, work: Workspace) -> tuple[Bucket, Tensor]:
    """A clip in the bucket that suits it; a file with fewer frames than its header says gets a shorter one.

    A video becomes a still only where all buckets are for stills.
    """
    available = frames_by_header(row, info, rate)
    while True:
        bucket = bucket_of(info, available, work.options.buckets)
        size = bucket.height, bucket.width
        frames = fitted_frames(info.path, bucket.frames, size, rate, work, work.crop(row), row.start)
        if frames.shape[1] == bucket.frames:
            return bucket, frames
        available = frames.shape[1]


def frames_by_header(row: Row, info: VideoInfo, rate: float | None) -> int:
    """Frames from where a row begins, at the rate its clip is brought to."""
    available = info.frames if rate is None else round(info.frames * rate / float(info.fps))
    return available - round(row.start * (rate or float(info.fps)))


def bucket_of(info: VideoInfo, available: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket for a clip of ``available`` frames; `MediaError` where all are longer."""
    if not is_image(info.path):
        buckets = tuple(bucket for bucket in buckets if bucket.frames > 1) or buckets
    index = select_bucket(available, info.height, info.width, buckets)
    if index is None:
        shortest = min(bucket.frames for bucket in buckets)
        kind = "a picture" if is_image(info.path) else f"{available} frames long"
        raise MediaError(f"{info.path} is {kind}, the shortest bucket has {shortest} frames")
    return buckets[index]


def _planes(frame: Tensor) -> Tensor:
    """uint8 ``[H, W, 3]`` as float ``[1, 3, H, W]`` in [0, 1]."""
    return frame.permute(2, 0, 1)[None].float() / 255
