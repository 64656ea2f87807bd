"""Tiles of the diffusion decoder: cut on the cells of stage 4's input, chosen by the memory that is free.

Cell 0 stands for one frame, every later one for ``cell_factors.time``. Attention windows move inward at the border of a
tile, so tiles must share what the blocks of stages 4 and 5 can carry across: ``config.overlap``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.common.tiling import Interval, TileCountConfig, split_by_count, split_by_size
from ltx_core.model.video_vae.diffusion.config import FRAMES_STEP, PIXELS_STEP, Axes, DiffusionDecoderConfig, round_up
from ltx_core.model.video_vae.tiling import AXES, Span, TilePlan, TileSizeConfig, Tiling

MIN_FRAMES, MIN_PIXELS = 16, 64  # of a recommended tile
MEMORY_COEFFICIENT = 5.0  # activations of stage 5's width alive at once
SAFETY_BYTES = 2**30
MIN_MODEL_BYTES = 2**30


def tile_plan(config: DiffusionDecoderConfig, latent: Axes, tiling: Tiling | None) -> TilePlan:
    """Lay tiles over a latent ``(frames, height, width)`` that is not below ``config.min_latent``; None is one tile.

    A size config is in frames and pixels, a count config's overlap in cells. Raises ``ConfigError`` for tiles or
    overlaps the decoder cannot work with.
    """
    cells = cells_of(config, latent)
    frames, height, width = (
        tuple(_span(part, factor, axis == 0) for part in parts)
        for axis, (parts, factor) in enumerate(zip(_split(config, cells, tiling), config.cell_factors, strict=True))
    )
    return TilePlan(frames, height, width)


def cells_of(config: DiffusionDecoderConfig, latent: Axes) -> Axes:
    """The grid of stage 4's input."""
    (t, h, w), (frames, height, width) = config.latent_cells, latent
    return t * frames - (t - 1), h * height, w * width


