"""Agreement of windows, tiles and takes: seams, drift, motion and sound, as numbers; and coherence of a whole clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.types import Audio

AROUND = 4  # frames on each side that a change is compared with
LARGEST = 128  # pixels of the longer side on which motion is followed
WINDOW, STEPS, STIFFNESS = 7, 10, 1e-4  # of the flow: pixels a side, iterations a level, pull towards standing still
HOP = 0.01  # seconds between the places where sound is looked at


def seam_energy(frames: Tensor, place: int, axis: int = -1, neighbours: int = 4) -> float:
    """The jump from ``place - 1`` to ``place`` along ``axis`` over the mean jump at the nearest places; 1 is invisible.

    Raises `ConfigError` when ``place`` has no neighbours on one side.
    """
    length = frames.shape[axis]
    if not neighbours < place < length - neighbours:
        raise ConfigError(f"seam is at {place}, expected {neighbours + 1} to {length - neighbours - 1}")
    jumps = frames.movedim(axis, 0).double().diff(dim=0).abs().flatten(1).mean(dim=1)
    seam = place - 1
    around = torch.cat((jumps[seam - neighbours : seam], jumps[seam + 1 : seam + 1 + neighbours])).mean()
    return float(jumps[seam] / around.clamp(min=1e-12))


def sound_jump(samples: Tensor, cut: int, rate: int, seconds: float = 0.01) -> float:
    """The step at sample ``cut`` over the RMS of the steps within ``seconds`` on both sides; below 4 is not heard.

    ``samples`` ``[..., N]``; the largest over channels.
    """
    steps = samples.double().diff(dim=-1)
    half, seam = round(seconds * rate), cut - 1
    around = torch.cat((steps[..., max(seam - half, 0) : seam], steps[..., seam + 1 : seam + 1 + half]), dim=-1)
    rms = around.square().mean(dim=-1).sqrt().clamp(min=1e-12)
    return float((steps[..., seam].abs() / rms).max())


def level_step(samples: Tensor, cut: int, rate: int, seconds: float = 0.05) -> float:
    """Decibels by which the sound ``[..., N]`` is louder after ``cut`` than before."""
    half = round(seconds * rate)
    before, after = (
        part.double().square().mean().sqrt().clamp(min=1e-9)
        for part in (samples[..., max(cut - half, 0) : cut], samples[..., cut : cut + half])
    )
    return 20 * math.log10(float(after / before))


class Drift(NamedTuple):
    """Distance of each window's channel statistics from the first window's, and how it grows per window."""

    mean: Tensor  # [W] in standard deviations of the first window
    log_std: Tensor  # [W]
    mean_slope: float
    log_std_slope: float


def drift(latents: Tensor, windows: Sequence[tuple[int, int]]) -> Drift:
    """Drift of ``latents`` ``[1, C, F, H, W]`` over ``windows`` of frames."""
    values = latents[0].double()
    parts = [values[:, start:end].flatten(1) for start, end in windows]
    means = torch.stack([part.mean(dim=1) for part in parts])
    stds = torch.stack([part.std(dim=1) for part in parts]).clamp(min=1e-12)
    mean = ((means - means[0]) / stds[0]).square().mean(dim=1).sqrt()
    log_std = (stds / stds[0]).log().square().mean(dim=1).sqrt()
    return Drift(mean, log_std, slope(mean), slope(log_std))


def slope(values: Tensor) -> float:
    """By how much the values ``[N]`` rise from one to the next, by least squares."""
    if len(values) < 2:
        return 0.0
    steps = torch.arange(len(values), dtype=values.dtype)
    centred = steps - steps.mean()
    return float((centred * (values - values.mean())).sum() / centred.square().sum())


class WarpError(NamedTuple):
    """Mean difference of a frame and the next one carried back by optical flow, and the share of pixels it counts."""

    error: float
    valid: float


def warp_error(first: Tensor, second: Tensor, flow: Tensor, backward: Tensor) -> WarpError:
    """Compare ``first`` ``[C, H, W]`` with ``second`` moved back by ``flow`` ``[2, H, W]`` (x, y in pixels).

    A pixel counts where its target is inside and ``backward`` brings it home.
    """
    carried, inside = _sample(second, flow)
    home, _ = _sample(backward, flow)
    gap = (flow + home).square().sum(dim=0)
    valid = inside & (gap < 0.01 * (flow.square().sum(dim=0) + home.square().sum(dim=0)) + 0.5)
    if not bool(valid.any()):
        return WarpError(float("nan"), 0.0)
    difference = (first - carried).abs().mean(dim=0)
    return WarpError(float(difference[valid].mean()), float(valid.double().mean()))


def _sample(values: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """``values`` ``[C, H, W]`` at each pixel moved by ``flow``, and where that is inside."""
    height, width = values.shape[-2:]
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = u + flow[0], v + flow[1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    sampled = F.grid_sample(values[None], grid[None].to(values.dtype), align_corners=True, padding_mode="border")
    return sampled[0], inside


def psnr(first: Tensor, second: Tensor, peak: float = 1.0) -> float:
    """Decibels between two pictures or clips of one shape; infinite when equal."""
    error = float((first.double() - second.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(peak * peak / error)


# Coherence of one clip ---------------------------------------------------------------------------------------------


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
            flow = smooth(flow + _step(one, _sample(other[0], flow[0])[0][None]))
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
