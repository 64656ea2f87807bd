"""The data sets of a run: what is not encoded yet is encoded before it begins, what was encoded before is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from ltx_core.errors import ConfigError
from ltx_trainer.data_config import DataSetConfig
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.processing.dataset import process_dataset
from ltx_trainer.processing.metadata import read_rows
from ltx_trainer.processing.options import ProcessingOptions

logger = logging.getLogger(__name__)

#: The column of a table that fills a directory; captions and the sound of videos need none.
COLUMNS = {
    "latents": "video",
    "reference_latents": "reference_video",
    "reference_audio_latents": "reference_audio",
    "video_masks": "video_mask",
    "audio_masks": "audio_mask",
    "loss_masks": "loss_mask",
    "keyframe_latents": "video",
}


def prepare_set(one: DataSetConfig, models: ModelFiles, directories: Iterable[str], device: str, workers: int) -> None:
    """Make the records of a set that a run reads from ``directories``.

    Raises `ConfigError` for a column that is missing, and where a directory stays empty, with the reason.
    """
    directories = list(directories)
    check_columns(one, directories)
    options = ProcessingOptions(
        fps=one.fps,
        skip_audio=one.skip_audio or "audio_latents" not in directories,
        audio_durations=one.audio_durations,
        trigger=one.trigger,
        reference_downscale_factor=one.reference_downscale_factor,
        long_clips=one.long_clips,
        stride=one.stride,
        keyframes=list(one.keyframes),
        control=one.control,
        workers=workers,
        device=device,
    )
    report = process_dataset(Path(one.path), models, one.resolution, options, one.root)
    for line in report.lines():
        logger.info("%s: %s", one.path, line)
    for name in directories:
        if not (one.root / name).is_dir():
            reason = next((why for place, _, why in report.skipped if place == name), None) or report.notes[-1:]
            raise ConfigError(f"{one.path}: nothing came of {name}/, which training_strategy reads: {reason}")


def check_columns(one: DataSetConfig, directories: Iterable[str]) -> None:
    """Refuse a set that lacks what a run is to learn from."""
    if "keyframe_latents" in directories and not one.keyframes:
        raise ConfigError(f"{one.path} names no keyframes, expected frames such as [0, -1] for keyframe_image")
    rows = read_rows(one.path)
    present = {role for row in rows for role in row.media} | ({"reference_video"} if one.control else set())
    for name in directories:
        column = COLUMNS.get(name)
        if column is not None and column not in present:
            there = ", ".join(sorted(present))
            raise ConfigError(f"{one.path} has no {column}, which training_strategy reads as {name}/; it has {there}")
