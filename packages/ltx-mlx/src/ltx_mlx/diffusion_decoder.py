"""The neighbourhood-attention diffusion decoder of LTX-2.5 in MLX: latents ``[B, C, f, h, w]`` to pixels.

::

    un_normalize -> pad -> conv_in -> det_stages 0..2 with upsamples -> cells            once for the whole clip
    cells -> det_stages.3 -> upsamples.3 -> context                                      per tile
    noise -> [conv_in_x_t(patchify(x)) -> diff_blocks on the context -> norm_out -> conv_out -> unpatchify] per step

Activations are ``[B, T, H, W, C]``. Tensor names are listed in ``ltx_core.model.video_vae.diffusion``. What would be
large at once is made for a slab of frames at a time and evaluated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae.diffusion.attention import (
    Run,
    axis_frequencies,
    axis_mask,
    axis_runs,
    axis_widths,
    box_mask,
)
from ltx_core.model.video_vae.diffusion.config import (
    MODULATIONS,
    Axes,
    DiffusionDecoderConfig,
    StageConfig,
    UpsampleConfig,
    round_up,
)
from ltx_core.model.video_vae.diffusion.tiling import (
    MemoryBudget,
    extend_axis,
    pad_edges,
    recommended_tiling,
    tile_plan,
)
from ltx_core.model.video_vae.tiling import (
    Tile,
    TilePlan,
    TileSizeConfig,
    Tiling,
    blend_tiles,
    cells_of_tile,
    pixels_of_tile,
)
from ltx_mlx.arrays import TORCH_DTYPES, channels_first, channels_last, flat_parameters, to_mlx
from ltx_mlx.conv_cache import ConvCache
from ltx_mlx.layers import SINUSOID_WIDTH, RMSNorm, silu, sinusoid
from ltx_mlx.memory import free_bytes
from ltx_mlx.video_vae import PerChannelStatistics, depth_to_space, patchify, unpatchify

if TYPE_CHECKING:
    from ltx_core.model.video_vae.video_vae import DecodeConditioning

SLAB_ELEMENTS = 2**25  # of the widest activation of a slab
GATHERED_BYTES = 2**27  # of keys and values at once

Norm = Callable[[mx.array], mx.array]
Grid = tuple[Run, Run, Run]


# Attention --------------------------------------------------------------------------------------------------------


def neighbourhood_attention(
    q: mx.array, k: mx.array, v: mx.array, kernel: Axes, scale: float = 1.0, first: Axes = (0, 0, 0)
) -> mx.array:
    """``softmax(scale q k^T) v`` over the ``kernel`` around each query, ``[B, T, H, W, heads, head_dim]``.

    Queries may be a box of the locations of ``k`` and ``v`` that begins at ``first``. They are taken in small boxes,
    each one dense attention to the box of keys its windows lie in, with a mask. Raises ``ConfigError`` for an axis
    shorter than its kernel.
    """
    for name, keys, size in zip(("frames", "height", "width"), k.shape[1:4], kernel, strict=True):
        if keys < size:
            raise ConfigError(f"{name} is {keys} locations, expected at least the kernel's {size}")
    runs = [axis_runs(*axis) for axis in zip(q.shape[1:4], first, k.shape[1:4], kernel, strict=True)]
    like = torch.empty(0)
    masks = {(run, size): axis_mask(run, size, like) for axis, size in zip(runs, kernel, strict=True) for run in axis}
    out = mx.zeros((*q.shape[:-1], v.shape[-1]), v.dtype)
    for grid in itertools.product(*runs):
        dense = box_mask(grid, [masks[run, size] for run, size in zip(grid, kernel, strict=True)])
        mask = None if dense is None else to_mlx(dense, q.dtype)
        for part in _parts(grid, k):
            boxes = [_boxes(q, part, queries=True), _boxes(k, part), _boxes(v, part)]
            seen = mx.fast.scaled_dot_product_attention(*boxes, scale=scale, mask=mask)
            t, h, w = (run.queries for run in part)
            out[:, t, h, w] = _join(seen, part, q.shape[0])
            mx.eval(out)
    return out


def _parts(grid: tuple[Run, ...], k: mx.array) -> Iterator[Grid]:
    """Cut a grid of boxes so that each part's keys and values fit ``GATHERED_BYTES``."""
    t, h, w = grid
    box = 2 * t.span * h.span * w.span * k.shape[4] * k.shape[5] * k.itemsize * k.shape[0]
    most = max(GATHERED_BYTES // box, 1)
    wide = min(w.count, most)
    high = min(h.count, max(most // wide, 1))
    deep = min(t.count, max(most // (wide * high), 1))
    for a, b, c in itertools.product(range(0, t.count, deep), range(0, h.count, high), range(0, w.count, wide)):
        yield t.part(a, deep), h.part(b, high), w.part(c, wide)


def _boxes(x: mx.array, grid: Grid, queries: bool = False) -> mx.array:
    """The boxes of a grid, copied where they overlap: ``[B * boxes, heads, locations of a box, head_dim]``."""
    sides = []
    for axis, run in enumerate(grid, 1):
        start, side = (run.start, run.length) if queries else (run.keys, run.span)
        places = mx.arange(run.count)[:, None] * run.length + mx.arange(side) + start
        x = mx.take(x, places.reshape(-1), axis)
        sides += [run.count, side]
    b, (*_, heads, head_dim) = x.shape[0], x.shape
    x = x.reshape(b, *sides, heads, head_dim).transpose(0, 1, 3, 5, 7, 2, 4, 6, 8)
    return x.reshape(b * sides[0] * sides[2] * sides[4], heads, -1, head_dim)


def _join(x: mx.array, grid: Grid, batch: int) -> mx.array:
    """The inverse for queries: ``[B, T, H, W, heads, head_dim]``."""
    t, h, w = grid
    x = x.reshape(batch, t.count, h.count, w.count, x.shape[1], t.length, h.length, w.length, x.shape[-1])
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4, 8)
    return x.reshape(batch, t.count * t.length, h.count * h.length, w.count * w.length, *x.shape[-2:])


def rotate(x: mx.array, first: Axes = (0, 0, 0), base: float = 10000.0) -> mx.array:
    """Turn ``[B, T, H, W, heads, head_dim]`` by its positions, which count up from ``first``; float32 inside."""
    widths, turned = axis_widths(x.shape[-1]), []
    parts = mx.split(x, [widths[0], widths[0] + widths[1]], axis=-1)
    for axis, (part, start) in enumerate(zip(parts, first, strict=True), 1):
        frequencies = to_mlx(axis_frequencies(part.shape[-1], base))
        angles = mx.arange(start, start + x.shape[axis], dtype=mx.float32)[:, None] * frequencies
        shape = [1, 1, 1, 1, 1, angles.shape[1]]
        shape[axis] = angles.shape[0]
        cos, sin = mx.cos(angles).reshape(shape), mx.sin(angles).reshape(shape)
        pairs = part.astype(mx.float32).reshape(*part.shape[:-1], -1, 2)
        even, odd = pairs[..., 0], pairs[..., 1]
        turned.append(mx.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(part.shape))
    return mx.concatenate(turned, axis=-1).astype(x.dtype)


class NeighbourhoodAttention(nn.Module):
    """Attention of every location to the ``kernel`` around it, normalised queries and keys.

    With ``copies_edges`` the windows of columns near the left and right border see copies of the edge column beyond it,
    as decoders that work in column slabs compute.
    """

    def __init__(self, config: StageConfig, head_dim: int) -> None:
        super().__init__()
        self.kernel, self.head_dim, self.copies_edges = config.kernel, head_dim, False
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm = RMSNorm(head_dim)  # shared by the heads
        self.k_norm = RMSNorm(head_dim)
        self.proj = nn.Linear(config.width, config.width)

    def keys_values(self, x: mx.array, first: int = 0) -> tuple[mx.array, mx.array]:
        """Of frames ``first`` on, ``[B, T, H, W, heads, head_dim]`` each."""
        if self.copies_edges:
            columns = mx.clip(mx.arange(-self.margin, x.shape[3] + self.margin), 0, x.shape[3] - 1)
            x = mx.take(x, columns, 3)
        keys, values = mx.split(self._project(x, 1, 3), 2, axis=-2)
        return rotate(self.k_norm(keys), (first, 0, 0)), values

    def attend(self, x: mx.array, known: tuple[mx.array, mx.array], first: int = 0) -> mx.array:
        """Attention of the frames ``x``, which begin at ``first``, to the keys and values of the whole clip."""
        origin = (first, 0, self.margin)
        queries = rotate(self.q_norm(self._project(x, 0, 1)), origin)
        seen = neighbourhood_attention(queries, *known, self.kernel, self.head_dim**-0.5, origin)
        return self.proj(seen.reshape(*seen.shape[:-2], -1))

    @property
    def margin(self) -> int:
        """Copied columns beyond each border."""
        return self.kernel[2] // 2 if self.copies_edges else 0

    def _project(self, x: mx.array, start: int, end: int) -> mx.array:
        """The thirds ``start`` to ``end`` of ``qkv`` as heads."""
        rows = slice(start * x.shape[-1], end * x.shape[-1])
        y = x @ self.qkv.weight[rows].T + self.qkv.bias[rows]
        return y.reshape(*x.shape[:-1], -1, self.head_dim)


# Blocks -----------------------------------------------------------------------------------------------------------


class GatedMlp(nn.Module):
    """``w_down(silu(w_gate x) * w_up x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = round_up(4 * width, 16)
        self.w_gate = nn.Linear(width, hidden, bias=False)
        self.w_up = nn.Linear(width, hidden, bias=False)
        self.w_down = nn.Linear(hidden, width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.w_down(silu(self.w_gate(x)) * self.w_up(x))


class Block(nn.Module):
    """Attention and MLP, each added to its input."""

    def __init__(self, config: StageConfig, head_dim: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = NeighbourhoodAttention(config, head_dim)
        self.norm2 = RMSNorm(config.width)
        self.mlp = GatedMlp(config.width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.apply_feed_forward(self.apply_attention(x, self.norm1), self.norm2)

    def apply_attention(self, x: mx.array, norm: Norm) -> mx.array:
        known = [self.attn.keys_values(norm(part), first) for first, part in slabs(x, x.shape[-1])]
        keys, values = (mx.concatenate(list(parts), axis=1) for parts in zip(*known, strict=True))
        return add_in_slabs(x, x.shape[-1], lambda part, first: self.attn.attend(norm(part), (keys, values), first))

    def apply_feed_forward(self, x: mx.array, norm: Norm) -> mx.array:
        return add_in_slabs(x, 4 * x.shape[-1], lambda part, first: self.mlp(norm(part)))


class DenoisingBlock(Block):
    """A block that first adds a projection of the context, its norms scaled and shifted by the timestep."""

    def __init__(self, config: StageConfig, head_dim: int, context_width: int) -> None:
        super().__init__(config, head_dim)
        self.context_proj = nn.Linear(context_width, config.width)
        self.scale_shift_table = mx.zeros((MODULATIONS, config.width))

    def denoise_frames(self, x: mx.array, context: mx.array, modulation: mx.array) -> mx.array:
        """``context`` is ``[B, T, H, W, C']``, ``modulation`` ``[B, 7, C]``; their gates are not used."""
        table = (modulation + self.scale_shift_table)[:, :, None, None, None]
        scale_a, shift_a, _, scale_m, shift_m, _, _ = mx.unstack(table, axis=1)
        x = add_in_slabs(
            x, x.shape[-1], lambda part, first: self.context_proj(context[:, first : first + part.shape[1]])
        )
        x = self.apply_attention(x, lambda part: self.norm1(part) * (1 + scale_a) + shift_a)
        return self.apply_feed_forward(x, lambda part: self.norm2(part) * (1 + scale_m) + shift_m)


class Upsample(nn.Module):
    """``[B, T, H, W, C] -> [B, T*s1, H*s2, W*s3, C / reduction]``; one frame less where the clip begins."""

    def __init__(self, width: int, config: UpsampleConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.proj = nn.Linear(width, config.cells * width // config.reduction)

    def __call__(self, x: mx.array, begins: bool = True) -> mx.array:
        y = depth_to_space(self.proj(x), self.stride)
        return y[:, 1:] if begins and self.stride[0] == 2 else y


def slabs(x: mx.array, width: int) -> Iterator[tuple[int, mx.array]]:
    """``(first frame, frames)`` of x, as many as activations of ``width`` channels fit a slab."""
    b, t, h, w, _ = x.shape
    frames = round_up(max(1, SLAB_ELEMENTS // (b * h * w * width)), 4)
    for first in range(0, t, frames):
        yield first, x[:, first : first + frames]


def add_in_slabs(x: mx.array, width: int, update: Callable[[mx.array, int], mx.array]) -> mx.array:
    """x plus ``update(frames of x, index of the first)``, slab by slab, each evaluated before the next."""
    parts = []
    for first, part in slabs(x, width):
        parts.append(part + update(part, first))
        mx.eval(parts[-1])
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


# The decoder ------------------------------------------------------------------------------------------------------


class TimestepEmbedder(nn.Module):
    """Scaled timesteps ``[B]`` to ``[B, width]``: sinusoid, linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = [nn.Linear(SINUSOID_WIDTH, width), nn.SiLU(), nn.Linear(width, width)]

    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        return self.mlp[2](silu(self.mlp[0](sinusoid(timestep).astype(dtype))))


class SharedModulation(nn.Module):
    """Timestep embedding ``[B, E]`` to the seven modulations all blocks share, ``[B, 7, C5]``."""

    def __init__(self, embedding_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding_width, MODULATIONS * width)

    def __call__(self, embedding: mx.array) -> mx.array:
        return self.proj(silu(embedding)).reshape(embedding.shape[0], MODULATIONS, -1)


class DiffusionVideoDecoder(nn.Module):
    """Normalised latents to pixels, about [-1, 1] and not clamped, by denoising pixels on what the latent says.

    The noise of ``DecodeConditioning`` is what the pixels start from; its timestep and noise scale are not used.
    """

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.scale_factors = config.scale_factors
        width, pixels = config.denoising.width, config.out_channels * config.patch_size**2
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)
        self.conv_in = nn.Linear(config.latent_channels, config.stages[0].width)
        self.det_stages = [[Block(s, config.head_dim) for _ in range(s.depth)] for s in config.deterministic]
        pairs = zip(config.deterministic, config.upsamples, strict=True)
        self.upsamples = [Upsample(stage.width, upsample) for stage, upsample in pairs]
        self.conv_in_x_t = nn.Linear(pixels, width)
        self.t_embedder = TimestepEmbedder(config.timestep_width)
        self.shared_adaln = SharedModulation(config.timestep_width, width)
        self.diff_blocks = [
            DenoisingBlock(config.denoising, config.head_dim, config.context_width)
            for _ in range(config.denoising.depth)
        ]
        self.norm_out = RMSNorm(width)
        self.conv_out = nn.Linear(width, pixels)

    def copy_edges(self, on: bool = True) -> None:
        """Let stage 5 see copies of the edge columns beyond the picture, as decoders in column slabs do."""
        for block in self.diff_blocks:
            block.attn.copies_edges = on

    def __call__(self, latent: Tensor, conditioning: DecodeConditioning | None = None) -> Tensor:
        """The whole video at once, in the latent's dtype."""
        (video,) = self.decode_tiled(latent, None, conditioning)
        return video

    def decode_frames(
        self, latent: Tensor, conditioning: DecodeConditioning | None = None, most: int | None = None
    ) -> Iterator[Tensor]:
        """Chunks ``[f, H, W, 3]`` in [0, 1] of item 0, in tiles that fit the free memory, whatever ``most`` says."""
        mx.clear_cache()  # buffers of the sampling before, of other sizes
        tiling = self.automatic_tiling(latent, free_bytes())
        for chunk in self.decode_tiled(latent[:1], tiling, conditioning):
            yield ((chunk[0] + 1) / 2).clamp_(0, 1).permute(1, 2, 3, 0)

    def decode_tiled(
        self, latent: Tensor, tiling: Tiling | None, conditioning: DecodeConditioning | None = None
    ) -> Iterator[Tensor]:
        """Chunks of frames ``[B, 3, f, H, W]``, stages 4 and 5 tile by tile; None is one tile.

        A decoder of one step draws noise for each tile, in order; others draw one canvas that tiles are cut from.
        """
        dtype = TORCH_DTYPES[self.conv_in.weight.dtype]
        z, crop = pad_edges(latent.cpu().to(dtype), self.config)
        plan = tile_plan(self.config, (z.shape[2], z.shape[3], z.shape[4]), tiling)
        noise, cells = self._noise(z, plan, conditioning), self.cells(channels_last(z))

        def render(tile: Tile) -> Tensor:
            return channels_first(self._render(cells, tile, plan, channels_last(noise(tile))))

        accumulated = z.to(torch.float16) if dtype == torch.bfloat16 else z
        whole = len(plan.tiles) == 1
        chunks = (
            iter([render(plan.tiles[0])]) if whole else blend_tiles(plan, render, accumulated, self.config.out_channels)
        )
        for chunk in crop.chunks(chunks):
            yield chunk.to(latent)

    def cells(self, z: mx.array) -> mx.array:
        """Stages 1 to 3: a normalised latent ``[B, T, H, W, C]`` to stage 4's input ``[B, T4, H4, W4, C4]``.

        The last frame is repeated ``config.ghost_frames`` times first, and the result holds their cells too.
        """
        z = self.per_channel_statistics.un_normalize(z)
        x = self.conv_in(mx.concatenate([z, mx.repeat(z[:, -1:], self.config.ghost_frames, axis=1)], axis=1))
        for blocks, upsample in zip(self.det_stages[:-1], self.upsamples[:-1], strict=True):
            for block in blocks:
                x = block(x)
            x = upsample(x)
        mx.eval(x)
        return x

    def context(self, cells: mx.array, begins: bool = True) -> mx.array:
        """Stage 4 and its upsample ``[B, t, h, w, C4] -> [B, T, H, W, C']``; ``begins``: they hold the first frame."""
        for block in self.det_stages[-1]:
            cells = block(cells)
        return self.upsamples[-1](cells, begins)

    def step(self, x_t: mx.array, context: mx.array, t: mx.array) -> mx.array:
        """Stage 5: noisy pixels ``[B, F, H, W, 3]`` and their times ``[B]`` to the prediction, of the same shape."""
        x = self.conv_in_x_t(patchify(x_t, self.config.patch_size))
        modulation = self.shared_adaln(self.t_embedder(t * self.config.timestep_scale, x.dtype))  # [B, 7, C5]
        for block in self.diff_blocks:
            x = block.denoise_frames(x, context, modulation)
        return unpatchify(self.conv_out(self.norm_out(x)), self.config.patch_size)

    def denoise(self, noise: mx.array, context: mx.array) -> mx.array:
        """From noise ``[B, F, H, W, 3]`` at time 1 to pixels, in ``config.steps`` Euler steps."""
        x, steps = noise, self.config.steps
        times = [1 - index / steps for index in range(steps)]
        for now, then in zip(times, [*times[1:], 0.0], strict=True):
            velocity = self.step(x, context, mx.full((x.shape[0],), now))
            if self.config.prediction == "x0":
                if then == 0:
                    return velocity
                velocity = (x - velocity) / now
            x = (x.astype(mx.float32) - (now - then) * velocity.astype(mx.float32)).astype(x.dtype)
        return x

    def automatic_tiling(self, latent: Tensor, free: int) -> TileSizeConfig:
        """The tiles of the least work for a latent with ``free`` bytes of memory left beside the decoder's weights."""
        model = sum(array.nbytes for array in flat_parameters(self).values())
        budget = MemoryBudget(free + model, model, element=self.conv_in.weight.itemsize)
        time, height, width = self.scale_factors
        video = ((latent.shape[2] - 1) * time + 1, latent.shape[3] * height, latent.shape[4] * width)
        return recommended_tiling(self.config, video, budget)

    def _render(self, cells: mx.array, tile: Tile, plan: TilePlan, noise: mx.array) -> mx.array:
        """Pixels of one tile. The one that ends the clip takes the ghost cells along; their frames are dropped."""
        frames = tile[0]
        ends = frames.cells.end == plan.frames[-1].cells.end
        if len(plan.tiles) > 1:
            t, h, w = cells_of_tile(tile)
            cells = cells[:, t.start : None if ends else t.stop, h, w]
        context = self.context(cells, begins=frames.cells.start == 0)
        return self.denoise(noise, context[:, : noise.shape[1]])[:, : frames.pixels.length]

    def _noise(self, z: Tensor, plan: TilePlan, conditioning: DecodeConditioning | None) -> Callable[[Tile], Tensor]:
        """A function from a tile to its noise, of at least the frames that stage 5's kernel needs."""
        cache, dtype = ConvCache(noise=conditioning.noise if conditioning else None), self.conv_in.weight.dtype

        def draw(*sides: int) -> Tensor:
            return cache.draw((z.shape[0], self.config.out_channels, *sides), dtype).to(z)

        def frames_of(tile: Tile) -> int:
            return max(tile[0].pixels.length, self.config.denoising.kernel[0])

        if self.config.steps == 1 and self.config.prediction == "x0":
            return lambda tile: draw(frames_of(tile), tile[1].pixels.length, tile[2].pixels.length)
        canvas = draw(*(spans[-1].pixels.end for spans in plan.axes))

        def cut(tile: Tile) -> Tensor:
            part = canvas[(..., *pixels_of_tile(tile))]
            return extend_axis(part, 2, 0, frames_of(tile) - part.shape[2])

        return cut
