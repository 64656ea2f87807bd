"""``ltx dataset``: from raw clips to a precomputed data set. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltx_core.errors import LtxError
from ltx_trainer.command_options import expand_options
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.processing.options import Columns, ProcessingOptions, SceneOptions, default_device

if TYPE_CHECKING:
    from ltx_trainer.processing.workspace import Report

dataset = typer.Typer(no_args_is_help=True, help="Make and inspect precomputed data sets.")

Metadata = Annotated[Path, typer.Argument(help="csv, json or jsonl with a row per example; paths relative to it.")]
Buckets = Annotated[str | None, typer.Option(help="Sizes to bring clips to: WxHxF;WxHxF; F = 1 for stills.")]
OutputDir = Annotated[Path | None, typer.Option(help="Default: .precomputed beside the metadata file.")]
AudioDurations = Annotated[str | None, typer.Option(help='Lengths of sound without video, seconds: "2.0;4.0".')]
Decode = Annotated[bool, typer.Option("--decode", help="Write the latents as videos too, to look at.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the accelerator by default.")]

ON_CLUSTER = ("ray", "ray_address", "ray_workers")
OF_VIDEOS = ("fps", "tiling", "random_crop", "overwrite", "batch_size", "workers", "device", *ON_CLUSTER)
OF_CAPTIONS = ("trigger", "remove_openings", "overwrite", "batch_size", "device", "text_encoder_in_8bit", *ON_CLUSTER)


@dataset.command()
@expand_options
def process(
    metadata: Metadata,
    models: ModelFiles,
    columns: Columns,
    options: ProcessingOptions,
    resolution_buckets: Buckets = None,
    output_dir: OutputDir = None,
    audio_durations: AudioDurations = None,
    decode: Decode = False,
) -> None:
    """Captions, videos, sound, references and masks to a data set that training reads."""
    with one_line_errors():
        from ltx_trainer.processing.dataset import process_dataset

        options = replace(options, audio_durations=_durations(audio_durations))
        _finish(process_dataset(metadata, models, resolution_buckets, options, output_dir, columns.names))
        if decode:
            root = output_dir or metadata.parent / ".precomputed"
            _decode(root, root / "decoded", models, options.device)


@dataset.command()
@expand_options
def videos(
    metadata: Metadata,
    models: Annotated[ModelFiles, ("model_path", "video_vae_path")],
    columns: Columns,
    options: Annotated[ProcessingOptions, OF_VIDEOS],
    resolution_buckets: Buckets = None,
    output_dir: OutputDir = None,
) -> None:
    """Videos and pictures alone, to latents."""
    with one_line_errors():
        from ltx_trainer.processing.dataset import VIDEO, process_dataset

        _finish(process_dataset(metadata, models, resolution_buckets, options, output_dir, columns.names, VIDEO))


@dataset.command()
@expand_options
def captions(
    metadata: Metadata,
    models: Annotated[ModelFiles, ("model_path", "text_encoder_path")],
    columns: Columns,
    options: Annotated[ProcessingOptions, OF_CAPTIONS],
    output_dir: OutputDir = None,
) -> None:
    """Captions alone, to text features."""
    with one_line_errors():
        from ltx_trainer.processing.dataset import CAPTIONS, process_dataset

        _finish(process_dataset(metadata, models, None, options, output_dir, columns.names, CAPTIONS))


@dataset.command()
@expand_options
def check(
    metadata: Metadata,
    columns: Columns,
    output_dir: OutputDir = None,
    prune: Annotated[bool, typer.Option("--prune", help="Delete records that no table names.")] = False,
) -> None:
    """Compare a prepared data set with its table: stale, missing, orphaned records; status 1 if any."""
    with one_line_errors():
        from ltx_trainer.processing.dataset import check_dataset

        found = check_dataset(metadata, output_dir, columns.names)
        for line in found.lines():
            typer.echo(line)
        root = output_dir or metadata.parent / ".precomputed"
        for path in found.orphans if prune else ():
            (root / path).unlink()
        gone = " deleted" if prune else ""
        typer.echo(f"{len(found.stale)} stale, {len(found.missing)} missing, {len(found.orphans)} orphans{gone}")
    if found.stale or found.missing or (found.orphans and not prune):
        raise typer.Exit(1)


@dataset.command()
def caption(
    media: Annotated[Path, typer.Argument(help="A video or picture, or a folder of them.")],
    output: Annotated[Path, typer.Option(help="json, jsonl, csv or txt.")] = Path("dataset.json"),
    model: Annotated[str, typer.Option(help="Folder or name of a downloaded model.")] = "Qwen/Qwen2.5-Omni-7B",
    instruction: Annotated[str | None, typer.Option(help="What to ask of each clip.")] = None,
    device: Device = None,
    override: Annotated[bool, typer.Option("--override", help="Caption again what has a caption.")] = False,
) -> None:
    """Write captions for clips with a language model on this machine."""
    with one_line_errors():
        from ltx_trainer.processing.captioning import caption_media, find_media
        from ltx_trainer.processing.transformers_captioner import INSTRUCTION, transformers_captioner

        files = find_media(media)
        captioner = transformers_captioner(model, device or default_device(), instruction or INSTRUCTION)
        failed = caption_media(files, output, captioner, override)
        for file, reason in failed:
            typer.echo(f"skipped {file}: {reason}")
        typer.echo(f"{output}: {len(files) - len(failed)} captions")


@dataset.command("split-scenes")
@expand_options
def split_scenes_command(
    video: Annotated[Path, typer.Argument()],
    output: Annotated[Path, typer.Argument(help="Folder of the scenes.")],
    options: SceneOptions,
    save_images: Annotated[int, typer.Option(help="Pictures per scene to write too.", min=0)] = 0,
) -> None:
    """Cut a long video into its scenes."""
    with one_line_errors():
        from ltx_trainer.processing.scenes import split_scenes

        paths = split_scenes(video, output, options, save_images)
        typer.echo(f"{output}: {len(paths)} scenes")


@dataset.command("decode")
@expand_options
def decode_command(
    root: Annotated[Path, typer.Argument(help="Precomputed data set, or one of its directories of latents.")],
    output: Annotated[Path, typer.Argument(help="Folder of the videos.")],
    models: Annotated[ModelFiles, ("model_path", "video_vae_path", "audio_vae_path")],
    with_audio: Annotated[bool, typer.Option("--with-audio", help="With their sound.")] = False,
    device: Device = None,
) -> None:
    """Write precomputed latents as videos, to look at."""
    with one_line_errors():
        _decode(root, output, models, device or default_device(), with_audio)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a caller's mistakes into one line and exit status 1."""
    try:
        yield
    except LtxError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def log_to_stderr(rank: int) -> None:
    """Messages of the main process from INFO on, of the others from WARNING on, with the rank in front."""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(levelname)s [rank {rank}] %(message)s" if rank else "%(levelname)s %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _durations(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in (text or "").split(";") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}, expected seconds such as 2.0;4.0") from error


def _decode(root: Path, output: Path, models: ModelFiles, device: str, with_audio: bool = False) -> None:
    from ltx_trainer.processing.decode import decode_latents

    typer.echo(f"{output}: {len(decode_latents(root, output, models, device, with_audio))} videos")


def _finish(report: Report) -> None:
    """Print a report; status 1 where nothing came of any row."""
    for line in report.lines():
        typer.echo(line)
    if report.skipped and not (report.written.total() or report.present.total()):
        raise typer.Exit(1)
