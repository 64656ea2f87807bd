"""The blocks of the diffusion decoder. Activations are channels-last, ``[B, T, H, W, C]``.

Tensors, with ``<linear>`` short for ``{weight,bias}``::

    Block            norm1.weight (C), attn.qkv.<linear> (3C, C), attn.{q_norm,k_norm}.weight (head_dim),
                     attn.proj.<linear> (C, C), norm2.weight (C), mlp.{w_gate,w_up}.weight (4C, C), mlp.w_down.weight
    DenoisingBlock   a Block's, context_proj.<linear> (C, C'), scale_shift_table (7, C)
    Upsample         proj.<linear> (cells * C / reduction, C)

A whole clip has few tensors of its own size: keys and values of the attention at hand, the features, the context. All
else is made for a slab of frames at a time, and the result is added over the features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx_core.model.video_vae.diffusion.attention import BOX, neighbourhood_attention, rotate
from ltx_core.model.video_vae.diffusion.config import MODULATIONS, StageConfig, UpsampleConfig, round_up
from ltx_core.model.video_vae.layers import silu
from ltx_core.model.video_vae.ops import depth_to_space

NORM_EPS = 1e-6
SLAB_ELEMENTS = 2**25  # of the widest activation of a slab

Norm = Callable[[Tensor], Tensor]
KeysValues = tuple[Tensor, Tensor]  # [B, T, H, W, heads, head_dim] each


class NeighbourhoodAttention(nn.Module):
    """Attention of every location to the ``kernel`` around it, heads of ``head_dim``, normalised queries and keys.

    With ``copies_edges`` the windows of columns near the left and right border are not moved inward: they see copies of
    the edge column beyond it. Decoders that work in column slabs compute this; it is not the same picture there.
    """

    def __init__(self, config: StageConfig, head_dim: int) -> None:
        super().__init__()
        self.kernel, self.head_dim = config.kernel, head_dim
        self.copies_edges = False
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm = nn.RMSNorm(head_dim, eps=NORM_EPS)  # shared by the heads
        self.k_norm = nn.RMSNorm(head_dim, eps=NORM_EPS)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]``, normalised, to the same shape."""
        return self.attend(x, self.keys_values(x))

    def keys_values(self, x: Tensor, first: int = 0) -> KeysValues:
        """Of frames ``first`` on."""
        if self.copies_edges:
            columns = torch.arange(-self.margin, x.shape[3] + self.margin, device=x.device).clamp_(0, x.shape[3] - 1)
            x = x.index_select(3, columns)
        keys, values = self._project(x, 1, 3).chunk(2, dim=-2)
        return rotate(self.k_norm(keys), (first, 0, 0)).to(values.dtype), values

    def attend(self, x: Tensor, known: KeysValues, first: int = 0) -> Tensor:
        """Attention of the frames ``x``, which begin at ``first``, to the keys and values of the whole clip."""
        keys, values = known
        origin = (first, 0, self.margin)
        queries = rotate(self.q_norm(self._project(x, 0, 1)), origin).to(values.dtype)
        scale = self.head_dim**-0.5
        seen = neighbourhood_attention(queries, keys, values, self.kernel, scale, origin)
        return self.proj(seen.flatten(-2))

    @property
    def margin(self) -> int:
        """Copied columns beyond each border."""
        return self.kernel[2] // 2 if self.copies_edges else 0

    def _project(self, x: Tensor, start: int, end: int) -> Tensor:
        """The thirds ``start`` to ``end`` of ``qkv`` as heads ``[B, T, H, W, heads, head_dim]``."""
        rows = slice(start * x.shape[-1], end * x.shape[-1])
        return functional.linear(x, self.qkv.weight[rows], self.qkv.bias[rows]).unflatten(-1, (-1, self.head_dim))


