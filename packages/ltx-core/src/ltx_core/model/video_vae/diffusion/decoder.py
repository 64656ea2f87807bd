"""The neighbourhood-attention diffusion decoder: latents ``[B, C, f, h, w]`` to pixels ``[B, 3, F, H, W]``.

::

    un_normalize -> pad -> conv_in -> det_stages 0..2 with upsamples -> cells            once for the whole clip
    cells -> det_stages.3 -> upsamples.3 -> context                                      per tile
    noise -> [conv_in_x_t(patchify(x)) -> diff_blocks on the context -> norm_out -> conv_out -> unpatchify] per step

Tensors: ``conv_in.*`` (C1, C), ``det_stages.{s}.{j}.*``, ``upsamples.{s}.*``, ``conv_in_x_t.*`` (C5, 3*p*p),
``t_embedder.mlp.{0,2}.*`` (E, 256) and (E, E), ``shared_adaln.proj.*`` (7*C5, E), ``diff_blocks.{j}.*``,
``norm_out.weight`` (C5), ``conv_out.*`` (3*p*p, C5), ``per_channel_statistics.*``. ``blocks`` has the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx_core.model.video_vae.conv_cache import ConvCache
from ltx_core.model.video_vae.diffusion.blocks import (
    NORM_EPS,
    Block,
    DenoisingBlock,
    NeighbourhoodAttention,
    Upsample,
    slab_frames,
)
from ltx_core.model.video_vae.diffusion.config import MODULATIONS, DiffusionDecoderConfig
from ltx_core.model.video_vae.diffusion.tiling import (
    MemoryBudget,
    extend_axis,
    pad_edges,
    recommended_tiling,
    tile_plan,
)
from ltx_core.model.video_vae.ops import PerChannelStatistics, patchify, unpatchify
from ltx_core.model.video_vae.tiling import (
    Tile,
    TilePlan,
    TileSizeConfig,
    Tiling,
    blend_tiles,
    cells_of_tile,
    pixels_of_tile,
)
from ltx_core.model.video_vae.video_vae import DecodeConditioning
from ltx_core.utils import SINUSOID_WIDTH, timestep_embedding


class DiffusionVideoDecoder(nn.Module):
    """Normalised latents to pixels, about [-1, 1] and not clamped, by denoising pixels on what the latent says.

    The noise of ``DecodeConditioning`` is what the pixels start from; its timestep and noise scale are not used.
    """

    can_stream = False  # attention looks both ways in time

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.scale_factors = config.scale_factors
        width, pixels = config.denoising.width, config.out_channels * config.patch_size**2
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)
        self.conv_in = nn.Linear(config.latent_channels, config.stages[0].width)
        self.det_stages = nn.ModuleList(
            nn.Sequential(*(Block(stage, config.head_dim) for _ in range(stage.depth)))
            for stage in config.deterministic
        )
        self.upsamples = nn.ModuleList(
            Upsample(stage.width, upsample)
            for stage, upsample in zip(config.deterministic, config.upsamples, strict=True)
        )
        self.conv_in_x_t = nn.Linear(pixels, width)
        self.t_embedder = TimestepEmbedder(config.timestep_width)
        self.shared_adaln = SharedModulation(config.timestep_width, width)
        self.diff_blocks = nn.ModuleList(
            DenoisingBlock(config.denoising, config.head_dim, config.context_width)
            for _ in range(config.denoising.depth)
        )
        self.norm_out = nn.RMSNorm(width, eps=NORM_EPS)
        self.conv_out = nn.Linear(width, pixels)

    def copy_edges(self, on: bool = True) -> None:
        """Let stage 5 see copies of the edge columns beyond the picture, as decoders in column slabs do."""
        for module in self.diff_blocks.modules():
            if isinstance(module, NeighbourhoodAttention):
                module.copies_edges = on

    def forward(self, latent: Tensor, conditioning: DecodeConditioning | None = None) -> Tensor:
        """The whole video at once, in the latent's dtype."""
        (video,) = self._decode(latent, None, conditioning)
        return video

    @torch.no_grad()
    def decode_tiled(
        self, latent: Tensor, tiling: Tiling | None, conditioning: DecodeConditioning | None = None
    ) -> Iterator[Tensor]:
        """``forward`` in chunks of frames ``[B, 3, f, H, W]``, stages 4 and 5 tile by tile; None is one tile.

        A decoder of one step draws noise for each tile, in order; others draw one canvas that tiles are cut from.
        """
        yield from self._decode(latent, tiling, conditioning)

    def _decode(
        self, latent: Tensor, tiling: Tiling | None, conditioning: DecodeConditioning | None
    ) -> Iterator[Tensor]:
        weight = self.conv_in.weight
        latent = latent.to(weight.device)
        z, crop = pad_edges(latent.to(weight.dtype), self.config)
        plan = tile_plan(self.config, (z.shape[2], z.shape[3], z.shape[4]), tiling)
        noise = self._noise(latent, plan, conditioning or DecodeConditioning())
        cells = self.cells(z)

        def render(tile: Tile) -> Tensor:
            return self._render(cells, tile, plan, noise(tile))

        accumulated = z.to(torch.float16) if weight.dtype == torch.bfloat16 else z
        whole = len(plan.tiles) == 1
        chunks = (
            iter([render(plan.tiles[0])]) if whole else blend_tiles(plan, render, accumulated, self.config.out_channels)
        )
        for chunk in crop.chunks(chunks):
            yield chunk.to(latent.dtype)

    def cells(self, z: Tensor) -> Tensor:
        """Stages 1 to 3: a normalised latent ``[B, C, T, H, W]`` to stage 4's input ``[B, T4, H4, W4, C4]``.

        The last frame is repeated ``config.ghost_frames`` times first, and the result holds their cells too.
        """
        z = extend_axis(self.per_channel_statistics.un_normalize(z), 2, 0, self.config.ghost_frames)
        x = self.conv_in(z.movedim(1, -1))
        for blocks, upsample in zip(self.det_stages[:-1], self.upsamples[:-1], strict=True):
            x = upsample(blocks(x))
        return x

    def context(self, cells: Tensor, begins: bool = True) -> Tensor:
        """Stage 4 and its upsample ``[B, t, h, w, C4] -> [B, T, H, W, C']``; cells are overwritten without gradients.

        ``begins``: whether the cells hold the clip's first frame.
        """
        return self.upsamples[-1](self.det_stages[-1](cells), begins)

    def step(self, x_t: Tensor, context: Tensor, t: Tensor) -> Tensor:
        """Stage 5: noisy pixels ``[B, 3, F, H, W]`` and their times ``[B]`` to the prediction, of the same shape."""
        x = self.conv_in_x_t(patchify(x_t, self.config.patch_size).movedim(1, -1))
        modulation = self.shared_adaln(self.t_embedder(t * self.config.timestep_scale, x.dtype))  # [B, 7, C5]
        for block in self.diff_blocks:
            x = block(x, context, modulation)
        parts = x.split(slab_frames(x, x.shape[-1]), dim=1)
        pixels = torch.cat([self.conv_out(self.norm_out(part)) for part in parts], dim=1)
        return unpatchify(pixels.movedim(-1, 1), self.config.patch_size)

    def denoise(self, noise: Tensor, context: Tensor) -> Tensor:
        """From noise ``[B, 3, F, H, W]`` at time 1 to pixels, in ``config.steps`` Euler steps."""
        x, times = noise, torch.linspace(1, 1 / self.config.steps, self.config.steps, device="cpu").tolist()
        for now, then in zip(times, [*times[1:], 0.0], strict=True):
            velocity = self.step(x, context, torch.full((x.shape[0],), now, device=x.device))
            if self.config.prediction == "x0":
                if then == 0:
                    return velocity
                velocity = (x - velocity) / now
            x = (x.float() - (now - then) * velocity.float()).to(x.dtype)
        return x

    def automatic_tiling(self, latent: Tensor, free: int) -> TileSizeConfig:
        """The tiles of the least work for a latent with ``free`` bytes of memory left beside the decoder's weights."""
        model = sum(parameter.nbytes for parameter in self.parameters())
        budget = MemoryBudget(free + model, model, element=self.conv_in.weight.element_size())
        time, height, width = self.scale_factors
        frames = (latent.shape[2] - 1) * time + 1
        return recommended_tiling(self.config, (frames, latent.shape[3] * height, latent.shape[4] * width), budget)

    def _render(self, cells: Tensor, tile: Tile, plan: TilePlan, noise: Tensor) -> Tensor:
        """Pixels of one tile. The one that ends the clip takes the ghost cells along; their frames are dropped."""
        frames = tile[0]
        ends = frames.cells.end == plan.frames[-1].cells.end
        if len(plan.tiles) > 1:
            t, h, w = cells_of_tile(tile)
            cells = cells[:, t.start : None if ends else t.stop, h, w].clone()  # stage 4 writes over its input
        context = self.context(cells, begins=frames.cells.start == 0)
        return self.denoise(noise, context[:, : noise.shape[2]])[:, :, : frames.pixels.length]

    def _noise(self, latent: Tensor, plan: TilePlan, conditioning: DecodeConditioning) -> Callable[[Tile], Tensor]:
        """A function from a tile to its noise, of at least the frames that stage 5's kernel needs."""
        cache, dtype = ConvCache(noise=conditioning.noise), self.conv_in.weight.dtype

        def draw(*sides: int) -> Tensor:
            return cache.draw((latent.shape[0], self.config.out_channels, *sides), latent).to(dtype)

        def frames_of(tile: Tile) -> int:
            return max(tile[0].pixels.length, self.config.denoising.kernel[0])

        if self.config.steps == 1 and self.config.prediction == "x0":
            return lambda tile: draw(frames_of(tile), tile[1].pixels.length, tile[2].pixels.length)
        canvas = draw(*(spans[-1].pixels.end for spans in plan.axes))

        def cut(tile: Tile) -> Tensor:
            part = canvas[(..., *pixels_of_tile(tile))]
            return extend_axis(part, 2, 0, frames_of(tile) - part.shape[2])

        return cut


class TimestepEmbedder(nn.Module):
    """Scaled timesteps ``[B]`` to ``[B, width]``: sinusoid, linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(timestep_embedding(timestep).to(dtype))


class SharedModulation(nn.Module):
    """Timestep embedding ``[B, E]`` to the seven modulations all blocks share, ``[B, 7, C5]``."""

    def __init__(self, embedding_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding_width, MODULATIONS * width)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.proj(functional.silu(embedding)).unflatten(1, (MODULATIONS, -1))
