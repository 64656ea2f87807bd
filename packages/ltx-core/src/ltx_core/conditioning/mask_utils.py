"""Self-attention masks between the target's tokens and appended ones, and mask videos at token resolution.

    rows attend to columns     target (n)   earlier appended   new (M)
    target (n)                     as before                   w
    earlier appended               as before                   0
    new (M)                        w              0             1

"As before" is all ones where there was no mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import ConditioningError
from ltx_core.types import LatentState, VideoLatentShape

#: Attention strength in [0, 1]: one number, or one per new token, ``[M]``, ``[1, M]`` or ``[B, M]``.
AttentionStrength = float | Tensor


def resolve_cross_mask(strength: AttentionStrength, num_new_tokens: int, like: Tensor) -> Tensor:
    """``[B, M]`` weights in the dtype of ``like`` ``[B, N, D]``."""
    weights = torch.as_tensor(strength, device=like.device, dtype=like.dtype)
    try:
        return weights.expand(like.shape[0], num_new_tokens)
    except RuntimeError as error:
        expected = f"one number, [{num_new_tokens}] or [{like.shape[0]}, {num_new_tokens}]"
        raise ConditioningError(f"attention_mask has shape {list(weights.shape)}, expected {expected}") from error


def build_attention_mask(existing: Tensor | None, cross_mask: Tensor, num_noisy: int, num_existing: int) -> Tensor:
    """``[B, N+M, N+M]`` from the mask so far ``[B, N, N]`` (None: ones) and the weights ``[B, M]`` of new tokens.

    ``num_noisy`` tokens of the target come first among the ``num_existing`` so far.
    """
    batch, num_new = cross_mask.shape
    total = num_existing + num_new
    mask = cross_mask.new_zeros(batch, total, total)
    mask[:, :num_existing, :num_existing] = 1 if existing is None else existing
    mask[:, num_existing:, num_existing:] = 1
    mask[:, :num_noisy, num_existing:] = cross_mask[:, None, :]
    mask[:, num_existing:, :num_noisy] = cross_mask[:, :, None]
    return mask


def update_attention_mask(
    state: LatentState, strength: AttentionStrength | None, num_noisy: int, num_new: int
) -> Tensor | None:
    """The mask of ``state`` with ``num_new`` tokens appended. Strength None: full, and no mask where none is needed."""
    if strength is None:
        if state.attention_mask is None:
            return None
        strength = 1.0
    cross_mask = resolve_cross_mask(strength, num_new, state.latent)
    return build_attention_mask(state.attention_mask, cross_mask, num_noisy, state.latent.shape[1])


def downsample_mask_video_to_latent(mask: Tensor, latent_shape: VideoLatentShape) -> Tensor:
    """A mask video ``[B, 1, F, H, W]`` in pixels to token weights ``[B, f*h*w]`` of a latent.

    Space is averaged by area. Frame 0 stands alone; the others are averaged in the groups one latent frame covers.
    Raises ``ConditioningError`` when they do not divide evenly.
    """
    frames = mask.shape[2]
    flat = mask.transpose(1, 2).flatten(0, 1).float()  # [B*F, 1, H, W]
    small = F.interpolate(flat, size=(latent_shape.height, latent_shape.width), mode="area")
    small = small.unflatten(0, (mask.shape[0], frames)).squeeze(2)  # [B, F, h, w]
    if frames == 1 or latent_shape.frames == 1:
        return small[:, 0].flatten(1)
    if (frames - 1) % (latent_shape.frames - 1):
        expected = f"{latent_shape.frames - 1}k+1 for {latent_shape.frames} latent frames"
        raise ConditioningError(f"the mask video has {frames} frames, expected {expected}")
    groups = small[:, 1:].unflatten(1, (latent_shape.frames - 1, -1)).mean(dim=2)  # [B, f-1, h, w]
    return torch.cat((small[:, :1], groups), dim=1).flatten(1)
