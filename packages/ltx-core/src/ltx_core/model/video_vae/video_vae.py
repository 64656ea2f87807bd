"""The convolutional video VAE: pixels ``[B, 3, F, H, W]`` to latents ``[B, C, f, h, w]`` and back.

The first latent frame stands for one pixel frame, every later one for 8; a latent cell covers 32 x 32 pixels::

    encode   patchify -> conv_in -> down_blocks -> conv_norm_out -> SiLU -> conv_out -> mean -> normalize
    decode   un_normalize -> conv_in -> up_blocks -> conv_norm_out -> SiLU -> conv_out -> unpatchify

With a `haar` stem wavelets of a patch take the place of its pixels.

Tensors of both halves: ``conv_in.conv.*``, ``[conv_norm_out.*]``, ``conv_out.conv.*``, ``per_channel_statistics.*``; of
an encoder ``down_blocks.{i}.*``; of a decoder ``up_blocks.{i}.*``, and with timestep conditioning
``timestep_scale_multiplier ()``, ``last_time_embedder.*``, ``last_scale_shift_table (2, C)``. ``blocks`` has the rest.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae.blocks import (
    AttentionBlock,
    BlockStyle,
    DepthToSpaceUpsample,
    ResnetBlock,
    ResnetStack,
    SpaceToDepthDownsample,
)
from ltx_core.model.video_vae.config import BlockConfig, VideoVaeConfig
from ltx_core.model.video_vae.conv_cache import KERNEL, ConvCache, NoiseSource, Stage, stream
from ltx_core.model.video_vae.layers import CausalConv3d, TimestepEmbedder, make_norm, modulate, silu
from ltx_core.model.video_vae.ops import PerChannelStatistics, from_haar_patches, haar_patches, patchify, unpatchify

DEFAULT_CHUNK = 2  # latent frames that a streamed decode moves at once
MAX_GROWTH = 4  # frames that a stage of a streamed decode is given at once, over latent frames
HEAD_GROWTH = 2  # the same for the frames that leave it, whose many channels take the most memory


@dataclass(frozen=True)
class LatentDistribution:
    """An encoder's distribution over a latent, before normalisation."""

    mean: Tensor  # [B, C, f, h, w]
    logvar: Tensor | None  # [B, C or 1, f, h, w]; None when the encoder has no variance

    def sample(self, noise: Tensor | torch.Generator | None = None) -> Tensor:
        """``mean + exp(logvar / 2) * noise``, the log-variance held to [-30, 20]; the mean where there is none."""
        if self.logvar is None:
            return self.mean
        if not isinstance(noise, Tensor):
            device = self.mean.device if noise is None else noise.device
            noise = torch.randn(self.mean.shape, generator=noise, dtype=self.mean.dtype, device=device)
        return self.mean + torch.exp(0.5 * self.logvar.clamp(-30.0, 20.0)) * noise.to(self.mean)


class VaeHalf(nn.Module):
    """One half of a VAE, which may run in pieces of time."""

    @property
    def can_stream(self) -> bool:
        """Whether it can: no norm spans the frames."""
        return not any(isinstance(module, nn.GroupNorm) for module in self.modules())

    def check_streamable(self) -> None:
        """Refuse a network whose output at one frame depends on all frames, which no stream can give."""
        for name, module in self.named_modules():
            if isinstance(module, nn.GroupNorm):
                raise ConfigError(f"{name} is a group norm over all frames, expected pixel_norm to stream a video VAE")


