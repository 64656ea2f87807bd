"""The convolutional video VAE in MLX: pixels ``[B, 3, F, H, W]`` to latents ``[B, C, f, h, w]`` and back.

::

    encode   patchify -> conv_in -> down_blocks -> conv_norm_out -> SiLU -> conv_out -> mean -> normalize
    decode   un_normalize -> conv_in -> up_blocks -> conv_norm_out -> SiLU -> conv_out -> unpatchify

Networks take and give torch tensors; inside, activations are ``[B, T, H, W, C]``. Blocks are called
``block(x, cache)``. Tensor names are listed in ``ltx_core.model.video_vae``.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae.config import BlockConfig, Family, NormLayer, PaddingMode, VideoVaeConfig
from ltx_core.model.video_vae.ops import haar_matrix
from ltx_core.model.video_vae.tiling import balanced_tiling, stream_tiles
from ltx_mlx.arrays import channels_first, channels_last, to_mlx, to_torch
from ltx_mlx.conv_cache import KERNEL, ConvCache, Stage, stream
from ltx_mlx.layers import SINUSOID_WIDTH, Conv, group_norm, silu, sinusoid
from ltx_mlx.memory import free_bytes, peak_bytes_of

if TYPE_CHECKING:
    from ltx_core.model.video_vae.video_vae import DecodeConditioning

Stride = tuple[int, int, int]  # along T, H, W
Run = Callable[[mx.array, ConvCache], mx.array]

PIXEL_NORM_EPS = 1e-8
NORM_GROUPS = 32
DEFAULT_CHUNK = 2  # latent frames that a streamed decode moves at once
MAX_GROWTH = 4  # frames that a stage of a streamed decode is given at once, over latent frames
HEAD_GROWTH = 2  # the same for the frames that leave it
STREAMING_FRAMES = 6  # latent frames after which a streamed decode no longer grows
SAFE_CELL_BYTES = 64 * 2**20  # a streamed decode takes less per latent cell of the picture
MEASURED_CELLS = 8  # sides of the picture a decoder is measured on
USABLE_SHARE = 0.8  # of free memory
UNUSED_STATISTICS = ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")  # in LTX-Video files


# Moves between space and channels ---------------------------------------------------------------------------------


def patchify(x: mx.array, size: int) -> mx.array:
    """Space to depth at the pixel end: ``[B, T, H*p, W*p, C] -> [B, T, H, W, C*p*p]``, channel ``(c*p + r)*p + q``
    with r the offset along W and q along H."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, t, h // size, w // size, c * size * size)


