"""Decoding precomputed latents, to see and hear what a data set holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ltx_core.precision import resolve
from ltx_core.types import Audio
from ltx_media.writer import write_video
from ltx_trainer.datasets import Example, PrecomputedDataset
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.processing.progress import progress

TILE_PIXELS, TILE_FRAMES = (512, 128), (128, 24)  # (size, overlap)


@torch.no_grad()
def decode_latents(
    root: Path, output: Path, models: ModelFiles, device: str = "cpu", with_audio: bool = False
) -> list[Path]:
    """Write every latent below ``root`` as a video of the same name below ``output``, with its sound if asked for.

    ``root`` is a data set or one of its directories of latents. Stills become one-frame videos. Files that are there
    already are kept. Returns all files.
    """
    from ltx_core.model.audio_vae.audio_vae import decode_audio
    from ltx_core.model.video_vae.frames import decode_video
    from ltx_core.model.video_vae.tiling import TileSizeConfig
    from ltx_core.model.video_vae.video_vae import VideoDecoder

    directory = "latents"
    if root.name.endswith("latents"):
        root, directory = root.parent, root.name
    dataset = PrecomputedDataset(root, [directory, "audio_latents"] if with_audio else [directory])
    paths = [(output / path).with_suffix(".mp4") for path in dataset.relative_paths()[directory]]
    todo = [index for index, path in enumerate(paths) if not path.is_file()]
    if not todo:
        return paths
    dtype = resolve("auto", device).dtype
    decoder = models.build("video_decoder", dtype, device)
    sound_parts = ("audio_decoder", "vocoder") if with_audio else ()
    sound_networks = [models.build(name, torch.float32, device) for name in sound_parts]
    tiles = TileSizeConfig(frames=TILE_FRAMES, height=TILE_PIXELS, width=TILE_PIXELS)
    tiling = tiles if isinstance(decoder, VideoDecoder) else None  # a diffusion decoder chooses its own

    def frames(record: Example) -> Iterator[Tensor]:
        latents = record["latents"].to(device, dtype)[None]
        for latent in latents.split(1, dim=2) if "frames" in record else (latents,):  # keyframes: each alone
            for chunk in decode_video(decoder, latent, tiling):
                yield from (chunk.float() * 255).round().to(torch.uint8).cpu()

    for index in progress(todo, "decode", len(todo)):
        example = dataset[index]
        record = example[directory]
        sound: Audio | None = None
        if with_audio and example["audio_latents"].get("present", 1):
            sound = decode_audio(example["audio_latents"]["latents"].to(device)[None], *sound_networks)
        write_video(paths[index], frames(record), float(record.get("fps", 24.0)), sound)
    return paths
