"""Agreement of windows, tiles and takes: seams, drift, motion and sound, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import ConfigError


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


def global_motion(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Pixels (x, y) by which the picture moved from ``first`` to ``second`` ``[C, H, W]``, by phase correlation."""
    a, b = (np.asarray(frame.double().mean(dim=0)) for frame in (first, second))
    window = np.outer(np.hanning(a.shape[0]), np.hanning(a.shape[1]))
    cross = np.fft.fft2(b * window) * np.conj(np.fft.fft2(a * window))
    surface = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-12)).real
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    return (
        _peak(surface[row], int(column)),
        _peak(surface[:, column], int(row)),
    )


def _peak(line: np.ndarray, place: int) -> float:
    """The maximum of a cyclic line near ``place``, refined by a parabola, as a signed shift."""
    size = len(line)
    left, middle, right = line[place - 1], line[place], line[(place + 1) % size]
    curve = left - 2 * middle + right
    shift = place + (0.5 * (left - right) / curve if curve else 0.0)
    return float(shift - size if shift > size / 2 else shift)
