"""Kept frames and samples of a source are the source's own: no network has touched them.

Where a span is made anew, the two are cross-faded inside it: at each of its edges over as many frames as a latent frame
has, and over no more than half the span. A source that ends at the edge goes on by what changes from one new frame to
the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from math import ceil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.model.audio_vae.mel import resample
from ltx_core.types import Audio, VideoPixelShape
from ltx_media.audio import read_audio
from ltx_media.pixels import COLORSPACE_UNSPECIFIED, Look, center_crop_fit
from ltx_media.source import sampling_rate, source_frames
from ltx_media.video import probe_video, read_planes
from ltx_media.writer import LOSSLESS, VideoEncoding, sdr_encoding, sdr_planes
from ltx_pipelines.planning.plan import KEPT, Plan

SOUND_FADE = 0.02  # seconds
ROUNDED = 1e-3  # share of a frame by which times may be off


def kept_frames(plan: Plan, made: Iterable[Tensor], time_factor: int) -> Iterator[Tensor]:
    """The delivered frames ``[1, H, W, 3]``, floats in [0, 1]: the source's own but for the span that is new.

    ``made`` are decoded frames ``[H, W, 3]``, none where all is kept; ``time_factor`` is frames per latent frame.
    """
    shape, span = plan.shape, new_frames(plan)
    pairs = zip(range(shape.frames), _own_frames(plan), made if span[1] else repeat(None), strict=False)
    for frame in _join(pairs, span, fade_length(span, time_factor, shape.frames), shape.frames):
        yield frame[None]


def new_frames(plan: Plan) -> tuple[int, int]:
    """The frames of the new span, first and past the last."""
    fps, (start, end) = plan.shape.fps, plan.new_span("video") or KEPT
    first, last = (min(ceil(time * fps - ROUNDED), plan.shape.frames) for time in (start, end))
    return first, last


def fade_length(span: tuple[int, int], longest: int, count: int) -> int:
    """Length of a cross-fade at each edge of a span that lies inside ``count`` frames or samples."""
    edges = (span[0] > 0) + (span[1] < count)
    return min(longest, (span[1] - span[0]) // (2 * max(edges, 1)))


def kept_encoding(plan: Plan, crf: float | None, path: Path = Path("clip.mp4")) -> VideoEncoding:
    """The encoding of a delivered clip: planes an MP4 can hold as they are stay the source's own where it is kept."""
    encoding = sdr_encoding(crf, path.suffix)
    if encoding is LOSSLESS or plan.new_span("video") is None:
        return encoding
    source, shape = plan.sources["video"], plan.shape
    clip = probe_video(source.path)
    stored = sampling_rate(clip, shape.fps) is None and not source.start
    if clip.matrix is None or not stored or (clip.height, clip.width) != (shape.height, shape.width):
        return encoding
    matrix, (begin, end) = clip.matrix, new_frames(plan)
    own = chain(repeat(None, round(source.offset * shape.fps)), read_planes(source.path), repeat(None))
    pairs = enumerate(own)

    def to_planes(frame: Tensor) -> np.ndarray:
        """Called once for each frame, in order."""
        index, planes = next(pairs)
        return sdr_planes(frame, matrix) if planes is None or begin <= index < end else planes

    tag = 1 if matrix == 1 else COLORSPACE_UNSPECIFIED
    return replace(encoding, matrix=matrix, primaries=tag, transfer=tag, to_planes=to_planes)


def on_host(made: Tensor) -> Tensor:
    """Decoded frames or samples in float32 on the host, where those of sources and of earlier pieces are."""
    return made.detach().float().cpu()


def _own_frames(plan: Plan) -> Iterator[Tensor | None]:
    """The source's frame at each delivered one, in [0, 1]; None before its first and after its last."""
    source, shape = plan.sources["video"], plan.shape
    first = round(source.offset * shape.fps)
    look, info = Look(plan.background), probe_video(source.path)
    frames = source_frames(info, shape.fps, shape.frames - first, source.start, look)
    return chain(repeat(None, first), (_at_size(frame, shape) for frame in frames), repeat(None))


def _at_size(frame: Tensor, shape: VideoPixelShape) -> Tensor:
    """A frame as delivered: without an odd last row or column, or scaled and cropped where a size was asked for."""
    spare = frame.shape[0] - shape.height, frame.shape[1] - shape.width
    if all(side in (0, 1) for side in spare):
        return frame[: shape.height, : shape.width].float() / 255
    fitted = center_crop_fit(frame.permute(2, 0, 1)[None].float(), shape.height, shape.width)
    return fitted[0].permute(1, 2, 0) / 255


