"""How much memory MLX may use. On Apple silicon it is one memory for all: what is wired cannot be paged out."""

from __future__ import annotations

import mlx.core as mx
import torch

from ltx_core.model.common import memory


def free_bytes() -> int:
    """Bytes that arrays may still take: of the recommended working set on a GPU, else what the system has free."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"]) - mx.get_active_memory()
    return memory.free_bytes(torch.device("cpu")) + mx.get_cache_memory()
