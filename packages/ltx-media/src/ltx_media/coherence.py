"""Coherence of a clip: changes from frame to frame, drift of its colours, discontinuities of its sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.types import Audio
from ltx_media.metrics import level_step, slope, sound_jump, warp_error

AROUND = 4  # frames on each side that a change is compared with
LARGEST = 128  # pixels of the longer side on which motion is followed
WINDOW, STEPS, STIFFNESS = 7, 10, 1e-4  # of the flow: pixels a side, iterations a level, pull towards standing still
HOP = 0.01  # seconds between the places where sound is looked at


@dataclass(frozen=True)
class Seam:
    """A frame, and how it follows from the one before."""

    frame: int
    change: float  # mean absolute difference, over the median of the changes around
    warp: float  # mean difference along the motion, in [0, 1]; NaN where no motion is found
    warp_change: float  # the same over the median around
    above: float  # share of the clip's other frames that change more: a cut has 0, a frame like any other about a half


@dataclass(frozen=True)
class Coherence:
    """Figures of one clip. Drifts are slopes per second: 0.01 of luma is 2.55 of 255 levels a second."""

    worst: Seam  # the largest change there is, relative to those around
    seams: tuple[Seam, ...]  # those asked for
    luma: float
    chroma: float
    saturation: float
    sound_jump: float | None = None  # below 4 is not heard on tones
    sound_at: float | None = None  # seconds
    level_step: float | None = None  # the largest, in dB, at the seams


def coherence(
    read: Callable[[], Iterable[Tensor]], fps: float, sound: Audio | None = None, seams: Sequence[int] = ()
) -> Coherence:
    """Figures of a clip whose frames, uint8 ``[H, W, 3]``, ``read`` gives anew each time; ``seams`` are frames.

    Memory does not grow with the number of frames.
    """
    changes, colours = _pass(read())
    ratios = [relative(changes, frame) for frame in range(1, len(changes) + 1)]
    worst = 1 + max(range(len(ratios)), key=ratios.__getitem__, default=0)
    places = [frame for frame in seams if 0 < frame <= len(changes)]
    measured = _seams(read(), changes, {worst, *places})
    still = Seam(0, 0.0, 0.0, 0.0, 0.0)
    luma, *chroma, saturation = (slope(line) * fps for line in torch.tensor(colours, dtype=torch.float64).T)
    found = Coherence(
        measured.get(worst, still),
        tuple(measured[frame] for frame in places),
        luma,
        max(map(abs, chroma)),
        saturation,
    )
    return found if sound is None else _with_sound(found, sound, [frame / fps for frame in places])


def relative(changes: Sequence[float], frame: int) -> float:
    """The change from ``frame - 1`` to ``frame`` over the median of those around."""
    at = frame - 1
    around = [*changes[max(at - AROUND, 0) : at], *changes[at + 1 : at + 1 + AROUND]]
    return changes[at] / max(float(torch.tensor(around or [1.0]).median()), 1e-6)


def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """Displacement of each pixel of ``first`` ``[C, H, W]`` in ``second``: ``[2, H, W]`` (x, y in pixels).

    Lucas and Kanade, 1981, in windows, from coarse to fine.
    """
    one, other = (frame.float().mean(dim=0)[None, None] for frame in (first, second))
    pyramid = [(one, other)]
    while min(pyramid[-1][0].shape[-2:]) >= 4 * WINDOW:
        pyramid.append((F.avg_pool2d(pyramid[-1][0], 2), F.avg_pool2d(pyramid[-1][1], 2)))
    flow = torch.zeros(1, 2, *pyramid[-1][0].shape[-2:])
    for one, other in reversed(pyramid):
        size = one.shape[-2:]
        scale = torch.tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]]).view(1, 2, 1, 1)
        flow = F.interpolate(flow, size, mode="bilinear", align_corners=False) * scale
        for _ in range(STEPS):
            flow = smooth(flow + _step(one, _move(other, flow)))
    return flow[0]


def smooth(values: Tensor) -> Tensor:
    """The mean of the window around each pixel."""
    return F.avg_pool2d(values, WINDOW, 1, WINDOW // 2, count_include_pad=False)


def _step(one: Tensor, moved: Tensor) -> Tensor:
    """Displacement that brings ``moved`` closer to ``one``, solved in the window around each pixel."""
    padded = F.pad(moved, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    products = torch.cat((x * x, x * y, y * y, x * (one - moved), y * (one - moved)), dim=1)
    xx, xy, yy, xt, yt = smooth(products)[0]
    xx, yy = xx + STIFFNESS, yy + STIFFNESS
    step = torch.stack((yy * xt - xy * yt, xx * yt - xy * xt)) / (xx * yy - xy * xy)
    return step[None].clamp(-1, 1)


def _move(frame: Tensor, flow: Tensor) -> Tensor:
    """``frame`` ``[1, C, H, W]`` read where ``flow`` points."""
    height, width = frame.shape[-2:]
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = 2 * (u + flow[:, 0]) / max(width - 1, 1) - 1, 2 * (v + flow[:, 1]) / max(height - 1, 1) - 1
    return F.grid_sample(frame, torch.stack((x, y), dim=-1), align_corners=True, padding_mode="border")


def _pass(frames: Iterable[Tensor]) -> tuple[list[float], list[list[float]]]:
    """The change to each frame from the second on, and luma, both chroma and saturation of every frame, in [0, 1]."""
    changes: list[float] = []
    colours: list[list[float]] = []
    before: Tensor | None = None
    for frame in frames:
        now = frame.float() / 255
        red, green, blue = now.mean(dim=(0, 1)).tolist()
        luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        saturation = float((now.amax(dim=2) - now.amin(dim=2)).mean())
        colours.append([luma, (blue - luma) / 1.8556, (red - luma) / 1.5748, saturation])
        if before is not None:
            changes.append(float((now - before).abs().mean()))
        before = now
    return changes, colours


@torch.no_grad()
def _seams(frames: Iterable[Tensor], changes: Sequence[float], places: set[int]) -> dict[int, Seam]:
    """Each place with the warp error of its pair and of those around; only the frames near one are followed."""
    wanted = {near for place in places for near in range(place - AROUND, place + AROUND + 1)}
    errors: dict[int, float] = {}
    before: Tensor | None = None
    for number, frame in enumerate(frames):
        now = _small(frame) if {number, number + 1} & wanted else None
        if before is not None and now is not None and number in wanted:
            errors[number] = warp_error(before, now, optical_flow(before, now), optical_flow(now, before)).error
        before = now
    found = {}
    for place in places & errors.keys():
        around = [errors[near] for near in errors.keys() - {place} if abs(near - place) <= AROUND]
        usual = float(torch.tensor(around).nanmedian()) if around else errors[place]
        above = sum(change > changes[place - 1] for change in changes) / max(len(changes) - 1, 1)
        found[place] = Seam(place, relative(changes, place), errors[place], errors[place] / max(usual, 1e-6), above)
    return found


def _small(frame: Tensor) -> Tensor:
    """``[3, h, w]`` in [0, 1], small enough to follow its motion."""
    picture = frame.permute(2, 0, 1)[None].float() / 255
    share = min(LARGEST / max(picture.shape[-2:]), 1.0)
    size = [max(round(side * share), 1) for side in picture.shape[-2:]]
    return F.interpolate(picture, size, mode="area")[0]


def _with_sound(found: Coherence, sound: Audio, seams: Sequence[float]) -> Coherence:
    """With the largest jump of the sound, and the largest step of its level at a seam."""
    rate, wave = sound.sampling_rate, sound.waveform.reshape(-1, sound.waveform.shape[-1])
    hop = round(HOP * rate)
    if wave.shape[-1] < 4 * hop:
        return found
    steps = wave.diff(dim=-1).abs().amax(dim=0)
    cuts = [start + 1 + int(steps[start : start + hop].argmax()) for start in range(hop, len(steps) - hop, hop)]
    jumps = [sound_jump(wave, cut, rate) for cut in cuts]
    worst = max(range(len(jumps)), key=jumps.__getitem__)
    levels = [level_step(wave, round(at * rate), rate) for at in seams if HOP < at < wave.shape[-1] / rate - HOP]
    step = max(levels, key=abs, default=None)
    return replace(found, sound_jump=jumps[worst], sound_at=cuts[worst] / rate, level_step=step)