def _join(
    pairs: Iterable[tuple[int, Tensor | None, Tensor | None]], span: tuple[int, int], fade: int, count: int
) -> Iterator[Tensor]:
    """Frames of the source outside ``span`` and new ones inside, cross-faded at those of its edges inside the clip."""
    first, last = span
    shown: Tensor | None = None  # the source's last frame so far
    edge: Tensor | float = 0.0  # what the source's last frame before the span has more than the new one of its time
    waiting: list[tuple[float, Tensor]] = []  # new frames just before a source that begins where the span ends
    for index, own, made in pairs:
        new = None if made is None else on_host(made)
        if not first <= index < last:
            shown = shown if own is None else own
            assert shown is not None
            edge = 0.0 if new is None else shown - new
            yield from ((late + share * edge).clamp(0, 1) for share, late in waiting)
            waiting = []
            yield shown
            continue
        assert new is not None
        enter = 1 - (index - first + 1) / (fade + 1) if first > 0 else 0.0
        leave = 1 - (last - index) / (fade + 1) if last < count else 0.0
        share = max(enter, leave, 0.0)
        if own is not None:
            yield torch.lerp(new, own, share)
        elif leave > 0:
            waiting.append((share, new))
        else:
            yield (new + share * edge).clamp(0, 1)


def kept_sound(plan: Plan, made: Audio | None) -> Audio | None:
    """The delivered sound, at the source's rate and with its channels: its own samples but for the span that is new."""
    source = plan.sources["audio"]
    own = read_audio(source.path, source.start, source.duration)
    span = plan.new_span("audio") or KEPT
    if own is None or made is None or span == KEPT:
        return own
    rate, total = own.sampling_rate, round(plan.shape.duration * own.sampling_rate)
    first, last = (min(round(time * rate), total) for time in span)
    samples = F.pad(own.waveform.flatten(0, -2), (round(source.offset * rate), 0))
    samples = F.pad(samples, (0, max(total - samples.shape[-1], 0)))[:, :total]
    new = _like(made, samples.shape[0], rate, total)
    share = _sound_share(first, last, total, fade_length((first, last), round(SOUND_FADE * rate), total))
    return Audio(torch.where(share == 1, samples, torch.lerp(new, samples, share)), rate)


def _like(sound: Audio, channels: int, rate: int, length: int) -> Tensor:
    """A sound ``[channels, length]`` at another rate; mono is the mean, channels beyond two are silent."""
    waveform = resample(on_host(sound.waveform).flatten(0, -2), sound.sampling_rate, rate)
    waveform = waveform.mean(0, keepdim=True) if channels == 1 else waveform
    return F.pad(waveform, (0, length - waveform.shape[1], 0, channels - waveform.shape[0]))


def _sound_share(first: int, last: int, total: int, fade: int) -> Tensor:
    """The share of the source at each sample: 1 outside the span, falling to 0 over ``fade`` samples inside it."""
    index = torch.arange(total)
    enter = 1 - (index - first + 1) / (fade + 1) if first > 0 else torch.zeros(total)
    leave = 1 - (last - index) / (fade + 1) if last < total else torch.zeros(total)
    inside = (index >= first) & (index < last)
    return torch.where(inside, torch.maximum(enter, leave).clamp(0, 1), 1.0)


def what_is_kept(plan: Plan, time_factor: int) -> str | None:
    """The kept part of a clip, in words with exact seconds; None where nothing is kept."""
    shape, parts = plan.shape, []
    if plan.new_span("video") is not None:
        first, last = span = new_frames(plan)
        fade = fade_length(span, time_factor, shape.frames) / shape.fps
        parts.append("picture " + _words(first / shape.fps, last / shape.fps, fade, shape.duration))
    if (seconds := plan.new_span("audio")) is not None:
        start, end = seconds[0], min(seconds[1], shape.duration)
        edges = (start > 0) + (end < shape.duration)
        fade = min(SOUND_FADE, (end - start) / (2 * max(edges, 1)))
        parts.append("sound " + _words(start, end, fade, shape.duration))
    return "; ".join(parts) or None


def _words(start: float, end: float, fade: float, duration: float) -> str:
    if end <= start:
        return "kept as it was"
    edges = ([(start, start + fade)] if start > 0 else []) + ([(end - fade, end)] if end < duration else [])
    fades = " and ".join(f"{begin:.3f}-{stop:.3f} s" for begin, stop in edges)
    return f"new in {start:.3f}-{end:.3f} s" + (f", cross-faded in {fades}" if fades else "") + ", kept elsewhere"
