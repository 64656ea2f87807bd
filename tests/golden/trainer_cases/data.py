"""Configurations, data sets on disk, captions, and what media become before they are encoded."""

from __future__ import annotations

import builtins
import csv
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.mel import to_stereo
from ltx_core.types import Audio, SpatioTemporalScaleFactors
from ltx_media.pixels import resize_and_crop, to_signed
from ltx_trainer.config_file import InvalidConfig, parse_config
from ltx_trainer.datasets import PrecomputedDataset, collate
from ltx_trainer.precomputed import read_record
from ltx_trainer.processing.buckets import parse_buckets, select_bucket
from ltx_trainer.processing.captions import parse_answer, prompt_of, remove_opening
from ltx_trainer.processing.masks import audio_mask, image_mask, kept_frames, video_mask
from ltx_trainer.processing.metadata import column_roles, output_stem, read_rows
from ltx_trainer.processing.tiles import encode_in_tiles
from tests.golden.case import Case, assert_close


def with_root(value: Any, root: Path) -> Any:
    """``value`` with ``$ROOT`` replaced in every text."""
    if isinstance(value, str):
        return value.replace("$ROOT", str(root))
    if isinstance(value, list):
        return [with_root(item, root) for item in value]
    if isinstance(value, dict):
        return {key: with_root(item, root) for key, item in value.items()}
    return value


def assert_holds(got: Any, want: Any, where: str) -> None:
    """Every key of ``want`` is in ``got`` with an equal value; ``got`` may have keys of its own."""
    if isinstance(want, Mapping):
        assert isinstance(got, Mapping), f"{where}: {got!r}, expected {want!r}"
        for key, value in want.items():
            assert key in got, f"{where}: no {key}"
            assert_holds(got[key], value, f"{where}.{key}")
    elif isinstance(want, list):
        assert len(got) == len(want), f"{where}: {got!r}, expected {want!r}"
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_holds(one, other, f"{where}.{index}")
    else:
        assert got == want and isinstance(got, type(want)), f"{where}: {got!r}, expected {want!r}"


