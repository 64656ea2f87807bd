"""Files of validation samples to latents before a run, and latents to files after a sample was made.

Text encoder, VAEs and vocoder are each in memory only while they are used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import ConfigError, MediaError
from ltx_core.model.audio_vae.audio_vae import decode_audio, encode_audio
from ltx_core.model.video_vae.frames import decode_video
from ltx_core.model.video_vae.tiling import TileSizeConfig
from ltx_core.model.video_vae.video_vae import VideoDecoder
from ltx_core.types import Audio, AudioLatentShape, SpatioTemporalScaleFactors, VideoPixelShape
from ltx_media.audio import fit_duration, probe_sound, read_audio, write_wav
from ltx_media.images import is_image, write_png
from ltx_media.pixels import resize_and_crop
from ltx_media.source import Wanted, normalize_source
from ltx_media.video import probe_video
from ltx_media.writer import write_video
from ltx_trainer.comparison import Clip, pixels_of, write_comparison
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import read_record
from ltx_trainer.processing.masks import audio_mask, image_mask, kept_frames, video_mask
from ltx_trainer.validation_config import (
    SampleAudioToVideo,
    SampleCondition,
    SampleFirstFrame,
    SampleKeyframe,
    SampleKeyframeImage,
    SampleMask,
    SamplePrefix,
    SampleReference,
    SampleSpatialCrop,
    SampleSuffix,
    SampleVideoToAudio,
    ValidationConfig,
    ValidationSample,
)
from ltx_trainer.validation_sampler import EncodedCondition, PreparedSample, crop_mask, sample_seed, sample_shape

logger = logging.getLogger(__name__)

DECODE_TILES = TileSizeConfig(frames=(48, 24), height=(384, 192), width=(384, 192))
UNTILED_SIDE = 768  # pixels; smaller pictures are decoded whole, and a diffusion decoder chooses its own tiles


@dataclass(frozen=True)
class Studio:
    """Reader and maker of validation media: the model's files, a device, a dtype."""

    files: ModelFiles
    device: torch.device
    dtype: torch.dtype

    @contextmanager
    def network(self, name: str, dtype: torch.dtype | None = None) -> Iterator[Any]:
        """A network for as long as it is needed."""
        network = self.files.build(name, dtype or self.dtype, self.device)
        yield network
        del network
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def prepare(self, config: ValidationConfig) -> list[PreparedSample]:
        """All samples of a section, with their texts and files encoded, on the CPU.

        Raises `ConfigError` when there is no text encoder and `MediaError` for files that cannot be read.
        """
        if not config.samples:
            return []
        contexts = self.contexts([*(sample.prompt for sample in config.samples), config.negative_prompt])
        made = [name for name in ("video", "audio") if getattr(config, f"generate_{name}")]
        only = made[0] if len(made) == 1 else None
        return [
            self._prepare(config, sample, contexts[index], contexts[-1], only)
            for index, sample in enumerate(config.samples)
        ]

    def _prepare(
        self,
        config: ValidationConfig,
        sample: ValidationSample,
        contexts: Mapping[str, Tensor],
        negative: Mapping[str, Tensor],
        only: str | None,
    ) -> PreparedSample:
        shape = sample_shape(config, sample)
        conditions = tuple(self.encode(condition, shape) for condition in sample.conditions)
        return PreparedSample(
            shape=shape,
            seed=sample_seed(config, sample),
            contexts=contexts,
            negative_contexts=negative,
            conditions=conditions,
            prompt=sample.prompt,
            pictures=shown_references(sample, shape),
            references=reference_clips(conditions, shape, self.files.scale_factors()),
            truth=None if sample.truth is None else clip_of(sample.truth, "truth", shape, only),
        )

    def contexts(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """``{modality: [1, S, C]}`` of each prompt."""
        if self.files.text_encoder_path is None:
            raise ConfigError("validation.samples need model.text_encoder_path; set it, or validation.interval to null")
        encoder = self.files.text_encoder(self.dtype, self.device)
        found = []
        for prompt in prompts:
            output = encoder([prompt])
            context = {"video": output.video_context.cpu()}
            if (audio := getattr(output, "audio_context", None)) is not None:
                context["audio"] = audio.cpu()
            found.append(context)
        del encoder
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    @torch.no_grad()
    def encode(self, condition: SampleCondition, shape: VideoPixelShape) -> EncodedCondition:
        """A condition's file as a latent of the sample's geometry."""
        if condition.targets() == "audio":
            return self._encode_audio(condition, shape)
        frames = condition_frames(condition, shape, self.files)
        with self.network("video_encoder") as encoder:
            video = frames.movedim(0, 1).to(self.device, self.dtype)[None]
            latent = encoder(video).cpu()
        factors = self.files.scale_factors()
        mask = None
        if isinstance(condition, SampleSuffix) and condition.num_frames is not None:
            latent = latent[:, :, -(condition.num_frames // factors.time) :]
        if isinstance(condition, SampleMask):
            grid = (latent.shape[2], latent.shape[3], latent.shape[4])
            mask = read_video_mask(Path(condition.mask), shape, grid, self.files)
        return EncodedCondition(condition, latent, mask)

    def _encode_audio(self, condition: SampleCondition, shape: VideoPixelShape) -> EncodedCondition:
        path = getattr(condition, "audio", "")
        audio = read_audio(path)
        if audio is None:
            raise MediaError(f"{path}: it holds no sound")
        audio = cut_sound(audio, condition, shape)
        with self.network("audio_encoder", torch.float32) as encoder:
            latent = encode_audio(audio, encoder).cpu()
        mask = None
        if isinstance(condition, SampleMask):
            steps = AudioLatentShape.from_video_pixel_shape(shape).frames
            mask = audio_mask(read_audio_mask(Path(condition.mask)), steps)
        return EncodedCondition(condition, latent, mask)

    @torch.no_grad()
    def write(
        self,
        latents: Sequence[Mapping[str, Tensor]],
        samples: Sequence[PreparedSample],
        stem: Path,
        first: int = 1,
        stride: int = 1,
    ) -> tuple[list[Path], list[Clip]]:
        """Decode and write samples as ``<stem>_<i>.mp4`` (png, wav) with a sheet beside each; the files and the clips.

        ``first`` and ``stride`` number the samples of a process among those of all.
        """
        pictures: list[Tensor | None] = [None] * len(samples)
        sounds: list[Audio | None] = [None] * len(samples)
        if any("video" in made for made in latents):
            with self.network("video_decoder") as decoder:
                pictures = [self._pictures(decoder, made.get("video")) for made in latents]
        if any("audio" in made for made in latents):
            with self.network("audio_decoder") as decoder, self.network("vocoder") as vocoder:
                sounds = [
                    None if "audio" not in made else decode_audio(made["audio"], decoder, vocoder) for made in latents
                ]
        paths: list[Path] = []
        clips = [Clip(*made) for made in zip((sample.prompt for sample in samples), pictures, sounds, strict=True)]
        for index, (sample, clip) in enumerate(zip(samples, clips, strict=True)):
            paths += write_sample(stem.with_name(f"{stem.name}_{first + index * stride}"), sample, clip)
        return paths, clips

    def _pictures(self, decoder: Any, latent: Tensor | None) -> Tensor | None:
        """uint8 frames ``[F, H, W, 3]``."""
        if latent is None:
            return None
        large = max(latent.shape[3:]) * decoder.scale_factors.height > UNTILED_SIDE and isinstance(
            decoder, VideoDecoder
        )
        chunks = decode_video(decoder, latent.to(self.device, self.dtype), DECODE_TILES if large else None)
        return torch.cat([(chunk.float() * 255).round().to(torch.uint8).cpu() for chunk in chunks])


def condition_frames(condition: SampleCondition, shape: VideoPixelShape, files: ModelFiles) -> Tensor:
    """The frames ``[F, 3, H, W]`` in [-1, 1] of a video condition, cut to whole latent frames."""
    path: str = getattr(condition, "image_or_video", None) or getattr(condition, "video", None) or ""
    factors, count = files.scale_factors(), shape.frames
    if isinstance(condition, SampleFirstFrame):
        count = 1
    elif isinstance(condition, SamplePrefix) and condition.num_frames is not None:
        count = min(condition.num_frames, count)
    scale = condition.downscale_factor if isinstance(condition, SampleReference) else 1
    frames = fitted_frames(path, Wanted(shape.height // scale, shape.width // scale, count, shape.fps, fit="cover"))
    if isinstance(condition, SampleKeyframeImage) and is_image(path):
        return frames[:1]
    exact = SampleMask | SampleVideoToAudio | SampleKeyframe | SampleKeyframeImage | SampleSpatialCrop
    whole = isinstance(condition, exact)
    if whole and len(frames) < shape.frames:
        raise MediaError(f"{path}: it holds {len(frames)} frames, {condition.type} needs {shape.frames}")
    if isinstance(condition, SampleKeyframeImage):
        return frames[condition.frame][None]
    frames = frames[: factors.snap_frames(len(frames))]
    if isinstance(condition, SampleReference):
        return frames[kept_frames(len(frames), condition.temporal_scale_factor)]
    return frames


def fitted_frames(path: str | Path, wanted: Wanted) -> Tensor:
    """Frames of a file as wanted, ``[F, 3, H, W]`` in [-1, 1]; what was changed is logged."""
    source = normalize_source(path, wanted)
    for change in source.changes:
        logger.info("%s: %s", path, change.how)
    return source.video[0].movedim(1, 0)


def read_video_mask(path: Path, shape: VideoPixelShape, grid: tuple[int, int, int], files: ModelFiles) -> Tensor:
    """A mask file on the latent grid ``[F, H, W]``."""
    factors = files.scale_factors()
    if is_image(path):
        picture = fitted_frames(path, Wanted(shape.height, shape.width, 1, fit="cover"))
        return image_mask((picture[0].mean(dim=0) + 1) / 2, grid, factors)
    stored = (fitted_frames(path, Wanted(None, None, shape.frames, shape.fps)) + 1) / 2
    frames = resize_and_crop(stored.mean(dim=1, keepdim=True), shape.height, shape.width, mode="nearest")
    return video_mask(torch.cat((frames[:1].expand(factors.time - 1, -1, -1, -1), frames)), grid, factors)


def read_audio_mask(path: Path) -> Tensor:
    """A stored tensor over time, or how loud a sound file is."""
    if path.suffix in (".pt", ".safetensors"):
        return next(value for value in read_record(path).values() if isinstance(value, Tensor)).float().flatten()
    audio = read_audio(path)
    if audio is None:
        raise MediaError(f"{path}: it holds no sound")
    return audio.waveform.abs().mean(dim=(0, 1))


def cut_sound(audio: Audio, condition: SampleCondition, shape: VideoPixelShape) -> Audio:
    """The part of a sound that a condition gives: what ``duration`` says, at most as long as the sample."""
    longest = shape.duration
    if isinstance(condition, SampleMask | SampleAudioToVideo):
        return fit_duration(audio, longest)
    duration = getattr(condition, "duration", None) or longest
    samples = min(round(min(duration, longest) * audio.sampling_rate), audio.waveform.shape[-1])
    waveform = audio.waveform[..., -samples:] if isinstance(condition, SampleSuffix) else audio.waveform[..., :samples]
    return Audio(waveform, audio.sampling_rate)


def shown_references(sample: ValidationSample, shape: VideoPixelShape) -> dict[int, Tensor]:
    """uint8 frames ``[F, H, W, 3]`` of the references that are shown beside the result, by condition index."""
    shown = {}
    for index, condition in enumerate(sample.conditions):
        if isinstance(condition, SampleReference) and condition.include_in_output and condition.video is not None:
            wanted = Wanted(shape.height, shape.width, shape.frames, shape.fps, fit="cover")
            shown[index] = shown_frames(condition.video, wanted)
    return shown


def shown_frames(path: str, wanted: Wanted) -> Tensor:
    """Frames of a file as wanted, uint8 ``[F, H, W, 3]``."""
    frames = normalize_source(path, wanted).video[0]
    return ((frames + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)


def reference_clips(
    conditions: Sequence[EncodedCondition], shape: VideoPixelShape, factors: SpatioTemporalScaleFactors
) -> tuple[Clip, ...]:
    """The references of a sample, for its sheet."""
    clips = []
    for encoded in conditions:
        condition, keys = encoded.condition, ("video", "audio", "image_or_video")
        file = next((path for key in keys if (path := getattr(condition, key, None)) is not None), None)
        if file is not None:
            at = f" at frame {condition.frame}" if isinstance(condition, SampleKeyframeImage) else ""
            clip = clip_of(file, f"given: {condition.type}{at}", shape, condition.targets())
            if clip.frames is not None:
                clip = replace(clip, frames=given_frames(encoded, clip.frames, factors))
            clips.append(clip)
    return tuple(clips)


def given_frames(encoded: EncodedCondition, frames: Tensor, factors: SpatioTemporalScaleFactors) -> Tensor:
    """Those of a clip's frames ``[F, H, W, 3]`` that a condition gives, black where it leaves them open."""
    match encoded.condition:
        case SampleFirstFrame():
            return frames[:1]
        case SamplePrefix(num_frames=int(count)):
            return frames[:count]
        case SampleSuffix(num_frames=int(count)):
            return frames[-count:]
        case SampleKeyframe() as keyframe:
            place = range(factors.latent_frames(len(frames)))[keyframe.latent_index]
            return frames[max((place - 1) * factors.time + 1, 0) : place * factors.time + 1]
        case SampleKeyframeImage(frame=place) if len(frames) > 1:
            return frames[place][None]
        case SampleSpatialCrop() as crop:
            return where_given(frames, crop_mask(crop, encoded.latent.shape[2:], factors), factors)
        case SampleMask() if encoded.mask is not None:
            return where_given(frames, encoded.mask, factors)
    return frames


def where_given(frames: Tensor, cells: Tensor, factors: SpatioTemporalScaleFactors) -> Tensor:
    """Frames ``[F, H, W, 3]`` with all but the latent cells ``[f, h, w]`` that are given black."""
    return frames * pixels_of(cells > 0.5, factors)[: len(frames), ..., None]


def clip_of(file: str, title: str, shape: VideoPixelShape, only: str | None = None) -> Clip:
    """A file as a sample of ``shape`` would show it; ``only`` its video or its audio. Raises ``MediaError``."""
    frames: Tensor | None = None
    sound = None if only == "video" or is_image(file) else read_audio(file, duration=shape.duration)
    if only != "audio" and has_pictures(file):
        frames = shown_frames(file, Wanted(shape.height, shape.width, shape.frames, shape.fps, fit="cover"))
    return Clip(title, frames, sound)


def has_pictures(file: str) -> bool:
    """Whether a file is a picture or a video rather than sound alone. Raises ``MediaError`` for no media file."""
    try:
        probe_video(file)
    except MediaError:
        if probe_sound(file) is None:
            raise
        return False
    return True


def write_sample(stem: Path, sample: PreparedSample, clip: Clip) -> list[Path]:
    """Write one sample and its sheet. Raises `MediaError` when it cannot be written."""
    frames, sound = clip.frames, clip.sound
    stem.parent.mkdir(parents=True, exist_ok=True)
    sheet = stem.with_name(f"{stem.name}_sheet.png")
    if frames is None and sound is not None:
        path = stem.with_name(f"{stem.name}.wav")
        write_wav(path, sound)
    elif frames is not None and len(frames) == 1:
        path = stem.with_name(f"{stem.name}.png")
        write_png(path, frames[0])
    elif frames is not None:
        path = stem.with_name(f"{stem.name}.mp4")
        write_video(path, beside(sample.pictures, frames), sample.shape.fps, sound)
    else:
        return []
    truth = () if sample.truth is None else (sample.truth,)
    write_comparison(sheet, (*sample.references, clip, *truth), sample.shape.fps)
    return [path, sheet]


def beside(references: Mapping[int, Tensor], frames: Tensor) -> Iterator[Tensor]:
    """Frames with the references left of them; a shorter reference holds its last frame."""
    for index, frame in enumerate(frames):
        left = [reference[min(index, len(reference) - 1)] for reference in references.values()]
        yield torch.cat([*left, frame], dim=1)
