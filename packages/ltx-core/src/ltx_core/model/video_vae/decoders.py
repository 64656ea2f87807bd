"""The decoder a config describes: both kinds take the same latents and give the same pixels."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ltx_core.model.common.memory import free_bytes
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.diffusion.decoder import DiffusionVideoDecoder
from ltx_core.model.video_vae.tiling import Tiling, tiled_decode
from ltx_core.model.video_vae.video_vae import DecodeConditioning, VideoDecoder
from ltx_core.optimizations import optimizations

AnyVideoDecoder = VideoDecoder | DiffusionVideoDecoder


def make_video_decoder(config: VideoVaeConfig) -> AnyVideoDecoder:
    """The network of a config's decoder."""
    diffusion = config.diffusion_decoder
    return VideoDecoder(config) if diffusion is None else DiffusionVideoDecoder(diffusion)


def decode_chunks(
    decoder: AnyVideoDecoder, latent: Tensor, tiling: Tiling | None, conditioning: DecodeConditioning | None
) -> Iterator[Tensor]:
    """Decode a normalised latent into chunks of frames ``[B, 3, f, H, W]``.

    Without ``tiling`` a convolutional decoder streams, which joins to exactly the whole decode, or gives one chunk
    where it cannot; a diffusion decoder takes the tiles that free memory allows.
    """
    if isinstance(decoder, DiffusionVideoDecoder):
        device = decoder.conv_in.weight.device
        tiling = tiling or decoder.automatic_tiling(latent, free_bytes(device))
        return decoder.decode_tiled(latent, tiling, conditioning)
    if tiling is not None:
        return tiled_decode(decoder, latent, tiling, conditioning)
    if decoder.can_stream and optimizations().streamed_decode:
        return decoder.decode_streaming(latent, conditioning)
    return iter([decoder(latent, conditioning)])
