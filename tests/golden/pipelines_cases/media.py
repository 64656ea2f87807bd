"""Media, colour, masks, layouts and token tiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ltx_core.components.helpers import evenly_spaced_keyframe_positions, seconds_to_frames, temporal_subsample
from ltx_core.components.patchifiers import VideoLatentPatchifier
from ltx_core.conditioning.mask_utils import downsample_mask_video_to_latent
from ltx_core.conditioning.tools import VideoLatentTools
from ltx_core.model.common.tiling import TileCountConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.video_vae.tiling import TilePlan, TileSizeConfig, announced_chunks
from ltx_core.sampling.modality_tiling import VideoModalityTilingHelper
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape
from ltx_media.color import (
    ACESCCT,
    LOGC3,
    Primaries,
    hlg_to_yuv420p10,
    linear_to_hlg,
    rgb_to_i420,
)
from ltx_media.pixels import center_crop_fit, reflect_pad_fit, to_signed
from ltx_pipelines.planning.layout import Canvas, align_resolution, balanced_tile_split, temporal_tiles
from ltx_pipelines.utils.media_io import decode_image, load_image, load_thumbnail, read_audio
from tests.golden.case import Case
from tests.golden.operations import Operation

MAX_OFF_BY_ONE = 0.005  # share of code values that float rounding may move by one


def image_fits(case: Case) -> dict[str, Tensor]:
    path = case.directory / "inputs" / case.args["path"]
    image = decode_image(path)
    assert torch.equal(image, case.inputs["image"])
    planes = image.permute(2, 0, 1)[None].float()
    results = {}
    for name, expected in case.outputs.items():
        kind, size = name.split(".")
        if kind == "long_side":
            results[f"out.{name}"] = load_thumbnail(path, int(size))
            continue
        height, width = (int(side) for side in size.split("x"))
        if kind == "center_crop":
            fitted = load_image(path, height, width)
            assert torch.equal(fitted[:, :, 0], to_signed(center_crop_fit(planes, height, width)))
        else:
            fitted = to_signed(reflect_pad_fit(planes, height, width))[:, :, None]
        kept_height, kept_width = expected.shape[-2:]  # a large case keeps the bottom right corner only
        results[f"out.{name}"] = fitted[..., -kept_height:, -kept_width:]
    return results


def audio_windows(case: Case) -> dict[str, Tensor]:
    results = {}
    for index, (start, duration) in enumerate(case.args["windows"]):
        audio = read_audio(case.directory / "inputs" / case.args["path"], start, duration)
        assert audio is not None
        results[f"out.window.{index}"] = audio.waveform
    return results


def transfers(case: Case) -> dict[str, Tensor]:
    linear = case.inputs["linear"]
    results = {}
    for name, curve in (("acescct", ACESCCT), ("logc3", LOGC3)):
        codes = curve.compress(linear)
        results[f"out.{name}.compress"] = codes
        results[f"out.{name}.decompress"] = curve.decompress(codes)
        for primaries in (Primaries.AP1, Primaries.REC709):
            working = curve.working_from(linear, primaries)
            results[f"out.{name}.working_from_{primaries.value}"] = working
            results[f"out.{name}.linear_to_{primaries.value}"] = curve.linear_to(working, primaries)
    return results


def planes(case: Case) -> dict[str, Tensor]:
    results = {"out.i420": rgb_to_i420(case.inputs["rgb"])}
    for name, primaries in (("hlg709", Primaries.REC709), ("hlgacescg", Primaries.AP1)):
        signal = linear_to_hlg(case.inputs["linear"], primaries, case.args["white_signal"])
        results |= {f"out.{name}.{plane}": t for plane, t in zip("yuv", hlg_to_yuv420p10(signal), strict=True)}
        if f"{name}.signal" in case.outputs:
            results[f"out.{name}.signal"] = signal
            assert torch.allclose(signal, case.outputs[f"{name}.signal"], atol=1e-5)
    for name, got in results.items():
        moved = (got != case.tensors[name]).float().mean().item()
        assert got.is_floating_point() or moved <= MAX_OFF_BY_ONE, f"{name}: {moved:.2%} of the codes differ"
    return results


def mask_to_tokens(case: Case) -> dict[str, Tensor]:
    mask = case.inputs["mask"].float()
    sides = case.args["latent_height"], case.args["latent_width"]
    results = {}
    for name, frames, pixels in (
        ("tokens", case.args["latent_frames"], mask),
        ("single_frame_tokens", 1, mask[:, :, :1]),
    ):
        if name in case.outputs:
            results[f"out.{name}"] = downsample_mask_video_to_latent(pixels, VideoLatentShape(1, 1, frames, *sides))
    count = case.args["subsample_frames"]
    indices = torch.arange(count, dtype=torch.int32).view(1, 1, count, 1, 1)
    for name in case.outputs:
        if name.startswith("subsample_index."):
            results[f"out.{name}"] = temporal_subsample(indices, int(name.split(".")[1])).flatten()
    return results


def snap_frames(frames: int) -> int:
    return FACTORS.snap_frames(frames)


def audio_latent_frames(frames: int, fps: float) -> int:
    return AudioLatentShape.from_video_pixel_shape(VideoPixelShape(1, frames, 32, 32, fps)).frames


def auto_tiling(height: int, width: int) -> list[int]:
    return [part for axis in TileSizeConfig.for_long_side(height, width).axes() for part in axis]


def aligned(width: int, height: int, mode: str, step: int) -> list[int]:
    aligned_height, aligned_width = align_resolution(height, width, mode, step)  # type: ignore[arg-type]
    return [aligned_width, aligned_height, width, height]


def canvas(frames: int) -> list[object]:
    got = Canvas.of(frames)
    return [got.frames, got.segment, list(got.keyframes)]


def decode_splits(table: str, length: int) -> list[list[int]]:
    """Rows of a table named `decode_splits_<temporal|spatial>_<tile>_<overlap>`, in frames or pixels."""
    _, _, axis, tile, overlap = table.split("_")
    sizes = int(tile), int(overlap)
    if axis == "temporal":
        spans = TilePlan.of((length, 2, 2), TileSizeConfig(sizes, (0, 0), (0, 0)), FACTORS).frames
    else:
        spans = TilePlan.of((2, length, 2), TileSizeConfig((0, 0), sizes, (0, 0)), FACTORS).height
    cells = [span.cells for span in spans]
    return [[part.start, part.end, part.left_ramp, part.right_ramp] for part in cells]


def check_layout_tiles(layout: dict[str, Any]) -> None:
    tiles = temporal_tiles(layout["seams"], layout["num_tiles"])
    got = [
        {
            "pixel_start": tile.pixel_start,
            "pixel_end": tile.pixel_end,
            "latent_start": tile.latent_start,
            "latent_end_exclusive": tile.latent_end,
            "anchor_kf_global": list(tile.anchors),
            "slot_kf_global": list(tile.slots),
            "drop_latent_prefix": tile.dropped_latents,
        }
        for tile in tiles
    ]
    assert got == layout["tiles"]


FACTORS = SpatioTemporalScaleFactors.default()
TABLES: dict[str, Callable[..., object]] = {
    "snap_frames": snap_frames,
    "seconds_to_frames": seconds_to_frames,
    "audio_latent_frames": audio_latent_frames,
    "evenly_spaced_keyframes": evenly_spaced_keyframe_positions,
    "align_resolution": aligned,
    "balanced_tile_split": lambda count: list(balanced_tile_split(count)),
    "auto_tiling_conv": auto_tiling,
    "chunks_number": lambda frames: announced_chunks(frames, TileSizeConfig()),
}


def layout_tables(case: Case) -> dict[str, Tensor]:
    """Each row of a table holds the inputs, then the expected result."""
    for name, rows in case.header["tables"].items():
        for row in rows:
            if name == "dfr_tiles":
                check_layout_tiles(row)
            elif name == "dfr_canvas":
                assert canvas(row[0]) == row[1:], f"{name}: {row}"
            elif name.startswith("decode_splits_"):
                assert decode_splits(name, row[0]) == row[1], f"{name}: {row}"
            else:
                got = TABLES[name](*row[:-1])
                assert got == row[-1], f"{name}{row[:-1]} is {got}, expected {row[-1]}"
    return {}


def token_tiles(case: Case) -> dict[str, Tensor]:
    """Tiles of a sequence whose model is `tanh(x * (1 + 0.1 * tile index))`, and their blend."""
    shape = VideoLatentShape(*case.args["latent_shape"])
    assert shape.token_count == case.args["num_target_tokens"]
    counts = TileCountConfig(**{axis: tuple(values) for axis, values in case.args["tiles"].items()})
    tools = VideoLatentTools(VideoLatentPatchifier(patch_size=1), shape, case.args["fps"])
    helper = VideoModalityTilingHelper(counts, tools)
    inputs = case.inputs
    modality = Modality(
        latent=inputs["latent"],
        timesteps=inputs["timesteps"],
        positions=inputs["positions"],
        context=torch.empty(1, 0, 1),
    )
    tiles = helper.tiles(modality.positions)
    assert [[[axis.start, axis.end] for axis in tile.box] for tile in tiles] == case.args["coords"]
    results, blended = {}, torch.zeros_like(modality.latent)
    for index, tile in enumerate(tiles):
        part = helper.tile_modality(modality, tile)
        sides = [axis.length for axis in tile.box]
        results[f"out.tile{index}.keep"] = tile.keep_indices
        results[f"out.tile{index}.mask"] = tile.blend_weights[: tile.num_generated].view(sides)
        results[f"out.tile{index}.cond_weights"] = tile.blend_weights[tile.num_generated :]
        results[f"out.tile{index}.positions"] = part.positions
        assert torch.equal(part.timesteps, modality.timesteps[:, tile.keep_indices])
        blended = helper.blend(torch.tanh(part.latent * (1 + 0.1 * index)), tile, blended)
    return {**results, "out.blended": blended}


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("media", "image decode + resize + normalise"): image_fits,
    ("media", "audio decode with start/duration"): audio_windows,
    ("media", "LogC3 / ACEScct working-space transfers"): transfers,
    ("media", "rgb to 8-bit BT.709 I420 and linear to 10-bit BT.2020 HLG planes"): planes,
    ("ic_lora", "pixel mask -> latent token weights; reference temporal subsampling"): mask_to_tokens,
    ("tiling", "token tiling and blending (tiled data parallel / tiled stage 2)"): token_tiles,
    ("layout", "frame, tile and canvas rules"): layout_tables,
}
