"""Bytes that a device sends in one call of a transformer whose tokens are shared out."""

from __future__ import annotations

from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.parallel.ranks import shares


def bytes_sent(config: TransformerConfig, tokens: int, devices: int, itemsize: int, rank: int = 0) -> int:
    """Bytes that ``rank`` sends for one sample of ``tokens`` video tokens: heads, keys and values, the prediction."""
    video, audio = config.streams["video"], config.streams.get("audio")
    held, heads = shares(tokens, devices), shares(video.heads, devices)
    own, width = held[rank], video.head_dim
    block = (3 * own * (video.heads - heads[rank]) + (tokens - own) * heads[rank]) * width
    if audio is not None:
        block += 2 * own * audio.heads * audio.head_dim * (devices - 1)
    return (config.num_layers * block + own * video.out_channels * (devices - 1)) * itemsize
