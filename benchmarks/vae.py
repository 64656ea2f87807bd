"""Video decode: whole, streamed and in the usual tiles; how much is decoded twice; memory against duration."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Options, Table, alternate, peak_of
from benchmarks.models import MANIFESTS
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
        ("size", "size-based tiles 768/64, 80/24", "streamed", "1/2 fits", "1/3 fits", "as many tiles as allowed"),
    )
    for height, width in SIZES:
        cells = (16, height // 32, width // 32)
        sized = volume(TilePlan.of(cells, TileSizeConfig.for_long_side(height, width), FACTORS), cells)
        balanced = [
            volume(TilePlan.of(cells, balanced_tiling(*cells[1:], parts), FACTORS), cells) for parts in (1, 2, 3, 99)
        ]
        table.rows.append([f"{height} x {width}", f"{sized:.3f}", *(f"{value:.3f}" for value in balanced)])
    return table


def volume(plan: TilePlan, cells: tuple[int, int, int]) -> float:
    decoded = sum(t.cells.length * h.cells.length * w.cells.length for t, h, w in plan.tiles)
    return decoded / (cells[0] * cells[1] * cells[2])


def timing(options: Options) -> Table:
    config = published_config("ltx-2.3-22b") if options.device.type == "cuda" else small_config()
    decoder = random_decoder(config, options.device)
    shape = (1, config.latent_channels, 4, 4, 6) if options.quick else (1, config.latent_channels, 7, 12, 16)
    latent = torch.randn(shape, device=options.device)
    sizes = TileSizeConfig((40, 24), (256, 64), (256, 64))

    def joined(chunks: Any) -> Tensor:
        return torch.cat([chunk.cpu() for chunk in chunks], dim=2)

    arms = {
        "whole": lambda: decoder(latent),
        "streamed": lambda: joined(decoder.decode_streaming(latent)),
        "balanced tiles, streamed": lambda: joined(stream_tiles(decoder, latent, balanced_tiling(*shape[3:], 2))),
        "size-based tiles": lambda: joined(tiled_decode(decoder, latent, sizes)),
    }
    measured = alternate(arms, options)
    table = Table(f"Decode of {list(shape)}", ("how", "seconds", "whole / this", "max abs diff to whole", "peak MB"))
    for name in arms:
        table.rows.append(
            [
                name,
                f"{measured.median(name):.3f}",
                f"{measured.ratio('whole', name):.3f}",
                f"{measured.difference(name, 'whole'):.1e}",
                f"{measured.peaks[name] / 1e6:.1f}",
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
