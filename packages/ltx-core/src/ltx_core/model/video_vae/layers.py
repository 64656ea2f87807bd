"""Convolutions, norms and the timestep embedding of the video VAE.

Tensors: ``<conv>.conv.{weight,bias}``; ``<norm>.{weight,bias}`` for group norm, ``<norm>.norm.{weight,bias}`` for layer
norm, none for pixel norm; ``<embedder>.timestep_embedder.linear_{1,2}.{weight,bias}``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae.config import NormLayer, PaddingMode
from ltx_core.model.video_vae.conv_cache import KERNEL, ConvCache
from ltx_core.model.video_vae.ops import Stride
from ltx_core.utils import SINUSOID_WIDTH, timestep_embedding

PIXEL_NORM_EPS = 1e-8
NORM_EPS = 1e-6
NORM_GROUPS = 32
SMALL_CLIP = 20480  # batch x channels x frames x rows up to which torch's own 3-D convolution, slower by far, is taken


class CausalConv3d(nn.Module):
    """3x3x3 convolution ``[B, C, T, H, W] -> [B, C', T', H', W']``.

    Time is padded with copies of edge frames: two before in a causal clip, one on each side otherwise. Space is padded
    by one cell in ``padding_mode``. With a stride, ``T' = (T - 1) // stride + 1``, and the same along H and W.
    """

    def __init__(
        self, in_channels: int, out_channels: int, padding_mode: PaddingMode = "zeros", stride: Stride = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, KERNEL, stride, (0, 1, 1), padding_mode=padding_mode)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        if self.conv.padding_mode == "reflect" and min(x.shape[3:]) < 2:
            raise ConfigError(f"reflect padding of {x.shape[3]} x {x.shape[4]} cells, expected at least 2 x 2")
        x = cache.conv_window(self, x, self.conv.stride[0])
        if x.shape[2]:
            return self.conv(x) if _torch_chooses_well(x) else self._convolve(x)
        height, width = ((side - 1) // step + 1 for side, step in zip(x.shape[3:], self.conv.stride[1:], strict=True))
        return x.new_empty(x.shape[0], self.conv.out_channels, 0, height, width)

    def _convolve(self, x: Tensor) -> Tensor:
        """``self.conv(x)`` by oneDNN."""
        conv, padding = self.conv, (0, 1, 1)
        if conv.padding_mode != "zeros":
            x, padding = functional.pad(x, (1, 1, 1, 1, 0, 0), conv.padding_mode), (0, 0, 0)
        return torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups)


def _torch_chooses_well(x: Tensor) -> bool:
    """Whether ``conv3d`` takes a fast kernel by itself: for one small clip in float32 on the CPU it does not."""
    small = x.shape[0] == 1 and x.shape[:4].numel() <= SMALL_CLIP
    affected = small and x.device.type == "cpu" and x.dtype == torch.float32
    known = affected and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return not (known and torch.backends.mkldnn.is_available())


def pixel_norm(x: Tensor, dim: int = 1, eps: float = PIXEL_NORM_EPS) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` with the mean over ``dim``."""
    return x * torch.rsqrt(x.square().mean(dim=dim, keepdim=True) + eps)


class PixelNorm(nn.Module):
    """Scale the channels at each location to unit root mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(x)


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels at each location."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def make_norm(kind: NormLayer, channels: int) -> nn.Module:
    """The norm a config's ``norm_layer`` names. Raises ``ConfigError`` when the channels do not fill its groups."""
    if kind == "pixel_norm":
        return PixelNorm()
    if channels % NORM_GROUPS:
        raise ConfigError(f"group_norm over {channels} channels, expected a multiple of {NORM_GROUPS}")
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor nobody else needs: in place, unless gradients are recorded."""
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * (1 + scale) + shift`` with ``[B, C]`` scale and shift."""
    return torch.addcmul(shift[:, :, None, None, None], x, 1 + scale[:, :, None, None, None])


class TimestepEmbedder(nn.Module):
    """Scaled timestep ``[B]`` to ``[B, width]``: sinusoid, linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = {"linear_1": nn.Linear(SINUSOID_WIDTH, width), "linear_2": nn.Linear(width, width)}
        self.timestep_embedder = nn.ModuleDict(layers)

    def forward(self, timestep: Tensor) -> Tensor:
        first, second = self.timestep_embedder["linear_1"], self.timestep_embedder["linear_2"]
        embedding = timestep_embedding(timestep).to(timestep.dtype)
        return second(functional.silu(first(embedding)))
