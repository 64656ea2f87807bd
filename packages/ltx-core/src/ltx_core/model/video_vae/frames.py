"""From latents to frames a viewer or a file writer can take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ltx_core.model.video_vae.decoders import AnyVideoDecoder, decode_chunks
from ltx_core.model.video_vae.tiling import Tiling, balanced_tiling, stream_tiles
from ltx_core.model.video_vae.video_vae import DecodeConditioning, VideoDecoder


def to_frames(video: Tensor) -> Tensor:
    """Item 0 of ``[B, 3, F, H, W]`` in about [-1, 1] as RGB ``[F, H, W, 3]`` in [0, 1]."""
    return (video[0] + 1).div_(2).clamp_(0, 1).permute(1, 2, 3, 0)


@torch.no_grad()
def decode_video(
    decoder: AnyVideoDecoder,
    latent: Tensor,
    tiling: Tiling | None = None,
    conditioning: DecodeConditioning | None = None,
    parts: int = 1,
) -> Iterator[Tensor]:
    """Decode item 0 of a normalised latent into chunks of RGB frames ``[f, H, W, 3]`` in [0, 1], the latent's dtype.

    Without tiles a convolutional decoder streams chunks that join to exactly the whole decode, or gives one chunk; a
    diffusion decoder takes the tiles that free memory allows. ``parts`` above 1 says that only that fraction of the
    picture can be decoded at once: it is cut into balanced tiles that are streamed in time.
    """
    latent = latent[:1]
    if parts > 1 and tiling is None and isinstance(decoder, VideoDecoder) and decoder.can_stream:
        tiles = balanced_tiling(latent.shape[3], latent.shape[4], parts)
        chunks = stream_tiles(decoder, latent, tiles, _first_item(conditioning))
    else:
        chunks = decode_chunks(decoder, latent, tiling, _first_item(conditioning))
    for chunk in chunks:
        yield to_frames(chunk)


def _first_item(conditioning: DecodeConditioning | None) -> DecodeConditioning | None:
    if conditioning is None or not isinstance(conditioning.timestep, Tensor) or not conditioning.timestep.ndim:
        return conditioning
    return replace(conditioning, timestep=conditioning.timestep[:1])
