"""`ltx concat`: clips one after another in one file, with their sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.fields import every_option, some_options
from ltx_pipelines.planning.schema import File, Option, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ltx_core.types import Audio
    from ltx_media.source import Wanted
    from ltx_media.video import VideoInfo

ABOUT = """Join clips, with their sound.

Size, rate and channels are those of the first clip; what is changed of another to fit is said in a line. Every frame
of a clip that has the first one's rate is there once, and each sound begins with its picture.
"""
FILES = Option("files", tuple[File, ...], (), "The clips, in order.", group="Request", metavar="FILE...")


def concat(given: dict[str, Any]) -> None:
    """Join files into one."""
    from ltx_media.source import Wanted, changes_of
    from ltx_media.video import probe_video
    from ltx_media.writer import sdr_encoding, write_video
    from ltx_pipelines.cli.progress import Reporter, style_of
    from ltx_pipelines.running.output import VIDEO, check_free, check_name

    files: Sequence[str] = given.get("files", ())
    if len(files) < 2 or "output" not in given:
        raise UsageError("at least two clips and an output are needed, such as `ltx concat a.mp4 b.mp4 -o both.mp4`")
    output, reporter = Path(given["output"]), Reporter(style_of(given))
    check_name(output, VIDEO)
    check_free(output, bool(given.get("overwrite")))
    clips = [probe_video(path) for path in files]
    first = clips[0]
    wanted = Wanted(first.height // 2 * 2, first.width // 2 * 2, fps=float(first.fps))
    for clip in clips:
        changes = [change.how for change in changes_of(clip, wanted) if change.what != "length"]
        if first.has_audio and not clip.has_audio:
            changes.append("silent, as it has no sound")
        if changes:
            reporter.note(f"{clip.path.name}: {'; '.join(changes)}")
    counts: list[int] = []
    frames = (frame for clip in clips for frame in count_frames(fit_frames(clip, wanted), counts))
    with_sound = any(clip.has_audio for clip in clips)
    sound = (lambda: joined_sound(clips, counts, first.fps)) if with_sound else None
    total = write_video(output, frames, first.fps, sound, sdr_encoding(given.get("crf"), output.suffix))
    seconds = float(total / first.fps)
    reporter.note(f"wrote {output}: {total} frames ({' + '.join(map(str, counts))}), {seconds:.3f} s")


def fit_frames(clip: VideoInfo, wanted: Wanted) -> Iterator[Tensor]:
    """The frames of a clip, uint8 ``[H, W, 3]``, at the size and rate of the first one."""
    from ltx_media.pixels import center_crop_fit
    from ltx_media.source import source_frames

    assert wanted.height is not None and wanted.width is not None
    for frame in source_frames(clip, wanted.fps):
        if tuple(frame.shape[:2]) == (wanted.height, wanted.width):
            yield frame
        else:
            yield center_crop_fit(frame.permute(2, 0, 1)[None], wanted.height, wanted.width)[0].permute(1, 2, 0)


def count_frames(frames: Iterator[Tensor], counts: list[int]) -> Iterator[Tensor]:
    """The frames as they are; their number is added to ``counts``."""
    counts.append(0)
    for frame in frames:
        counts[-1] += 1
        yield frame


def joined_sound(clips: Sequence[VideoInfo], counts: Sequence[int], fps: Fraction) -> Audio | None:
    """The sounds at the rate and with the channels of the first that is there, each beginning with its picture."""
    import torch
    import torch.nn.functional as F

    from ltx_core.model.audio_vae.mel import resample
    from ltx_core.types import Audio
    from ltx_media.audio import read_audio

    sounds = [read_audio(clip.path) if clip.has_audio else None for clip in clips]
    like = next((sound for sound in sounds if sound is not None), None)
    if like is None:
        return None
    rate, channels = like.sampling_rate, like.waveform.shape[-2]
    parts, frames, begin = [], 0, 0
    for sound, count in zip(sounds, counts, strict=True):
        frames += count
        end = round(Fraction(frames) / fps * rate)
        samples = torch.zeros(channels, 0)
        if sound is not None:
            samples = resample(sound.waveform[0], sound.sampling_rate, rate)
            samples = samples.mean(0, keepdim=True) if channels == 1 else samples[:channels].expand(channels, -1)
        parts.append(F.pad(samples[:, : end - begin], (0, max(end - begin - samples.shape[1], 0))))
        begin = end
    return Audio(torch.cat(parts, dim=1)[None], rate)


OPTIONS = {"files": FILES, **some_options("output", "crf", "overwrite", "json", "quiet")}
CONCAT = Command("concat", ABOUT, OPTIONS, concat, "files", every_option)
