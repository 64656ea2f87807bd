"""Sound, audio references and masks to records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ltx_core.errors import ConfigError, LtxError, MediaError
from ltx_core.types import AUDIO_SAMPLE_RATE, Audio
from ltx_media.audio import fit_duration, read_audio
from ltx_media.images import is_image
from ltx_media.source import sound_changes
from ltx_media.video import probe_video
from ltx_trainer.precomputed import Record, read_record
from ltx_trainer.processing.masks import audio_mask
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.stage import Prepared, Stage
from ltx_trainer.processing.video_stages import target_bucket, target_fps
from ltx_trainer.processing.workspace import Workspace

SHORTEST = 0.04  # seconds; of the silence that stands for the sound of a still: one latent step
TENSOR_SUFFIXES = (".pt", ".safetensors")


def audio_stage(work: Workspace) -> Stage:
    """Sound to ``audio_latents``: the row's audio file, else its video's own; a silent clip is kept and marked."""

    def prepare(row: Row) -> Prepared:
        duration = clip_duration(work, row) if "video" in row.media else None
        audio = read_sound(row, duration)
        if audio is None:
            if duration is None:
                raise MediaError(f"{row.media['audio']}: it holds no sound")
            silence = torch.zeros(2, round(max(duration, SHORTEST) * AUDIO_SAMPLE_RATE))
            return Audio(silence, AUDIO_SAMPLE_RATE), {"duration": duration, "present": 0}
        work.report.note_changes(row.target, sound_changes(audio.waveform.shape[-2]))
        if duration is None:
            duration = bucket_duration(audio.duration, work.options.audio_durations, str(row.media["audio"]))
        return fit_duration(audio, duration), {"duration": duration, "present": 1}

    return Stage("audio_latents", prepare, lambda clips: encode_sounds(clips, work))


def audio_reference_stage(work: Workspace) -> Stage:
    """References to ``reference_audio_latents``, at most as long as their target."""

    def prepare(row: Row) -> Prepared:
        target = work.values("audio_latents", row)
        if target is None:
            raise ConfigError("it has no audio latents to refer to")
        audio = read_audio(row.media["reference_audio"], row.start, target["duration"])
        if audio is None:
            raise MediaError(f"{row.media['reference_audio']}: it holds no sound")
        return audio, {"duration": audio.duration, "present": 1}

    return Stage("reference_audio_latents", prepare, lambda clips: encode_sounds(clips, work))


def audio_mask_stage(work: Workspace) -> Stage:
    """Masks to ``audio_masks``: a stored tensor over time, or a sound file that is loud where the mask is set."""

    def prepare(row: Row) -> Prepared:
        target, path = work.values("audio_latents", row), row.media["audio_mask"]
        if target is None:
            raise ConfigError("it has no audio latents to mask")
        if path.suffix in TENSOR_SUFFIXES:
            mask = _stored_mask(path)
        else:
            audio = read_audio(path, duration=target["duration"])
            if audio is None:
                raise MediaError(f"{path}: it holds no sound")
            mask = fit_duration(audio, target["duration"]).waveform.abs().mean(dim=(0, 1))
        return audio_mask(mask, target["num_time_steps"]), {}

    return Stage("audio_masks", prepare, lambda masks: [{"mask": mask} for mask in masks])


def clip_duration(work: Workspace, row: Row) -> float:
    """Seconds the row's target video lasts; 0 for a still."""
    bucket = target_bucket(work, row)
    return 0.0 if bucket.frames == 1 else bucket.frames / target_fps(work, row)


def read_sound(row: Row, duration: float | None) -> Audio | None:
    """The row's sound: of its audio file, else of its video from the first frame on. None where there is none."""
    if duration == 0.0:
        return None
    if "audio" in row.media:
        return read_audio(row.media["audio"], row.start, duration)
    video = row.media["video"]
    return None if is_image(video) else read_audio(video, probe_video(video).start + row.start, duration)


def bucket_duration(duration: float, buckets: Sequence[float], name: str) -> float:
    """The largest bucket a sound fills, its own length where there are no buckets."""
    if not buckets:
        return duration
    fitting = [bucket for bucket in buckets if bucket <= duration]
    if not fitting:
        raise MediaError(f"{name} lasts {duration:.2f} s, the shortest of the audio durations is {min(buckets)} s")
    return max(fitting)


def has_sound(row: Row) -> bool:
    """Whether any sound belongs to a row; False also for files that cannot be read."""
    if "audio" in row.media:
        return True
    try:
        return not is_image(row.media["video"]) and probe_video(row.media["video"]).has_audio
    except LtxError:
        return False


def encode_sounds(clips: Sequence[Audio], work: Workspace) -> Iterator[Record]:
    """Sounds to records with their latents."""
    from ltx_core.model.audio_vae.audio_vae import encode_audio

    for clip in clips:
        latent: Tensor = (
            encode_audio(clip.to(device=work.options.device), work.network("audio_encoder"))[0].float().cpu()
        )
        yield {"latents": latent, "num_time_steps": latent.shape[1], "frequency_bins": latent.shape[2]}


def _stored_mask(path: Path) -> Tensor:
    record = read_record(path)
    tensors = [value for value in record.values() if isinstance(value, Tensor)]
    if len(tensors) != 1 or tensors[0].ndim != 1:
        raise ConfigError(f"{path} holds {len(tensors)} tensors, expected one over time")
    return tensors[0].float()
