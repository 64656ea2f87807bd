"""Video decode: whole, streamed and in the usual tiles; how much is decoded twice; memory against duration."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Arm, Options, Table, alternate, peak_of
from benchmarks.models import MANIFESTS, tiny_checkpoint, tiny_config
from ltx_core.loader import Checkpoint
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.tiling import TilePlan, TileSizeConfig, balanced_tiling, stream_tiles, tiled_decode
from ltx_core.model.video_vae.video_vae import VideoDecoder
from ltx_core.types import SpatioTemporalScaleFactors

SIZES = [(512, 768), (704, 1216), (1024, 1536), (1088, 1920)]
FACTORS = SpatioTemporalScaleFactors(8, 32, 32)


def published_config(name: str) -> VideoVaeConfig:
    manifest = json.loads((MANIFESTS / name / "video_vae.json").read_text(encoding="utf-8"))
    return VideoVaeConfig.from_metadata(manifest["config"])


def random_decoder(config: VideoVaeConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> VideoDecoder:
    with torch.device("meta"):
        decoder = VideoDecoder(config)
    decoder = decoder.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in decoder.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1e4
        parameter.normal_(std=fan_in**-0.5, generator=generator)
    for buffer in decoder.buffers():
        buffer.fill_(1.0)
    return decoder


def small_config() -> VideoVaeConfig:
    """The structure of the 2.3 decoder, at an eighth of its width."""
    manifest = json.loads((MANIFESTS / "ltx-2.3-22b" / "video_vae.json").read_text(encoding="utf-8"))
    vae = {**manifest["config"]["vae"], "latent_channels": 16}
    for key in ("encoder_base_channels", "decoder_base_channels"):
        vae[key] = max(int(vae.get(key, 128)) // 8, 8)
    return VideoVaeConfig.from_metadata({"vae": vae})


def run(options: Options) -> list[Table]:
    return [waste(), timing(options), memory(options)]


def waste() -> Table:
    """Counted, not timed."""
    table = Table(
        "Decoded volume over needed volume, 121 frames",
        ("size", "size-based tiles 768/64, 80/24", "streamed", "1/2 fits", "1/3 fits", "hardly anything fits"),
    )
    for height, width in SIZES:
        cells = (16, height // 32, width // 32)
        sized = volume(TilePlan.of(cells, TileSizeConfig.for_long_side(height, width), FACTORS), cells)
        balanced = [
            volume(TilePlan.of(cells, balanced_tiling(*cells[1:], cells[1] * cells[2] // parts), FACTORS), cells)
            for parts in (1, 2, 3, 99)
        ]
        table.rows.append([f"{height} x {width}", f"{sized:.3f}", *(f"{value:.3f}" for value in balanced)])
    return table


def volume(plan: TilePlan, cells: tuple[int, int, int]) -> float:
    decoded = sum(t.cells.length * h.cells.length * w.cells.length for t, h, w in plan.tiles)
    return decoded / (cells[0] * cells[1] * cells[2])


def decoders(options: Options) -> list[tuple[str, VideoDecoder, tuple[int, int, int]]]:
    """Decoders and latent frames, rows, columns."""
    small = (4, 4, 6) if options.quick else (7, 12, 16)
    if options.device.type == "cuda":
        return [("2.3", random_decoder(published_config("ltx-2.3-22b"), options.device), small)]
    tiny = random_decoder(VideoVaeConfig.from_metadata(tiny_config()), options.device)
    if (path := tiny_checkpoint()) is not None:
        tiny = Checkpoint.open(path).build("video_decoder", torch.float32, options.device)  # type: ignore[assignment]
    return [
        ("2.3, an eighth as wide", random_decoder(small_config(), options.device), small),
        ("tiny", tiny, (3, 4, 4) if options.quick else (7, 8, 8)),
    ]


def timing(options: Options) -> Table:
    table = Table(
        "Video decode", ("decoder, latent, how", "seconds", "whole / this", "max abs diff to whole", "peak MB")
    )
    sizes = TileSizeConfig((40, 24), (256, 64), (256, 64))

    def joined(decode: Any, *arguments: Any) -> Tensor:
        return torch.cat([chunk.cpu() for chunk in decode(*arguments)], dim=2)

    for name, decoder, shape in decoders(options):
        latent = torch.randn(1, decoder.config.latent_channels, *shape, device=options.device)
        tiles = balanced_tiling(*shape[1:], shape[1] * shape[2] // 2)
        arms: dict[str, Arm] = {
            "whole": partial(decoder, latent),
            "streamed": partial(joined, decoder.decode_streaming, latent),
            "balanced tiles, streamed": partial(joined, stream_tiles, decoder, latent, tiles),
            "size-based tiles": partial(joined, tiled_decode, decoder, latent, sizes),
        }
        measured = alternate(arms, options)
        for arm in arms:
            table.rows.append(
                [
                    f"{name}, {' x '.join(map(str, shape))}, {arm}",
                    f"{measured.median(arm):.3f}",
                    f"{measured.ratio('whole', arm):.3f}",
                    f"{measured.difference(arm, 'whole'):.1e}",
                    f"{measured.peaks[arm] / 1e6:.1f}",
                ]
            )
    return table


@torch.no_grad()
def memory(options: Options) -> Table:
    """Chunks are dropped as they come, as a file writer would."""
    config = small_config()
    decoder = random_decoder(config, options.device)
    side = 2 if options.quick else 6
    table = Table("Peak memory of a decode against its length", ("frames", "whole MB", "streamed MB"))
    for frames in (25, 121, 241):
        latent = torch.randn(1, config.latent_channels, (frames - 1) // 8 + 1, side, side, device=options.device)

        def streamed(latent: Tensor = latent) -> None:
            for _ in decoder.decode_streaming(latent):
                pass

        def whole(latent: Tensor = latent) -> None:
            decoder(latent)

        peaks = [peak_of(arm, options.device)[1] for arm in (whole, streamed)]
        table.rows.append([str(frames), *(f"{peak / 1e6:.2f}" for peak in peaks)])
    return table
