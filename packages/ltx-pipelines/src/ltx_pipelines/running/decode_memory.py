"""Whether a picture can be decoded whole in the memory there is, or must be cut into tiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ltx_core.model.video_vae.decoders import AnyVideoDecoder
from ltx_core.model.video_vae.video_vae import VideoDecoder
from ltx_pipelines.planning.cost import STREAMING_FRAMES, measured

SAFE_CELL_BYTES = 64 * 2**20  # a streamed decode takes less per latent cell of the picture
MEASURED_CELLS = 8  # sides of the picture a decoder is measured on
USABLE_SHARE = 0.8  # of free memory


def decode_parts(decoder: AnyVideoDecoder, latent: Tensor, free: int) -> int:
    """Into how many parts a picture must be cut for its streamed decode to fit ``free`` bytes; 1: none.

    Where that is in doubt the decoder is measured on the meta device: memory grows with the area and not with time. A
    diffusion decoder, and one that cannot stream, choose for themselves.
    """
    cells = latent.shape[3] * latent.shape[4]
    if not isinstance(decoder, VideoDecoder) or not decoder.can_stream or cells * SAFE_CELL_BYTES < free:
        return 1
    per_cell = streamed_bytes(decoder, min(STREAMING_FRAMES, latent.shape[2]), latent.dtype) / MEASURED_CELLS**2
    return math.ceil(cells * per_cell / (USABLE_SHARE * free))


def streamed_bytes(decoder: VideoDecoder, frames: int, dtype: torch.dtype) -> int:
    """Bytes alive at once in a streamed decode of ``MEASURED_CELLS`` x ``MEASURED_CELLS`` latent cells."""
    with torch.device("meta"):
        network = VideoDecoder(decoder.config).to(dtype)
        probe = torch.empty(1, decoder.config.latent_channels, frames, MEASURED_CELLS, MEASURED_CELLS, dtype=dtype)
    return measured(network, lambda: list(network.decode_streaming(probe))).activations
