"""The decoder a config describes, and what it makes of latents: frames a viewer or a file writer can take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ltx_core.model.common.memory import free_bytes
from ltx_core.model.common.meter import Work, measure, without_data
from ltx_core.model.common.tiling import TileCountConfig
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.diffusion.decoder import DiffusionVideoDecoder
from ltx_core.model.video_vae.tiling import Tiling, balanced_tiling, stream_tiles, tiled_decode
from ltx_core.model.video_vae.video_vae import DecodeConditioning, VideoDecoder
from ltx_core.optimizations import optimizations

AnyVideoDecoder = VideoDecoder | DiffusionVideoDecoder

STREAMING_FRAMES = 6  # latent frames after which a streamed decode no longer grows
SAFE_CELL_BYTES = 64 * 2**20  # a streamed decode takes less per latent cell of the picture
MEASURED_CELLS = 8  # sides of the picture a decoder is measured on
USABLE_SHARE = 0.8  # of free memory


def make_video_decoder(config: VideoVaeConfig) -> AnyVideoDecoder:
    """The network of a config's decoder."""
    diffusion = config.diffusion_decoder
    return VideoDecoder(config) if diffusion is None else DiffusionVideoDecoder(diffusion)


def to_frames(video: Tensor) -> Tensor:
    """Item 0 of ``[B, 3, F, H, W]`` in about [-1, 1] as RGB ``[F, H, W, 3]`` in [0, 1]."""
    return (video[0] + 1).div_(2).clamp_(0, 1).permute(1, 2, 3, 0)


@torch.no_grad()
def decode_video(
    decoder: AnyVideoDecoder,
    latent: Tensor,
    tiling: Tiling | None = None,
    conditioning: DecodeConditioning | None = None,
    most: int | None = None,
) -> Iterator[Tensor]:
    """Decode item 0 of a normalised latent into chunks of RGB frames ``[f, H, W, 3]`` in [0, 1], the latent's dtype.

    Without tiles a convolutional decoder streams chunks that join to exactly the whole decode, or gives one chunk where
    it cannot stream; a picture of more than ``most`` latent cells, or too large for free memory, is cut into tiles in
    space, each streamed in time. A diffusion decoder takes the tiles that free memory allows.
    """
    for chunk in _decode(decoder, latent[:1], tiling, _first_item(conditioning), most):
        yield to_frames(chunk)


def _decode(
    decoder: AnyVideoDecoder,
    latent: Tensor,
    tiling: Tiling | None,
    conditioning: DecodeConditioning | None,
    most: int | None,
) -> Iterator[Tensor]:
    """Chunks of frames ``[1, 3, f, H, W]``."""
    if isinstance(decoder, DiffusionVideoDecoder):
        tiling = tiling or decoder.automatic_tiling(latent, free_bytes(decoder.conv_in.weight.device))
        return decoder.decode_tiled(latent, tiling, conditioning)
    if tiling is not None:
        return tiled_decode(decoder, latent, tiling, conditioning)
    if (tiles := decode_tiles(decoder, latent, free_bytes(latent.device), most)) is not None:
        return stream_tiles(decoder, latent, tiles, conditioning)
    if decoder.can_stream and optimizations().streamed_decode:
        return decoder.decode_streaming(latent, conditioning)
    return iter([decoder(latent, conditioning)])


def decode_tiles(
    decoder: AnyVideoDecoder, latent: Tensor, free: int, most: int | None = None
) -> TileCountConfig | None:
    """Tiles in space for a streamed decode of at most ``most`` latent cells at once within ``free`` bytes.

    None where the picture is decoded whole, and for a decoder that cannot stream.
    """
    if not isinstance(decoder, VideoDecoder) or not decoder.can_stream:
        return None
    cells = latent.shape[3] * latent.shape[4]
    at_once = min(cells // decode_parts(decoder, latent, free), most or cells)
    return balanced_tiling(latent.shape[3], latent.shape[4], at_once) if at_once < cells else None


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


def streamed_work(network: VideoDecoder, latent: Tensor, copies: bool = False) -> Work:
    """Work of `decode_video` on a streamed latent on the meta device, the frames of the chunk before still held."""

    def decode() -> None:
        for chunk in network.decode_streaming(latent[:, :, :STREAMING_FRAMES]):
            frames = to_frames(chunk)  # noqa: F841 (until the next ones replace them)

    return measure(network, decode, copies)


def streamed_bytes(decoder: VideoDecoder, frames: int, dtype: torch.dtype) -> int:
    """Bytes alive at once in a streamed decode of ``MEASURED_CELLS`` x ``MEASURED_CELLS`` latent cells."""
    with without_data():
        network = VideoDecoder(decoder.config).to(dtype)
        probe = torch.empty(1, decoder.config.latent_channels, frames, MEASURED_CELLS, MEASURED_CELLS, dtype=dtype)
    return streamed_work(network, probe).activations


def _first_item(conditioning: DecodeConditioning | None) -> DecodeConditioning | None:
    if conditioning is None or not isinstance(conditioning.timestep, Tensor) or not conditioning.timestep.ndim:
        return conditioning
    return replace(conditioning, timestep=conditioning.timestep[:1])