def config(case: Case) -> dict[str, torch.Tensor]:
    shared, expected = case.args["shared"], case.args["expected"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in shared["directories"]:
            (root / name).mkdir(parents=True)
        for name in shared["files"]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        raw = with_root(case.args["config"], root)
        if expected["valid"]:
            parsed = parse_config(raw)
            assert_holds(parsed.model_dump(mode="json"), with_root(expected["normalized"], root), case.name)
            assert list(parsed.training_strategy.data_sources().items()) == list(expected["data_sources"].items())
            assert parse_config(parsed.model_dump(mode="json")) == parsed
        else:
            with pytest.raises(InvalidConfig) as caught:
                parse_config(raw)
            locations = [location for location, _ in caught.value.problems]
            assert locations == expected["error_locations"], caught.value
    return {}


def discovery(case: Case) -> dict[str, torch.Tensor]:
    args, expected = case.args, case.args["expected"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in args["files"]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        if "error" in expected:
            with pytest.raises(getattr(builtins, expected["error"])) as caught:
                PrecomputedDataset(root / args["data_root"], args["sources"])
            assert isinstance(caught.value, ConfigError)
            return {}
        dataset = PrecomputedDataset(root / args["data_root"], args["sources"])
        assert len(dataset) == expected["count"]
        assert dataset.root.resolve() == (root / expected["root_used"]).resolve()
        got = {key: [str(path) for path in paths] for key, paths in dataset.relative_paths().items()}
        assert got == expected["samples"]
    return {}


def precomputed_batch(case: Case) -> dict[str, torch.Tensor]:
    args = case.args
    root = case.directory / args["directory"]
    dataset = PrecomputedDataset(root, args["sources"])
    assert [str(path) for path in next(iter(dataset.relative_paths().values()))] == args["sample_order"] or (
        [str(example.get("latents")) for example in dataset.examples] == args["sample_order"]
    )
    for name, tensor in case.group("in.file.").items():
        file, _, key = name.partition("::")
        value = read_record(root / file)[key]
        kind = type(value).__name__
        if isinstance(value, torch.Tensor):
            kind = f"tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        assert kind == args["file_value_types"][name], name
        assert_close(torch.as_tensor(value, dtype=tensor.dtype), tensor, 0, 0, name)
    batch = collate([dataset[index] for index in range(len(dataset))])
    results = {"out.batch.idx": batch.pop("idx")}
    for source, record in batch.items():
        results |= {f"out.batch.{source}.{key}": value for key, value in record.items()}
    for name, value in results.items():
        assert value.dtype == case.tensors[name].dtype, name
    return results


def caption_file(case: Case) -> dict[str, torch.Tensor]:
    args, options, expected = case.args, case.args["options"], case.args["expected"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data.{args['format']}"
        if args["format"] == "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(args["rows"][0]))
                writer.writeheader()
                writer.writerows(args["rows"])
        elif args["format"] == "json":
            path.write_text(json.dumps(args["rows"]))
        else:
            path.write_text("\n".join(map(json.dumps, args["rows"])))
        columns = options.get("media_column"), options.get("caption_column")
        if "error" in expected:
            with pytest.raises(getattr(builtins, expected["error"])):
                read_rows(path, *columns)
            return {}
        trigger, remove = options.get("lora_trigger"), options.get("remove_llm_prefixes", False)
        last = {row.target: row for row in read_rows(path, *columns)}  # the case keeps the last of two for one clip
        items = [
            {
                "prompt": prompt_of(row.caption, trigger, remove),
                "output_path": f"{output_stem(target, path.parent)}.pt",
            }
            for target, row in last.items()
        ]
        assert items == expected["items"]
    return {}


def opening_removed(case: Case) -> dict[str, torch.Tensor]:
    assert remove_opening(case.args["in"]) == case.args["out"]
    return {}


def answer_parsed(case: Case) -> dict[str, torch.Tensor]:
    assert parse_answer(case.args["in"]) == case.args["out"]
    return {}


def roles(case: Case) -> dict[str, torch.Tensor]:
    args = case.args
    assert column_roles(args["columns"], args.get("video_column"), args.get("caption_column")) == args["roles"]
    return {}


def bucket_selection(case: Case) -> dict[str, torch.Tensor]:
    buckets = parse_buckets(case.args["resolution_buckets"], SpatioTemporalScaleFactors.default())
    assert [list(bucket) for bucket in buckets] == case.args["parsed_frames_height_width"]
    longest = max(bucket.frames for bucket in buckets)
    sizes = case.inputs["frames_height_width"].tolist()
    chosen = [select_bucket(min(frames, longest), height, width, buckets) for frames, height, width in sizes]
    return {"out.bucket_index": torch.tensor([-1 if index is None else index for index in chosen])}


def resize_crop(case: Case) -> dict[str, torch.Tensor]:
    size = case.args["target_height"], case.args["target_width"]
    frames = case.inputs["frames"]
    fitted = fitted_signed(frames, *size)
    if "out.frames" in case.tensors:
        return {"out.frames": (fitted + 1) / 2}
    middle = resize_and_crop(frames, *size)
    middle = middle if case.tensors["mid.resized_cropped"].ndim == 4 else middle[0]
    return {"mid.resized_cropped": middle, "out.model_input": fitted.movedim(0, 1)}


def fitted_signed(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Frames in [0, 1] as media are fitted: as codes, then in [-1, 1]."""
    return to_signed(resize_and_crop(frames * 255, height, width).clamp(0, 255))


def temporal_subsample(case: Case) -> dict[str, torch.Tensor]:
    pairs = case.args["frames_factor"]
    return {f"out.indices.{count}x{factor}": torch.tensor(kept_frames(count, factor)) for count, factor in pairs}


def reference_preparation(case: Case) -> dict[str, torch.Tensor]:
    args, scale = case.args, case.args["downscale_factor"]
    size = args["target_height"] // scale, args["target_width"] // scale
    factors = SpatioTemporalScaleFactors.default()
    frames = case.inputs["frames"]
    kept = kept_frames(factors.snap_frames(len(frames)), args["temporal_scale_factor"])
    signed = fitted_signed(frames, *size)[kept].movedim(0, 1)
    return {"out.pixels": (signed + 1) / 2, "out.preprocessed": signed[None]}


def tiled_encode(case: Case) -> dict[str, torch.Tensor]:
    args, projection = case.args, case.inputs["projection"]
    factors = SpatioTemporalScaleFactors(*args["scale_factors_thw"])
    video = case.inputs["video_div16"].repeat_interleave(16, dim=3).repeat_interleave(16, dim=4)
    assert tuple(video.shape[3:]) == (args["height"], args["width"])

    def toy_encoder(video: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.avg_pool3d(video, (1, factors.height, factors.width))
        groups = [cells[:, :, :1], *(part.mean(2, keepdim=True) for part in cells[:, :, 1:].split(factors.time, 2))]
        latent = torch.einsum("dc,bcfhw->bdfhw", projection, torch.cat(groups, dim=2))
        rows, columns = torch.arange(latent.shape[3])[:, None], torch.arange(latent.shape[4])
        return latent + 0.1 * rows + 0.01 * columns

    return {"out.latents": encode_in_tiles(toy_encoder, video, factors, args["tile_size"], args["tile_overlap"])}


def mask_on_grid(case: Case) -> dict[str, torch.Tensor]:
    grid = tuple(case.args["latent_frames_height_width"])
    factors = SpatioTemporalScaleFactors(*case.args["scale_factors_thw"])
    if case.args["source"] == "image":
        return {"out.mask": image_mask(case.inputs["mask_image_uint8"].float() / 255, grid, factors)}
    return {"out.mask": video_mask(case.inputs["mask_frames"], grid, factors)}


def audio_mask_on_steps(case: Case) -> dict[str, torch.Tensor]:
    return {"out.mask": audio_mask(case.inputs["mask"], case.args["latent_steps"])}


def downmix(case: Case) -> dict[str, torch.Tensor]:
    audio = Audio(case.inputs["waveform"], case.args["sample_rate"])
    return {"out.stereo": to_stereo(audio.waveform)[None], "out.duration": torch.tensor(audio.duration)}


OPERATIONS = {
    ("caption_cases", "caption_files"): caption_file,
    ("caption_cases", "prefix_removal"): opening_removed,
    ("caption_cases", "caption_response_parsing"): answer_parsed,
    ("caption_cases", "column_roles"): roles,
    ("process_videos", "bucket selection"): bucket_selection,
    ("process_videos", "resize, centre crop, clamp, normalise"): resize_crop,
    ("process_videos", "VAE-aligned temporal subsampling"): temporal_subsample,
    ("process_videos", "tiled encode blending with a toy encoder"): tiled_encode,
    ("process_videos", "video mask to latent grid"): mask_on_grid,
    ("process_videos", "audio mask to latent steps"): audio_mask_on_steps,
    ("process_videos", "channel downmix before the audio VAE"): downmix,
    ("validation_runner", "resize_and_center_crop"): resize_crop,
    ("validation_runner", "reference video preparation"): reference_preparation,
    ("datasets", "precomputed files -> collated batch"): precomputed_batch,
    ("config_cases", "cases"): config,
    ("dataset_discovery", "cases"): discovery,
}
