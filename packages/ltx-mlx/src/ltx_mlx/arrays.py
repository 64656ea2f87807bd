"""The seam between torch tensors and MLX arrays. Values are copied once; dtypes keep their names."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy
import torch
from torch import Tensor

DTYPES: dict[torch.dtype, mx.Dtype] = {
    torch.float32: mx.float32,
    torch.float16: mx.float16,
    torch.bfloat16: mx.bfloat16,
    torch.int64: mx.int64,
    torch.int32: mx.int32,
    torch.int16: mx.int16,
    torch.int8: mx.int8,
    torch.uint8: mx.uint8,
    torch.uint32: mx.uint32,
    torch.bool: mx.bool_,
}
TORCH_DTYPES = {array: tensor for tensor, array in DTYPES.items()}


def to_mlx(tensor: Tensor, dtype: mx.Dtype | None = None) -> mx.array:
    """A copy of ``tensor`` as an array, in ``dtype`` if given. MLX has no float64 on GPUs: it becomes float32."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    if tensor.dtype == torch.bfloat16:  # numpy has none: its bits travel as integers
        array = mx.array(tensor.contiguous().view(torch.int16).numpy()).view(mx.bfloat16)
    else:
        array = mx.array(tensor.numpy())
    return array if dtype is None or array.dtype == dtype else array.astype(dtype)


def to_torch(array: mx.array, like: Tensor | None = None) -> Tensor:
    """A copy of ``array`` as a tensor, evaluated now, in the dtype and on the device of ``like`` if given."""
    if array.dtype == mx.bfloat16:
        tensor = torch.from_numpy(numpy.array(array.view(mx.uint16)).view(numpy.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(numpy.array(array))
    return tensor if like is None else tensor.to(like)


def channels_last(tensor: Tensor, dtype: mx.Dtype | None = None) -> mx.array:
    """``[B, C, ...]`` as an array ``[B, ..., C]``."""
    return to_mlx(tensor.movedim(1, -1), dtype)


def channels_first(array: mx.array, like: Tensor | None = None) -> Tensor:
    """``[B, ..., C]`` as a tensor ``[B, C, ...]``."""
    return to_torch(mx.moveaxis(array, -1, 1), like)


def flat_parameters(network: Any) -> dict[str, mx.array]:
    """Every parameter of a network by its full name."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(network.parameters()))
