"""Values for the configurations of `ltx train --init` and `ltx train CLIPS`, read from the clips and the model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from ltx_core.errors import ConfigError, LtxError
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_trainer.model_files import ModelFiles, open_trainable
from ltx_trainer.modes import Facts, configuration, find_mode
from ltx_trainer.processing.metadata import Row, read_rows

AREA, SMALL_AREA = 768 * 512, 256 * 256  # pixels; of a model with at least, and with fewer than:
LARGE_MODEL = 20  # blocks
MOST_FRAMES, USUAL_RATE = 49, 24.0
GUIDED_PLACE = 28 / 48  # of the block perturbed for guidance


def write_configuration(mode: str, data: Path | None, models: ModelFiles | None, path: Path) -> Path:
    """Write the configuration of ``mode`` to ``path``, which must be new.

    ``data`` is a folder or table of clips, which sizes, frame rate and prompt are taken from; ``models`` are the files
    of the model. None for either leaves placeholders to fill in.

    Raises `ConfigError` for an unknown mode, clips that lack what it needs, and a file that is there already;
    `CheckpointError` for a model that the mode cannot train.
    """
    text = configuration(mode, gather(mode, data, models))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already; delete it, or give another name with --output") from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return path


def usual_mode(data: Path) -> str:
    """The likeliest mode for clips: with their sound where the first of them that can be read has any."""
    from ltx_media.images import is_image
    from ltx_media.video import probe_video

    for row in read_rows(data):
        if "video" not in row.media:
            return "text-to-audio"
        if is_image(row.media["video"]):
            continue
        try:
            return "audio-video" if probe_video(row.media["video"]).has_audio else "text-to-video"
        except LtxError:
            continue
    return "text-to-video"


def gather(mode: str, data: Path | None, models: ModelFiles | None) -> Facts:
    """Facts about the clips and the model; placeholders for the rest."""
    facts, wanted = Facts(), find_mode(mode)
    factors, area = SpatioTemporalScaleFactors.default(), AREA
    if models is not None:
        blocks = open_trainable(models, wanted.training_mode).network_config("transformer").num_layers
        factors, area = models.scale_factors(), AREA if blocks >= LARGE_MODEL else SMALL_AREA
        facts = replace(facts, models=models, stg_blocks=(int(blocks * GUIDED_PLACE),))
    if data is None:
        return facts
    rows = read_rows(data)
    lacking = [column for column in wanted.columns if not any(column in row.media for row in rows)]
    if "audio" in lacking and any("video" in row.media for row in rows):
        lacking.remove("audio")  # the sound of the videos
    if lacking:
        there = ", ".join(sorted({column for row in rows for column in row.media}))
        raise ConfigError(f"{mode} needs a column {lacking[0]}, {data} has {there}")
    first = next((row for row in rows if all(column in row.media for column in wanted.columns)), rows[0])
    size, fps = suggested_size(rows, factors, area)
    return replace(
        facts,
        data=str(data),
        size=size,
        fps=fps,
        prompt=first.caption,
        files=_files(first),
        has_video=any("video" in row.media for row in rows),
    )


def suggested_size(
    rows: list[Row], factors: SpatioTemporalScaleFactors, area: int
) -> tuple[tuple[int, int, int], float]:
    """Width, height and frames that suit the clips, ``area`` pixels at most or so, and their frame rate."""
    from ltx_media.images import is_image
    from ltx_media.video import probe_video

    infos = []
    for row in rows:
        try:
            if "video" in row.media:
                infos.append(probe_video(row.media["video"]))
        except LtxError:
            continue  # reported when it is prepared
    if not infos:
        return (768, 512, MOST_FRAMES), USUAL_RATE
    clips = [info for info in infos if not is_image(info.path)]
    aspects = sorted(info.width / info.height for info in infos)
    aspect, largest = aspects[len(aspects) // 2], max(info.width * info.height for info in infos)
    height = math.sqrt(min(area, largest) / aspect)
    frames = min((info.frames for info in clips), default=1)
    rates = sorted(float(info.fps) for info in clips) or [USUAL_RATE]
    size = (
        max(round(height * aspect / factors.width), 1) * factors.width,
        max(round(height / factors.height), 1) * factors.height,
        factors.snap_frames(min(frames, MOST_FRAMES)),
    )
    return size, round(rates[len(rates) // 2], 3)


def _files(row: Row) -> dict[str, str]:
    """The files of a row as a configuration names them: from the working directory where they lie below it."""
    here = Path.cwd()
    files = {}
    for role, path in row.media.items():
        absolute = path.absolute()
        files[role] = str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
    return files