class VideoEncoder(VaeHalf):
    """Pixels ``[B, 3, F, H, W]`` in [-1, 1] to normalised latents ``[B, C, f, h, w]``; causal in time.

    ``config`` describes the VAE; `VideoVaeConfig.from_metadata` reads it from a checkpoint.
    """

    def __init__(self, config: VideoVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.scale_factors = config.encoder_scale_factors
        style = BlockStyle(config.norm_layer, config.encoder_padding, config.family)
        width = config.encoder_base_channels
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels, config.family == "ltxv")
        self.conv_in = CausalConv3d(config.in_channels * config.patch_size**2, width, style.padding)
        self.down_blocks = nn.ModuleList()
        for block in config.encoder_blocks:
            module, width = make_encoder_block(block, width, style)
            self.down_blocks.append(module)
        self.conv_norm_out = make_norm(config.norm_layer, width)
        log_variances = {"uniform": 1, "constant": 1, "per_channel": config.latent_channels, "none": 0}
        out_channels = config.latent_channels + log_variances[config.latent_log_var]
        self.conv_out = CausalConv3d(width, out_channels, style.padding)

    def forward(self, video: Tensor) -> Tensor:
        """The normalised mean. Surplus frames beyond ``1 + k * time`` are cut from the end, with a warning."""
        return self.per_channel_statistics.normalize(self.moments(video).mean)

    def moments(self, video: Tensor) -> LatentDistribution:
        """Mean and log-variance before normalisation, as training needs them."""
        surplus = (video.shape[2] - 1) % self.scale_factors.time
        if surplus:
            message = f"video has {video.shape[2]} frames; the last {surplus} do not fill a latent frame and are cut"
            warnings.warn(message, stacklevel=2)
            video = video[:, :, : video.shape[2] - surplus]
        x, cache = self._patches(video), ConvCache(causal=True)
        for run in self._parts():
            x = run(x, cache)
        return self._distribution(x)

    def sample(self, video: Tensor, noise: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """A normalised sample of the posterior; ``noise(shape)`` gives standard normal numbers."""
        moments = self.moments(video)
        return self.per_channel_statistics.normalize(moments.sample(noise(tuple(moments.mean.shape))))

    @torch.no_grad()
    def encode_streaming(self, chunks: Iterable[Tensor]) -> Tensor:
        """``forward`` of a clip that arrives as chunks ``[B, 3, f, H, W]`` of any length, in memory of one chunk.

        Surplus frames at the end are dropped. Raises ``ConfigError`` for networks with a norm over time.
        """
        self.check_streamable()
        stages = [Stage(run, sys.maxsize) for run in self._parts()]
        pieces = ((self._patches(chunk), False) for chunk in chunks)
        latents = [self._distribution(x).mean for x in stream(stages, pieces, ConvCache(causal=True))]
        if not latents:
            raise ConfigError("video has 0 frames, expected at least 1")
        return self.per_channel_statistics.normalize(torch.cat(latents, dim=2))

    def _patches(self, video: Tensor) -> Tensor:
        """``[B, 3, F, H, W] -> [B, 3*p*p, F, H/p, W/p]`` on the weights' device and in their dtype."""
        weight = self.conv_in.conv.weight
        pack = haar_patches if self.config.stem == "haar" else patchify
        return pack(video.to(device=weight.device, dtype=weight.dtype), self.config.patch_size)

    def _parts(self) -> list[Callable[[Tensor, ConvCache], Tensor]]:
        return [self.conv_in, *self.down_blocks, self._head]

    def _head(self, x: Tensor, cache: ConvCache) -> Tensor:
        return self.conv_out(silu(self.conv_norm_out(x)), cache)

    def _distribution(self, x: Tensor) -> LatentDistribution:
        mean, rest = x.split([self.config.latent_channels, x.shape[1] - self.config.latent_channels], dim=1)
        value = self.config.latent_log_var_value
        if self.config.latent_log_var == "constant":
            return LatentDistribution(mean, None if value is None else torch.full_like(rest, value))
        return LatentDistribution(mean, rest if rest.shape[1] else None)


def make_encoder_block(block: BlockConfig, width: int, style: BlockStyle) -> tuple[nn.Module, int]:
    """A down block for ``width`` channels, and the channels it gives."""
    doubled = width * block.multiplier
    match block.name.split("_"):
        case ["res", "x"]:
            return ResnetStack(width, block.num_layers, style), width
        case ["res", "x", "y"]:
            return ResnetBlock(width, doubled, style), doubled
        case ["attn"]:
            return AttentionBlock(width), width
        case ["compress", _, "res"]:
            return SpaceToDepthDownsample(width, doubled, block.stride, style), doubled
        case ["compress", _]:
            return CausalConv3d(width, width, style.padding, block.stride), width
        case _:  # compress_all_x_y
            return CausalConv3d(width, doubled, style.padding, block.stride), doubled


@dataclass(frozen=True)
class DecodeConditioning:
    """Inputs of a timestep-conditioned decoder; other decoders ignore the timestep and the noise scale."""

    timestep: float | Tensor | None = None  # one for all or [B]; None: the config's 0.05
    noise_scale: float | None = None  # share of noise mixed into the latent; None: the config's 0.025
    noise: torch.Generator | NoiseSource | None = None  # the latent's noise is drawn first, then blocks in order


class VideoDecoder(VaeHalf):
    """Normalised latents ``[B, C, f, h, w]`` to pixels ``[B, 3, F, H, W]``, about [-1, 1] and not clamped.

    ``config`` describes the VAE; `VideoVaeConfig.from_metadata` reads it from a checkpoint. ``up_blocks.0`` is the last
    entry of its list. Raises ``ConfigError`` for a diffusion decoder's config.
    """

    def __init__(self, config: VideoVaeConfig) -> None:
        super().__init__()
        if config.diffusion_decoder:
            raise ConfigError("this file holds a diffusion decoder, expected a convolutional one")
        self.config = config
        self.scale_factors = config.decoder_scale_factors
        style = BlockStyle(config.norm_layer, config.decoder_padding, config.family, config.timestep_conditioning)
        width = config.decoder_width
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels, config.family == "ltxv")
        self.conv_in = CausalConv3d(config.latent_channels, width, style.padding)
        self.up_blocks = nn.ModuleList()
        for block in reversed(config.decoder_blocks):
            module, width = make_decoder_block(block, width, style)
            self.up_blocks.append(module)
        self.conv_norm_out = make_norm(config.norm_layer, width)
        self.conv_out = CausalConv3d(width, config.out_channels * config.patch_size**2, style.padding)
        if config.timestep_conditioning:
            self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))
            self.last_time_embedder = TimestepEmbedder(2 * width)
            self.last_scale_shift_table = nn.Parameter(torch.randn(2, width) / math.sqrt(width))

    def forward(self, latent: Tensor, conditioning: DecodeConditioning | None = None) -> Tensor:
        """The whole video at once, in the latent's dtype."""
        z, cache = self._start(latent, conditioning or DecodeConditioning())
        x = self.per_channel_statistics.un_normalize(z)
        for run in [self.conv_in, *self.up_blocks, self._head]:
            x = run(x, cache)
        return x.to(latent.dtype)

    @torch.no_grad()
    def decode_streaming(
        self, latent: Tensor, conditioning: DecodeConditioning | None = None, chunk: int = DEFAULT_CHUNK
    ) -> Iterator[Tensor]:
        """``forward`` in pieces ``[B, 3, f, H, W]``, in memory that does not grow with the duration.

        The network moves ``chunk`` latent frames at once; the first frames appear after the look-ahead of its
        convolutions. Raises ``ConfigError`` for networks with a norm over time, and for a chunk below 1.
        """
        self.check_streamable()
        if chunk < 1:
            raise ConfigError(f"chunk is {chunk} latent frames, expected at least 1")
        z, cache = self._start(latent, conditioning or DecodeConditioning())
        if z.shape[2] > chunk:
            cache.reserve(self._kept_sizes(z, cache.causal), z)
        un_normalize, ends = self.per_channel_statistics.un_normalize, range(chunk, z.shape[2] + chunk, chunk)
        pieces = ((un_normalize(z[:, :, end - chunk : end]), end >= z.shape[2]) for end in ends)
        for frames in stream(self._stages(chunk), pieces, cache):
            yield frames.to(latent.dtype)

    def _start(self, latent: Tensor, conditioning: DecodeConditioning) -> tuple[Tensor, ConvCache]:
        """The latent in the weights' dtype, with its share of noise, and a clip that carries the conditioning."""
        weight = self.conv_in.conv.weight
        z = latent.to(device=weight.device, dtype=weight.dtype)
        cache = ConvCache(causal=self.config.causal_decoder, noise=conditioning.noise)
        if self.config.timestep_conditioning:
            scale, timestep = conditioning.noise_scale, conditioning.timestep
            scale = self.config.decode_noise_scale if scale is None else scale
            if scale:
                z = scale * cache.draw(tuple(z.shape), z) + (1 - scale) * z
            timestep = self.config.decode_timestep if timestep is None else timestep
            cache.timestep = torch.as_tensor(timestep).to(z).expand(z.shape[0]) * self.timestep_scale_multiplier
        return z, cache

    def _head(self, x: Tensor, cache: ConvCache) -> Tensor:
        h = self.conv_norm_out(x)
        if cache.timestep is not None:
            timestep = cache.timestep
            embedding = cache.once(self.last_time_embedder, lambda: self.last_time_embedder(timestep))  # [B, 2*C]
            shift, scale = (self.last_scale_shift_table + embedding.unflatten(1, (2, -1))).unbind(dim=1)
            h = modulate(h, scale, shift)
        unpack = from_haar_patches if self.config.stem == "haar" else unpatchify
        return unpack(self.conv_out(silu(h), cache), self.config.patch_size)

    def _stages(self, chunk: int) -> list[Stage]:
        """The network as steps, resnet by resnet; each is given no more than ``chunk`` latent frames become."""
        stages, frames = [Stage(self.conv_in, chunk)], chunk
        for block in self.up_blocks:
            runs = block.parts() if isinstance(block, ResnetStack) else [block]
            stride = block.stride[0] if isinstance(block, DepthToSpaceUpsample) else 1
            stages += [Stage(run, min(frames, MAX_GROWTH * chunk // stride)) for run in runs]
            frames *= stride
        return [*stages, Stage(self._head, min(frames, HEAD_GROWTH * chunk))]

    def _kept_sizes(self, z: Tensor, causal: bool) -> dict[nn.Module, int]:
        """Elements that each convolution and each shortcut keeps of a streamed latent ``[B, C, f, h, w]``."""
        sizes: dict[nn.Module, int] = {}
        frame = z.shape[0] * z.shape[3] * z.shape[4]  # elements of a channel
        for block in (self.conv_in, *self.up_blocks, self.conv_out):
            for module in block.modules():
                if isinstance(module, CausalConv3d):
                    sizes[module] = (KERNEL - 1) * module.conv.in_channels * frame
                elif isinstance(module, ResnetBlock) and not causal:
                    sizes[module] = 2 * module.conv1.conv.in_channels * frame
                elif isinstance(module, DepthToSpaceUpsample) and module.residual and not causal:
                    sizes[module] = module.conv.conv.in_channels * frame
            frame *= math.prod(block.stride[1:]) if isinstance(block, DepthToSpaceUpsample) else 1
        return sizes


def make_decoder_block(block: BlockConfig, width: int, style: BlockStyle) -> tuple[nn.Module, int]:
    """An up block for ``width`` channels, and the channels it gives."""
    if block.name == "res_x":
        return ResnetStack(width, block.num_layers, style, block.inject_noise), width
    if block.name == "attn":
        return AttentionBlock(width), width
    if width % block.multiplier:
        raise ConfigError(f"decoder block divides {width} channels by {block.multiplier}: does not divide")
    narrowed = width // block.multiplier
    if block.name == "res_x_y":
        return ResnetBlock(width, narrowed, style, block.inject_noise), narrowed
    return DepthToSpaceUpsample(width, narrowed, block.stride, style, block.residual), narrowed