def unpatchify(x: mx.array, size: int) -> mx.array:
    """The inverse of ``patchify``."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, c // size**2, size, size)
    return x.transpose(0, 1, 2, 6, 3, 5, 4).reshape(b, t, h * size, w * size, c // size**2)


def haar_patches(x: mx.array, size: int) -> mx.array:
    """Haar wavelets of patches in place of their pixels, in the channels of ``patchify``: r and q count wavelets."""
    packed, matrix = patchify(x, size), mx.array(haar_matrix(size).numpy()).astype(x.dtype)
    return (matrix @ packed.reshape(*packed.shape[:-1], -1, size, size) @ matrix.T).reshape(packed.shape)


def from_haar_patches(x: mx.array, size: int) -> mx.array:
    """The inverse of ``haar_patches``."""
    matrix = mx.array(haar_matrix(size).numpy()).astype(x.dtype)
    return unpatchify((matrix.T @ x.reshape(*x.shape[:-1], -1, size, size) @ matrix).reshape(x.shape), size)


def space_to_depth(x: mx.array, stride: Stride) -> mx.array:
    """``[B, T*s1, H*s2, W*s3, C] -> [B, T, H, W, C*s1*s2*s3]``; channel index ``((c*s1 + i)*s2 + j)*s3 + k``."""
    (s1, s2, s3), (b, t, h, w, c) = stride, x.shape
    for name, side, step in zip(("frames", "height", "width"), (t, h, w), stride, strict=True):
        if side % step:
            raise ConfigError(f"{name} is {side} at a space-to-depth step, expected a multiple of {step}")
    x = x.reshape(b, t // s1, s1, h // s2, s2, w // s3, s3, c)
    return x.transpose(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, t // s1, h // s2, w // s3, c * s1 * s2 * s3)


def depth_to_space(x: mx.array, stride: Stride) -> mx.array:
    """The inverse of ``space_to_depth``."""
    (s1, s2, s3), (b, t, h, w, c) = stride, x.shape
    c //= s1 * s2 * s3
    x = x.reshape(b, t, h, w, c, s1, s2, s3)
    return x.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, t * s1, h * s2, w * s3, c)


# Layers -----------------------------------------------------------------------------------------------------------


class CausalConv3d(nn.Module):
    """3x3x3 convolution; time is padded with copies of edge frames by the clip, space by one cell in ``padding``."""

    def __init__(
        self, in_channels: int, out_channels: int, padding: PaddingMode = "zeros", stride: Stride = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.padding_mode, self.stride = padding, stride
        around = (0, 1, 1) if padding == "zeros" else (0, 0, 0)
        self.conv = Conv(in_channels, out_channels, (KERNEL,) * 3, stride, around)

    def __call__(self, x: mx.array, cache: ConvCache) -> mx.array:
        if self.padding_mode == "reflect" and min(x.shape[2:4]) < 2:
            raise ConfigError(f"reflect padding of {x.shape[2]} x {x.shape[3]} cells, expected at least 2 x 2")
        x = cache.conv_window(self, x, self.stride[0])
        if x.shape[1]:
            return self.conv(pad_space(x, self.padding_mode))
        height, width = ((side - 1) // step + 1 for side, step in zip(x.shape[2:4], self.stride[1:], strict=True))
        return mx.zeros((x.shape[0], 0, height, width, self.conv.out_channels), x.dtype)


def pad_space(x: mx.array, mode: PaddingMode) -> mx.array:
    """One cell around each frame of ``[B, T, H, W, C]``; zeros are left to the convolution."""
    if mode == "zeros":
        return x
    before, after = {"reflect": (1, -2), "replicate": (0, -1), "circular": (-1, 0)}[mode]
    for axis in (2, 3):
        first, last = (mx.take(x, mx.array([index % x.shape[axis]]), axis) for index in (before, after))
        x = mx.concatenate([first, x, last], axis)
    return x


class PixelNorm(nn.Module):
    """Scale the channels at each location to unit root mean square."""

    def __call__(self, x: mx.array) -> mx.array:
        return pixel_norm(x)


def pixel_norm(x: mx.array, axis: int = -1, eps: float = PIXEL_NORM_EPS) -> mx.array:
    """``x / sqrt(mean(x^2) + eps)`` with the mean over ``axis``."""
    return x * mx.rsqrt(mx.mean(mx.square(x), axis, keepdims=True) + eps)


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels at each location."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(x)


def make_norm(kind: NormLayer, channels: int) -> nn.Module:
    """The norm a config's ``norm_layer`` names."""
    if kind == "pixel_norm":
        return PixelNorm()
    if channels % NORM_GROUPS:
        raise ConfigError(f"group_norm over {channels} channels, expected a multiple of {NORM_GROUPS}")
    return group_norm(channels)


