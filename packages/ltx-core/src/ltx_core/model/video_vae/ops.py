"""Moves between space and channels, and the per-channel statistics of the latent. Videos are ``[B, C, T, H, W]``."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError

Stride = tuple[int, int, int]  # along T, H, W


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last when a 5-D tensor lies so in memory, else contiguous."""
    if x.ndim == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def use_channels_last(network: nn.Module) -> nn.Module:
    """Lay the weights of 3-D convolutions channels-last in memory, in place; activations then follow."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def patchify(x: Tensor, patch_size_hw: int, patch_size_t: int = 1) -> Tensor:
    """Space to depth at the pixel end: ``[B, C, T*pt, H*p, W*p] -> [B, C*pt*p*p, T, H, W]``.

    The channel index is ``((c*pt + i)*p + r)*p + q`` with r the offset along W and q along H. A 4-D image has no T.
    """
    if x.ndim == 4:
        return patchify(x.unsqueeze(2), patch_size_hw).squeeze(2)
    p, pt = patch_size_hw, patch_size_t
    if p == pt == 1:
        return x
    b, c, t, h, w = _packed_shape(x, (pt, p, p))
    x = x.reshape(b, c, t, pt, h, p, w, p)
    return x.permute(0, 1, 3, 7, 5, 2, 4, 6).reshape(b, c * pt * p * p, t, h, w)


def unpatchify(x: Tensor, patch_size_hw: int, patch_size_t: int = 1) -> Tensor:
    """The inverse of ``patchify``."""
    if x.ndim == 4:
        return unpatchify(x.unsqueeze(2), patch_size_hw).squeeze(2)
    p, pt = patch_size_hw, patch_size_t
    if p == pt == 1:
        return x
    b, c, t, h, w = x.shape
    c //= pt * p * p
    x = x.reshape(b, c, pt, p, p, t, h, w)
    return x.permute(0, 1, 5, 2, 6, 4, 7, 3).reshape(b, c, t * pt, h * p, w * p)


@cache
def haar_matrix(size: int) -> Tensor:
    """Haar wavelets of ``size`` samples, a power of two, one a row, the mean first: orthonormal ``[size, size]``."""
    matrix = torch.ones(1, 1)
    while (n := len(matrix)) < size:
        coarse, fine = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
        matrix = torch.cat((torch.kron(matrix, coarse), torch.kron(torch.eye(n), fine))) / 2**0.5
    return matrix


def haar_patches(x: Tensor, size: int) -> Tensor:
    """Haar wavelets of patches along H and W: ``[B, C, T, H*p, W*p] -> [B, C*p*p, T, H, W]``.

    The channel index is ``(c*p + r)*p + q`` with r the wavelet along W and q along H.
    """
    matrix = haar_matrix(size).to(x)
    patches = patchify(x, size).unflatten(1, (-1, size, size))
    return torch.einsum("sr,uq,bcrqthw->bcsuthw", matrix, matrix, patches).flatten(1, 3)


def from_haar_patches(x: Tensor, size: int) -> Tensor:
    """The inverse of ``haar_patches``."""
    matrix = haar_matrix(size).to(x)
    wavelets = x.unflatten(1, (-1, size, size))
    return unpatchify(torch.einsum("sr,uq,bcsuthw->bcrqthw", matrix, matrix, wavelets).flatten(1, 3), size)


def space_to_depth(x: Tensor, stride: Stride) -> Tensor:
    """``[B, C, T*s1, H*s2, W*s3] -> [B, C*s1*s2*s3, T, H, W]``; channel index ``((c*s1 + i)*s2 + j)*s3 + k``."""
    s1, s2, s3 = stride
    b, c, t, h, w = _packed_shape(x, stride)
    if memory_format(x) is torch.channels_last_3d:
        x = x.permute(0, 2, 3, 4, 1).reshape(b, t, s1, h, s2, w, s3, c).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return x.reshape(b, t, h, w, c * s1 * s2 * s3).permute(0, 4, 1, 2, 3)
    x = x.reshape(b, c, t, s1, h, s2, w, s3)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * s1 * s2 * s3, t, h, w)


def depth_to_space(x: Tensor, stride: Stride) -> Tensor:
    """The inverse of ``space_to_depth``."""
    s1, s2, s3 = stride
    b, c, t, h, w = x.shape
    c //= s1 * s2 * s3
    if memory_format(x) is torch.channels_last_3d:
        x = x.permute(0, 2, 3, 4, 1).reshape(b, t, h, w, c, s1, s2, s3).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(b, t * s1, h * s2, w * s3, c).permute(0, 4, 1, 2, 3)
    x = x.reshape(b, c, s1, s2, s3, t, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c, t * s1, h * s2, w * s3)


def channel_group_mean(x: Tensor, channels: int) -> Tensor:
    """Average each run of consecutive channels so that ``channels`` remain."""
    return x.unflatten(1, (channels, x.shape[1] // channels)).mean(dim=2)


def _packed_shape(x: Tensor, stride: Stride) -> tuple[int, int, int, int, int]:
    """The shape after space to depth. Raises ``ConfigError`` where a side does not divide."""
    b, c, *sides = x.shape
    for name, side, step in zip(("frames", "height", "width"), sides, stride, strict=True):
        if side % step:
            raise ConfigError(f"{name} is {side} at a space-to-depth step, expected a multiple of {step}")
    t, h, w = (side // step for side, step in zip(sides, stride, strict=True))
    return b, c, t, h, w


class PerChannelStatistics(nn.Module):
    """Mean and spread of each latent channel, ``[C]`` each; they are cast to the latent's dtype before use.

    Tensors: ``mean-of-means``, ``std-of-means``; LTX-Video files carry three more, which are kept but not used.
    """

    def __init__(self, channels: int, with_unused: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean-of-means", torch.zeros(channels))
        self.register_buffer("std-of-means", torch.ones(channels))
        if with_unused:
            for name in ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means"):
                self.register_buffer(name, torch.zeros(channels))

    def statistic(self, name: str, like: Tensor) -> Tensor:
        """One of them as it broadcasts against ``[B, C, ...]``."""
        return self.get_buffer(name).to(like).view(1, -1, *[1] * (like.ndim - 2))

    def normalize(self, x: Tensor) -> Tensor:
        """Raw latent ``[B, C, ...]`` to the scale the transformer works in."""
        return (x - self.statistic("mean-of-means", x)) / self.statistic("std-of-means", x)

    def un_normalize(self, x: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        return x * self.statistic("std-of-means", x) + self.statistic("mean-of-means", x)