class GatedMlp(nn.Module):
    """``w_down(silu(w_gate x) * w_up x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = round_up(4 * width, 16)
        self.w_gate = nn.Linear(width, self.hidden, bias=False)
        self.w_up = nn.Linear(width, self.hidden, bias=False)
        self.w_down = nn.Linear(self.hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_down(silu(self.w_gate(x)) * self.w_up(x))


class Block(nn.Module):
    """Attention and MLP, each added to its input. Without gradients the input is overwritten."""

    def __init__(self, config: StageConfig, head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, eps=NORM_EPS)
        self.attn = NeighbourhoodAttention(config, head_dim)
        self.norm2 = nn.RMSNorm(config.width, eps=NORM_EPS)
        self.mlp = GatedMlp(config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_feed_forward(self.apply_attention(x, self.norm1), self.norm2)

    def apply_attention(self, x: Tensor, norm: Norm) -> Tensor:
        known = self._keys_values(x, norm)
        frames = round_up(slab_frames(x, x.shape[-1]), BOX)
        return add_in_slabs(x, frames, lambda part, first: self.attn.attend(norm(part), known, first))

    def apply_feed_forward(self, x: Tensor, norm: Norm) -> Tensor:
        return add_in_slabs(x, slab_frames(x, self.mlp.hidden), lambda part, first: self.mlp(norm(part)))

    def _keys_values(self, x: Tensor, norm: Norm) -> KeysValues:
        frames = slab_frames(x, x.shape[-1])
        if frames == x.shape[1]:
            return self.attn.keys_values(norm(x))
        whole: KeysValues | None = None
        for first in range(0, x.shape[1], frames):
            slab = slice(first, first + frames)
            keys, values = self.attn.keys_values(norm(x[:, slab]), first)
            if whole is None:
                shape = (x.shape[0], x.shape[1], *keys.shape[2:])
                whole = keys.new_empty(shape), values.new_empty(shape)
            whole[0][:, slab], whole[1][:, slab] = keys, values
        assert whole is not None
        return whole


class DenoisingBlock(Block):
    """A block that first adds a projection of the context, its norms scaled and shifted by the timestep."""

    def __init__(self, config: StageConfig, head_dim: int, context_width: int) -> None:
        super().__init__(config, head_dim)
        self.context_proj = nn.Linear(context_width, config.width)
        self.scale_shift_table = nn.Parameter(torch.zeros(MODULATIONS, config.width))

    def forward(self, x: Tensor, context: Tensor, modulation: Tensor) -> Tensor:  # type: ignore[override]
        """``context`` is ``[B, T, H, W, C']``, ``modulation`` ``[B, 7, C]``; their gates are not used."""
        table = (modulation + self.scale_shift_table)[:, :, None, None, None]  # [B, 7, 1, 1, 1, C]
        scale_a, shift_a, _, scale_m, shift_m, _, _ = table.unbind(dim=1)
        frames = slab_frames(x, x.shape[-1])
        x = add_in_slabs(x, frames, lambda part, first: self.context_proj(context[:, first : first + part.shape[1]]))
        x = self.apply_attention(x, lambda part: torch.addcmul(shift_a, self.norm1(part), 1 + scale_a))
        return self.apply_feed_forward(x, lambda part: torch.addcmul(shift_m, self.norm2(part), 1 + scale_m))


class Upsample(nn.Module):
    """``[B, T, H, W, C] -> [B, T*s1, H*s2, W*s3, C / reduction]``; one frame less where the clip begins."""

    def __init__(self, width: int, config: UpsampleConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.proj = nn.Linear(width, config.cells * width // config.reduction)

    def forward(self, x: Tensor, begins: bool = True) -> Tensor:
        """``begins``: whether x holds the clip's first frame, which stands for one frame however time is stretched."""
        y = depth_to_space(self.proj(x).movedim(-1, 1), self.stride).movedim(1, -1)
        return y[:, 1:] if begins and self.stride[0] == 2 else y


def slab_frames(x: Tensor, width: int) -> int:
    """Frames of x whose activations of ``width`` channels fit a slab; all of them while gradients are recorded."""
    if torch.is_grad_enabled():
        return x.shape[1]
    b, t, h, w, _ = x.shape
    return min(t, max(1, SLAB_ELEMENTS // (b * h * w * width)))


def add_in_slabs(x: Tensor, frames: int, update: Callable[[Tensor, int], Tensor]) -> Tensor:
    """x plus ``update(frames of x, index of the first)``, slab by slab; over x, unless gradients are recorded."""
    if torch.is_grad_enabled():
        return x + update(x, 0)
    for first in range(0, x.shape[1], frames):
        part = x[:, first : first + frames]
        part.add_(update(part, first))
    return x