class TimestepEmbedder(nn.Module):
    """Scaled timestep ``[B]`` to ``[B, width]``: sinusoid, linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = {"linear_1": nn.Linear(SINUSOID_WIDTH, width), "linear_2": nn.Linear(width, width)}

    def __call__(self, timestep: mx.array) -> mx.array:
        first, second = self.timestep_embedder["linear_1"], self.timestep_embedder["linear_2"]
        return second(silu(first(sinusoid(timestep).astype(timestep.dtype))))


def modulate(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    """``x * (1 + scale) + shift`` with ``[B, C]`` scale and shift."""
    return x * (1 + scale[:, None, None, None]) + shift[:, None, None, None]


class PerChannelStatistics(nn.Module):
    """Mean and spread of each latent channel, ``[C]`` each, for tensors ``[B, C, ...]`` at the seam."""

    def __init__(self, channels: int, with_unused: bool = False) -> None:
        super().__init__()
        for name in ("mean-of-means", "std-of-means", *(UNUSED_STATISTICS if with_unused else ())):
            self[name] = mx.ones((channels,)) if name == "std-of-means" else mx.zeros((channels,))

    def normalize(self, x: mx.array) -> mx.array:
        """Raw latent ``[..., C]`` to the scale the transformer works in."""
        return (x - self["mean-of-means"].astype(x.dtype)) / self["std-of-means"].astype(x.dtype)

    def un_normalize(self, x: mx.array) -> mx.array:
        """The inverse of ``normalize``."""
        return x * self["std-of-means"].astype(x.dtype) + self["mean-of-means"].astype(x.dtype)


# Blocks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockStyle:
    """Settings that all blocks of one half of a VAE share."""

    norm_layer: NormLayer
    padding: PaddingMode
    family: Family = "ltx2"
    timestep_conditioning: bool = False


class ResnetBlock(nn.Module):
    """Two convolutions and a shortcut, C -> C'; optionally modulated by a timestep and roughened by noise."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        inject_noise: bool = False,
        timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(style.norm_layer, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, style.padding)
        self.norm2 = make_norm(style.norm_layer, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, style.padding)
        if in_channels != out_channels:  # LTX-Video normalises each location on its own, LTX-2 all of them together
            self.norm3 = ChannelLayerNorm(in_channels) if style.family == "ltxv" else group_norm(in_channels, 1)
            self.conv_shortcut = Conv(in_channels, out_channels, (1, 1, 1))
        if inject_noise:
            self.per_channel_scale1 = mx.zeros((out_channels, 1, 1))
            self.per_channel_scale2 = mx.zeros((out_channels, 1, 1))
        if timestep_conditioning:
            self.scale_shift_table = mx.zeros((4, in_channels))

    def __call__(self, x: mx.array, cache: ConvCache, embedding: mx.array | None = None) -> mx.array:
        """``embedding`` is the stack's timestep embedding ``[B, 4*C]``."""
        rows: Sequence[mx.array | None] = (None,) * 4
        if embedding is not None:
            rows = mx.unstack(self.scale_shift_table + embedding.reshape(embedding.shape[0], 4, -1), axis=1)
        shift1, scale1, shift2, scale2 = rows
        h = self.conv1(silu(_modulate(self.norm1(x), scale1, shift1)), cache)
        h = self._add_noise(h, cache, "per_channel_scale1")
        h = self.conv2(silu(_modulate(self.norm2(h), scale2, shift2)), cache)
        h = self._add_noise(h, cache, "per_channel_scale2")
        x = cache.catch_up(self, x, h.shape[1])
        if "conv_shortcut" in self and x.shape[1]:
            x = self.conv_shortcut(self.norm3(x))
        return h + x if h.shape[1] else h

    def _add_noise(self, h: mx.array, cache: ConvCache, name: str) -> mx.array:
        if name not in self:
            return h
        sides = (h.shape[2], h.shape[3])
        noise = cache.once((id(self), name), lambda: to_mlx(cache.draw(sides, h.dtype), h.dtype))  # for all frames
        return h + noise[..., None] * self[name].reshape(-1).astype(h.dtype)


def _modulate(h: mx.array, scale: mx.array | None, shift: mx.array | None) -> mx.array:
    return h if scale is None or shift is None else modulate(h, scale, shift)


class ResnetStack(nn.Module):
    """``res_x``: n resnets of equal width that share one timestep embedding."""

    def __init__(self, channels: int, num_layers: int, style: BlockStyle, inject_noise: bool = False) -> None:
        super().__init__()
        if style.timestep_conditioning:
            self.time_embedder = TimestepEmbedder(4 * channels)
        self.res_blocks = [
            ResnetBlock(channels, channels, style, inject_noise, style.timestep_conditioning) for _ in range(num_layers)
        ]

    def __call__(self, x: mx.array, cache: ConvCache) -> mx.array:
        for run in self.parts():
            x = run(x, cache)
        return x

    def parts(self) -> list[Run]:
        """The resnets, one by one."""

        def part(block: ResnetBlock) -> Run:
            return lambda x, cache: block(x, cache, self.embedding(cache))

        return [part(block) for block in self.res_blocks]

    def embedding(self, cache: ConvCache) -> mx.array | None:
        """``[B, 4*C]``, or None without timestep conditioning. Raises ``ConfigError`` when the timestep is missing."""
        if "time_embedder" not in self:
            return None
        if (timestep := cache.timestep) is None:
            raise ConfigError("timestep is None, expected one for a timestep-conditioned decoder")
        return cache.once(id(self), lambda: self.time_embedder(timestep))


class ChannelRmsNorm(nn.Module):
    """``x / |x| * sqrt(C) * gamma`` over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = mx.ones((channels, 1, 1))

    def __call__(self, x: mx.array) -> mx.array:
        length = mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        return x / length * (math.sqrt(x.shape[-1]) * self.gamma.reshape(-1))


class AttentionBlock(nn.Module):
    """``attn``: every location of a frame attends to every other, one head, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelRmsNorm(channels)
        self.to_qkv = Conv(channels, 3 * channels, (1, 1))
        self.proj = Conv(channels, channels, (1, 1))

    def __call__(self, x: mx.array, cache: ConvCache) -> mx.array:
        if not x.shape[1]:
            return x
        b, t, h, w, c = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b * t, 1, h * w, 3 * c)
        q, k, v = mx.split(qkv, 3, axis=-1)
        attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=c**-0.5)
        return x + self.proj(attended.reshape(x.shape))