def _split(config: DiffusionDecoderConfig, cells: Axes, tiling: Tiling | None) -> list[list[Interval]]:
    if tiling is None:
        return [[Interval(0, dim)] for dim in cells]
    axes = list(zip(AXES, cells, (tiling.frames, tiling.height, tiling.width), config.min_tile, strict=True))
    if isinstance(tiling, TileCountConfig):
        return [_split_axis(name, dim, *axis, smallest) for name, dim, axis, smallest in axes]
    tiling.check(config.cell_factors)
    frames, pixels = config.overlap
    parts = []
    for (name, dim, (tile, overlap), smallest), factor, needed in zip(
        axes, config.cell_factors, (frames, pixels, pixels), strict=True
    ):
        if tile and overlap < needed:
            raise ConfigError(f"{name} overlap is {overlap}, expected at least {needed} for this diffusion decoder")
        whole = [Interval(0, dim)]
        parts.append(split_by_size(dim, tile // factor, overlap // factor, smallest) if tile else whole)
    return parts


def _split_axis(name: str, dim: int, count: int, overlap: int, smallest: int) -> list[Interval]:
    parts = split_by_count(dim, count, overlap)
    if len(parts) > 1 and (shortest := min(part.length for part in parts)) < smallest:
        raise ConfigError(f"{name} is cut into tiles of {shortest} cells, expected at least {smallest}")
    return parts


def _span(cells: Interval, factor: int, is_time: bool) -> Span:
    """Cells ``[a, b)`` as pixels ``[a*f, b*f)``, or as frames that begin and end ``f - 1`` earlier."""
    early = factor - 1 if is_time else 0
    start, end = max(cells.start * factor - early, 0), cells.end * factor - early
    return Span(cells, Interval(start, end, cells.left_ramp * factor, cells.right_ramp * factor), is_time=False)


@dataclass(frozen=True)
class MemoryBudget:
    """Memory for a decode. ``free`` is the device's free memory without the decoder's own weights, in bytes."""

    free: int
    model: int
    coefficient: float = MEMORY_COEFFICIENT
    safety: int = SAFETY_BYTES
    element: int = 2

    def usable(self, features: int) -> int:
        """Bytes left when ``features`` elements stay for the whole decode."""
        return self.free - max(self.model, MIN_MODEL_BYTES) - self.safety - self.element * features


def recommended_tiling(
    config: DiffusionDecoderConfig, video: tuple[int, int, int], budget: MemoryBudget
) -> TileSizeConfig:
    """The tiles that decode a video ``(frames, height, width)`` with the least work in the memory of the budget.

    Raises ``ConfigError`` when not even the smallest tiles fit.
    """
    factors = config.scale_factors
    (overlap_t, overlap_s), (frames, height, width) = config.overlap, video
    latent = (math.ceil((frames - 1) / factors.time) + 1, height // factors.height, width // factors.width)
    ghosts = cells_of(config, (latent[0] + 2, *latent[1:]))
    usable = budget.usable(config.stages[-2].width * math.prod(ghosts))
    steps, smallest = (FRAMES_STEP, PIXELS_STEP, PIXELS_STEP), (MIN_FRAMES, MIN_PIXELS, MIN_PIXELS)
    overlaps = (overlap_t, overlap_s, overlap_s)
    axes = []
    for side, cells, factor, step, least, overlap, tile in zip(
        video, cells_of(config, latent), config.cell_factors, steps, smallest, overlaps, config.min_tile, strict=True
    ):
        start = round_up(max(2 * overlap, 2 * factor, tile * factor, least), step)
        sizes = range(start, max(round_up(side, step), start) + 1, step)
        axes.append([(size, len(split_by_size(cells, size // factor, overlap // factor, tile))) for size in sizes])
    best = _cheapest(axes, config, (height, width), usable, budget)
    if best is None:
        clip = f"{budget.free / 2**30:.1f} GiB for {frames} frames of {height} x {width}"
        raise ConfigError(f"no tiles of the diffusion decoder fit {clip}; free memory, or give smaller tiles yourself")
    return TileSizeConfig((best[0], overlap_t), (best[1], overlap_s), (best[2], overlap_s))


def whole_decode_work(config: DiffusionDecoderConfig, latent: Axes, element: int = 2) -> tuple[int, int]:
    """Operations to decode a latent ``(frames, height, width)`` as one tile, and bytes alive at once beside weights."""
    multiplications, tokens = 0, 0
    for index, stage in enumerate(config.stages):
        last = index == len(config.stages) - 1
        steps, frames = config.stride_before(index), latent[0] + (0 if last else config.ghost_frames)
        tokens = (steps[0] * frames - steps[0] + 1) * steps[1] * latent[1] * steps[2] * latent[2]
        block = stage.width * (16 * stage.width + 2 * math.prod(stage.kernel))
        block += config.context_width * stage.width if last else 0
        upsample = 0 if last else stage.width**2 * config.upsamples[index].cells // config.upsamples[index].reduction
        multiplications += tokens * (stage.depth * block + upsample) * (config.steps if last else 1)
    return 2 * multiplications, int(MEMORY_COEFFICIENT * tokens * config.denoising.width * element)


def _cheapest(
    axes: Sequence[Sequence[tuple[int, int]]],
    config: DiffusionDecoderConfig,
    picture: tuple[int, int],
    usable: int,
    budget: MemoryBudget,
) -> Axes | None:
    """Of sizes with their tile counts per axis, those with the least pixels to compute; then the largest tile."""
    patch, best = config.patch_size, None
    token = config.denoising.width * budget.element * budget.coefficient
    for t, n_t in axes[0]:
        accumulators = 2 * t * picture[0] * picture[1] * config.out_channels * budget.element
        if accumulators >= usable:
            break
        tokens = (usable - accumulators) // token
        for h, n_h in axes[1]:
            for w, n_w in axes[2]:
                if t * (h // patch) * (w // patch) > tokens:
                    break
                count, size = n_t * n_h * n_w, t * h * w
                key = (count * size, -size, count, (t, h, w))
                best = key if best is None else min(best, key)
    return best[-1] if best else None


@dataclass(frozen=True)
class Crop:
    """The part of a decoded clip that was asked for: its first frames, and a rectangle of the picture."""

    frames: int
    height: slice
    width: slice

    def chunks(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Chunks ``[B, 3, f, H, W]`` of frames, cut; empty ones are left out."""
        left = self.frames
        for chunk in chunks:
            chunk = chunk[:, :, :left, self.height, self.width]
            left -= chunk.shape[2]
            if chunk.shape[2]:
                yield chunk


def pad_edges(latent: Tensor, config: DiffusionDecoderConfig) -> tuple[Tensor, Crop]:
    """Copy the edges of a latent below ``config.min_latent`` outwards: after the last frame, around the picture."""
    factors, slices = config.scale_factors, []
    frames = (latent.shape[2] - 1) * factors.time + 1
    for axis, (smallest, factor) in enumerate(zip(config.min_latent, factors, strict=True), 2):
        size = latent.shape[axis]
        missing = max(smallest - size, 0)
        before = missing // 2 if axis > 2 else 0
        latent = extend_axis(latent, axis, before, missing - before)
        slices.append(slice(before * factor, (before + size) * factor))
    return latent, Crop(frames, slices[1], slices[2])


def extend_axis(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Copies of the first and of the last location of an axis around it."""
    if not before and not after:
        return x
    size = x.shape[axis]
    return x.index_select(axis, torch.arange(-before, size + after, device=x.device).clamp_(0, size - 1))