class SpaceToDepthDownsample(nn.Module):
    """``compress_*_res``: C -> C' at 1/stride the size, plus the mean over channel groups as a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, style: BlockStyle) -> None:
        super().__init__()
        cells = math.prod(stride)
        if out_channels % cells or (in_channels * cells) % out_channels:
            raise ConfigError(f"space to depth {in_channels} -> {out_channels} channels by {cells}: does not divide")
        self.stride, self.out_channels = stride, out_channels
        self.conv = CausalConv3d(in_channels, out_channels // cells, style.padding)

    def __call__(self, x: mx.array, cache: ConvCache) -> mx.array:
        if self.stride[0] == 2:
            x = cache.pairs(self, x)
        h = space_to_depth(self.conv(x, cache), self.stride)
        groups = space_to_depth(x, self.stride)
        shared = groups.shape[-1] // self.out_channels
        return h + mx.mean(groups.reshape(*groups.shape[:4], self.out_channels, shared), axis=-1)


class DepthToSpaceUpsample(nn.Module):
    """``compress_*`` of a decoder: C -> C' at ``stride`` times the size; optionally plus the tiled input."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: Stride, style: BlockStyle, residual: bool = False
    ) -> None:
        super().__init__()
        cells = math.prod(stride)
        if residual and (in_channels % cells or (out_channels * cells) % in_channels):
            raise ConfigError(f"residual depth to space {in_channels} -> {out_channels} by {cells}: does not divide")
        self.stride, self.residual = stride, residual
        self.conv = CausalConv3d(in_channels, cells * out_channels, style.padding)

    def __call__(self, x: mx.array, cache: ConvCache) -> mx.array:
        y = self.conv(x, cache)
        frames = y.shape[1]
        y = depth_to_space(y, self.stride)
        if self.residual:
            shortcut = depth_to_space(cache.catch_up(self, x, frames), self.stride)  # [..., C/P]
            y = y + mx.tile(shortcut, (1, 1, 1, 1, y.shape[-1] // shortcut.shape[-1]))
        return y[:, 1:] if self.stride[0] == 2 and cache.begins(self, y) else y


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


def require_streamable(network: nn.Module) -> None:
    """Refuse a network whose output at one frame depends on all frames, which no stream can give."""
    for name, module in network.named_modules():
        if isinstance(module, nn.GroupNorm):
            raise ConfigError(f"{name} is a group norm over all frames, expected pixel_norm to stream a video VAE")


def can_stream(network: nn.Module) -> bool:
    return not any(isinstance(module, nn.GroupNorm) for module in network.modules())


# Both halves ------------------------------------------------------------------------------------------------------


class VideoEncoder(nn.Module):
    """Pixels ``[B, 3, F, H, W]`` in [-1, 1] to normalised latents ``[B, C, f, h, w]``; causal in time."""

    def __init__(self, config: VideoVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.scale_factors = config.encoder_scale_factors
        style = BlockStyle(config.norm_layer, config.encoder_padding, config.family)
        width = config.encoder_base_channels
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels, config.family == "ltxv")
        self.conv_in = CausalConv3d(config.in_channels * config.patch_size**2, width, style.padding)
        self.down_blocks = []
        for block in config.encoder_blocks:
            module, width = make_encoder_block(block, width, style)
            self.down_blocks.append(module)
        self.conv_norm_out = make_norm(config.norm_layer, width)
        log_variances = {"uniform": 1, "constant": 1, "per_channel": config.latent_channels, "none": 0}
        out_channels = config.latent_channels + log_variances[config.latent_log_var]
        self.conv_out = CausalConv3d(width, out_channels, style.padding)

    def __call__(self, video: Tensor) -> Tensor:
        """The normalised mean. Surplus frames beyond ``1 + k * time`` are cut from the end, with a warning."""
        mean, _ = self.moments(video)
        return channels_first(self.per_channel_statistics.normalize(mean), video)

    def moments(self, video: Tensor) -> tuple[mx.array, mx.array | None]:
        """Mean ``[B, f, h, w, C]`` and log-variance before normalisation; None where the encoder has none."""
        surplus = (video.shape[2] - 1) % self.scale_factors.time
        if surplus:
            message = f"video has {video.shape[2]} frames; the last {surplus} do not fill a latent frame and are cut"
            warnings.warn(message, stacklevel=3)
            video = video[:, :, : video.shape[2] - surplus]
        stages = [Stage(run, sys.maxsize) for run in self._parts()]
        (x,) = stream(stages, [(self._patches(video), True)], ConvCache(causal=True))
        return self._distribution(x)

    def sample(self, video: Tensor, noise: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """A normalised sample of the posterior; ``noise(shape)`` gives standard normal numbers ``[B, C, f, h, w]``."""
        mean, log_variance = self.moments(video)
        drawn = noise((mean.shape[0], mean.shape[-1], *mean.shape[1:-1]))
        if log_variance is not None:
            spread = mx.exp(0.5 * mx.clip(log_variance, -30.0, 20.0))
            mean = mean + spread * channels_last(drawn, mean.dtype)
        return channels_first(self.per_channel_statistics.normalize(mean), video)

    def encode_streaming(self, chunks: Iterable[Tensor]) -> Tensor:
        """``__call__`` of a clip that arrives as chunks ``[B, 3, f, H, W]`` of any length, in memory of one chunk.

        Surplus frames at the end are dropped. Raises ``ConfigError`` for networks with a norm over time.
        """
        require_streamable(self)
        stages = [Stage(run, sys.maxsize) for run in self._parts()]
        pieces = ((self._patches(chunk), False) for chunk in chunks)
        latents = [self._distribution(x)[0] for x in stream(stages, pieces, ConvCache(causal=True))]
        if not latents:
            raise ConfigError("video has 0 frames, expected at least 1")
        return channels_first(self.per_channel_statistics.normalize(mx.concatenate(latents, axis=1)))

    @property
    def can_stream(self) -> bool:
        """Whether ``encode_streaming`` can serve this network: no norm spans the frames."""
        return can_stream(self)

    def _patches(self, video: Tensor) -> mx.array:
        pack = haar_patches if self.config.stem == "haar" else patchify
        return pack(channels_last(video, self.conv_in.conv.weight.dtype), self.config.patch_size)

    def _parts(self) -> list[Run]:
        return [self.conv_in, *self.down_blocks, self._head]

    def _head(self, x: mx.array, cache: ConvCache) -> mx.array:
        return self.conv_out(silu(self.conv_norm_out(x)), cache)

    def _distribution(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        mean, rest = mx.split(x, [self.config.latent_channels], axis=-1)
        value = self.config.latent_log_var_value
        if self.config.latent_log_var == "constant":
            return mean, None if value is None else mx.full(rest.shape, value, rest.dtype)
        return mean, rest if rest.shape[-1] else None


class VideoDecoder(nn.Module):
    """Normalised latents ``[B, C, f, h, w]`` to pixels ``[B, 3, F, H, W]``, about [-1, 1] and not clamped."""

    def __init__(self, config: VideoVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.scale_factors = config.decoder_scale_factors
        style = BlockStyle(config.norm_layer, config.decoder_padding, config.family, config.timestep_conditioning)
        width = config.decoder_width
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels, config.family == "ltxv")
        self.conv_in = CausalConv3d(config.latent_channels, width, style.padding)
        self.up_blocks: list[Any] = []
        for block in reversed(config.decoder_blocks):
            module, width = make_decoder_block(block, width, style)
            self.up_blocks.append(module)
        self.conv_norm_out = make_norm(config.norm_layer, width)
        self.conv_out = CausalConv3d(width, config.out_channels * config.patch_size**2, style.padding)
        if config.timestep_conditioning:
            self.timestep_scale_multiplier = mx.array(1000.0)
            self.last_time_embedder = TimestepEmbedder(2 * width)
            self.last_scale_shift_table = mx.zeros((2, width))

    def __call__(self, latent: Tensor, conditioning: DecodeConditioning | None = None) -> Tensor:
        """The whole video at once, in the latent's dtype."""
        z, cache = self._start(latent, conditioning)
        stages = [Stage(run, sys.maxsize) for run in (self.conv_in, *self.up_blocks, self._head)]
        (video,) = stream(stages, [(self.per_channel_statistics.un_normalize(z), True)], cache)
        return channels_first(video, latent)

    def decode_streaming(
        self, latent: Tensor, conditioning: DecodeConditioning | None = None, chunk: int = DEFAULT_CHUNK
    ) -> Iterator[Tensor]:
        """``__call__`` in pieces ``[B, 3, f, H, W]``, in memory that does not grow with the duration.

        Raises ``ConfigError`` for networks with a norm over time, and for a chunk below 1.
        """
        for frames in self._stream(latent, conditioning, chunk):
            yield channels_first(frames, latent)

    def decode_frames(
        self, latent: Tensor, conditioning: DecodeConditioning | None = None, most: int | None = None
    ) -> Iterator[Tensor]:
        """Chunks ``[f, H, W, 3]`` in [0, 1] of item 0, streamed in time.

        A picture of more than ``most`` latent cells, or too large for free memory, is cut into tiles, each streamed.
        Where a norm spans the frames the clip is one chunk.
        """
        latent = latent[:1]
        cells = latent.shape[3] * latent.shape[4]
        mx.clear_cache()  # buffers of the sampling before, of other sizes
        if not self.can_stream:
            yield ((self(latent, conditioning)[0] + 1) / 2).clamp_(0, 1).permute(1, 2, 3, 0)
        elif (at_once := min(cells // self.decode_parts(latent, free_bytes()), most or cells)) < cells:
            tiles = balanced_tiling(latent.shape[3], latent.shape[4], at_once)
            for chunk in stream_tiles(self, latent, tiles, conditioning):  # type: ignore[arg-type]  # called alike
                yield ((chunk[0] + 1) / 2).clamp_(0, 1).permute(1, 2, 3, 0)
        else:
            for frames in self._stream(latent, conditioning, DEFAULT_CHUNK):
                yield to_torch(mx.clip((frames[0] + 1) / 2, 0, 1), latent)

    def decode_parts(self, latent: Tensor, free: int) -> int:
        """Into how many parts a picture must be cut for its streamed decode to fit ``free`` bytes; 1: none.

        Where that is in doubt a small picture is decoded: memory grows with the area and not with time.
        """
        cells = latent.shape[3] * latent.shape[4]
        if cells * SAFE_CELL_BYTES < free:
            return 1
        sides = (min(STREAMING_FRAMES, latent.shape[2]), MEASURED_CELLS, MEASURED_CELLS)
        probe = torch.zeros(1, self.config.latent_channels, *sides)
        per_cell = peak_bytes_of(lambda: list(self.decode_streaming(probe))) / MEASURED_CELLS**2
        return math.ceil(cells * per_cell / (USABLE_SHARE * free))

    @property
    def can_stream(self) -> bool:
        """Whether ``decode_streaming`` can serve this network: no norm spans the frames."""
        return can_stream(self)

    def _stream(self, latent: Tensor, conditioning: DecodeConditioning | None, chunk: int) -> Iterator[mx.array]:
        require_streamable(self)
        if chunk < 1:
            raise ConfigError(f"chunk is {chunk} latent frames, expected at least 1")
        z, cache = self._start(latent, conditioning)
        ends = range(chunk, z.shape[1] + chunk, chunk)
        un_normalize = self.per_channel_statistics.un_normalize
        pieces = ((un_normalize(z[:, end - chunk : end]), end >= z.shape[1]) for end in ends)
        yield from stream(self._stages(chunk), pieces, cache)

    def _start(self, latent: Tensor, conditioning: DecodeConditioning | None) -> tuple[mx.array, ConvCache]:
        """The latent in the weights' dtype, with its share of noise, and a clip that carries the conditioning."""
        dtype, noise = self.conv_in.conv.weight.dtype, conditioning.noise if conditioning else None
        z, cache = channels_last(latent, dtype), ConvCache(causal=self.config.causal_decoder, noise=noise)
        if self.config.timestep_conditioning:
            scale, timestep = (conditioning.noise_scale, conditioning.timestep) if conditioning else (None, None)
            scale = self.config.decode_noise_scale if scale is None else scale
            if scale:
                z = scale * channels_last(cache.draw(tuple(latent.shape), dtype), dtype) + (1 - scale) * z
            timestep = torch.as_tensor(self.config.decode_timestep if timestep is None else timestep).float()
            given = to_mlx(timestep.expand(z.shape[0]), dtype)
            cache.timestep = given * self.timestep_scale_multiplier.astype(dtype)
        return z, cache

    def _head(self, x: mx.array, cache: ConvCache) -> mx.array:
        h = self.conv_norm_out(x)
        if (timestep := cache.timestep) is not None:
            embedding = cache.once(id(self), lambda: self.last_time_embedder(timestep))  # [B, 2*C]
            rows = self.last_scale_shift_table + embedding.reshape(embedding.shape[0], 2, -1)
            h = modulate(h, rows[:, 1], rows[:, 0])
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
