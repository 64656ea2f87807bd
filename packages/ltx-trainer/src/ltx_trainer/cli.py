"""``ltx dataset``: from raw clips to a precomputed data set. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltx_core.errors import LtxError

if TYPE_CHECKING:
    from ltx_trainer.processing.workspace import Report

dataset = typer.Typer(no_args_is_help=True, help="Make and inspect precomputed data sets.")

Metadata = Annotated[Path, typer.Argument(help="csv, json or jsonl with a row per example; paths relative to it.")]
ModelPath = Annotated[Path, typer.Option(help="Unified checkpoint, or the transformer of a split pack.")]
TextEncoderPath = Annotated[Path | None, typer.Option(help="Gemma folder, or packed text encoder of a split pack.")]
VideoVaePath = Annotated[Path | None, typer.Option(help="Video VAE of a split pack.")]
AudioVaePath = Annotated[Path | None, typer.Option(help="Audio VAE and vocoder of a split pack.")]
Buckets = Annotated[str | None, typer.Option(help="Sizes to bring clips to: WxHxF;WxHxF; F = 1 for stills.")]
OutputDir = Annotated[Path | None, typer.Option(help="Default: .precomputed beside the metadata file.")]
CaptionColumn = Annotated[str | None, typer.Option(help="Column of the captions.  [default: caption]")]
VideoColumn = Annotated[str | None, typer.Option(help="Column of the videos.  [default: video or media_path]")]
Trigger = Annotated[str | None, typer.Option(help="Word put in front of every caption.")]
RemovePrefixes = Annotated[bool, typer.Option("--remove-llm-prefixes", help='Drop openings like "The video shows".')]
SkipAudio = Annotated[bool, typer.Option("--skip-audio", help="Leave the sound of videos out.")]
AudioDurations = Annotated[str | None, typer.Option(help='Lengths of sound without video, seconds: "2.0;4.0".')]
Fps = Annotated[float | None, typer.Option(help="Bring all clips to this frame rate; sound stays in step.", min=0.1)]
DownscaleFactor = Annotated[int, typer.Option(help="References are this much smaller than their targets.", min=1)]
TemporalFactor = Annotated[int, typer.Option(help="References keep every n-th frame.", min=1)]
Tiling = Annotated[bool, typer.Option("--vae-tiling", help="Encode large pictures in pieces, in less memory.")]
RandomCrop = Annotated[bool, typer.Option("--random-crop", help="Cut clips anywhere, not at their centre.")]
BatchSize = Annotated[int, typer.Option(help="Clips, or captions, encoded together.", min=1)]
Workers = Annotated[int, typer.Option(help="Threads that read clips ahead.", min=0)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...  [default: the accelerator if there is one]")]
In8bit = Annotated[bool, typer.Option("--load-text-encoder-in-8bit", help="In half the memory.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make records again that are there already.")]
Decode = Annotated[bool, typer.Option("--decode", help="Write the latents as videos too, to look at.")]


@dataset.command()
def process(  # noqa: PLR0913
    metadata: Metadata,
    model_path: ModelPath,
    resolution_buckets: Buckets = None,
    text_encoder_path: TextEncoderPath = None,
    video_vae_path: VideoVaePath = None,
    audio_vae_path: AudioVaePath = None,
    output_dir: OutputDir = None,
    caption_column: CaptionColumn = None,
    video_column: VideoColumn = None,
    lora_trigger: Trigger = None,
    remove_llm_prefixes: RemovePrefixes = False,
    skip_audio: SkipAudio = False,
    audio_durations: AudioDurations = None,
    fps: Fps = None,
    reference_downscale_factor: DownscaleFactor = 1,
    reference_temporal_scale_factor: TemporalFactor = 1,
    vae_tiling: Tiling = False,
    batch_size: BatchSize = 1,
    workers: Workers = 2,
    device: Device = None,
    load_text_encoder_in_8bit: In8bit = False,
    decode: Decode = False,
    overwrite: Overwrite = False,
) -> None:
    """Captions, videos, sound, references and masks to a data set that training reads."""
    with one_line_errors():
        from ltx_trainer.model_files import ModelFiles
        from ltx_trainer.processing.dataset import process_dataset
        from ltx_trainer.processing.workspace import ProcessingOptions, default_device

        options = ProcessingOptions(
            fps=fps,
            skip_audio=skip_audio,
            audio_durations=_durations(audio_durations),
            trigger=lora_trigger,
            remove_openings=remove_llm_prefixes,
            reference_downscale_factor=reference_downscale_factor,
            reference_temporal_scale_factor=reference_temporal_scale_factor,
            tiling=vae_tiling,
            overwrite=overwrite,
            batch_size=batch_size,
            workers=workers,
            device=device or default_device(),
            text_encoder_in_8bit=load_text_encoder_in_8bit,
        )
        models = ModelFiles.of(model_path, text_encoder_path, video_vae_path, audio_vae_path)
        columns = (video_column, caption_column)
        _finish(process_dataset(metadata, models, resolution_buckets, options, output_dir, columns))
        if decode:
            root = output_dir or metadata.parent / ".precomputed"
            decode_command(root, root / "decoded", model_path, video_vae_path, audio_vae_path, device=device)


@dataset.command()
def videos(  # noqa: PLR0913
    metadata: Metadata,
    model_path: ModelPath,
    resolution_buckets: Buckets = None,
    video_vae_path: VideoVaePath = None,
    output_dir: OutputDir = None,
    video_column: VideoColumn = None,
    caption_column: CaptionColumn = None,
    fps: Fps = None,
    vae_tiling: Tiling = False,
    random_crop: RandomCrop = False,
    batch_size: BatchSize = 1,
    workers: Workers = 2,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Videos and pictures alone, to latents."""
    with one_line_errors():
        from ltx_trainer.model_files import ModelFiles
        from ltx_trainer.processing.dataset import VIDEO, process_dataset
        from ltx_trainer.processing.workspace import ProcessingOptions, default_device

        options = ProcessingOptions(
            fps=fps,
            tiling=vae_tiling,
            random_crop=random_crop,
            overwrite=overwrite,
            batch_size=batch_size,
            workers=workers,
            device=device or default_device(),
        )
        models = ModelFiles.of(model_path, video_vae_path=video_vae_path)
        columns = (video_column, caption_column)
        _finish(process_dataset(metadata, models, resolution_buckets, options, output_dir, columns, VIDEO))


@dataset.command()
def captions(  # noqa: PLR0913
    metadata: Metadata,
    model_path: ModelPath,
    text_encoder_path: TextEncoderPath = None,
    output_dir: OutputDir = None,
    video_column: VideoColumn = None,
    caption_column: CaptionColumn = None,
    lora_trigger: Trigger = None,
    remove_llm_prefixes: RemovePrefixes = False,
    batch_size: BatchSize = 1,
    device: Device = None,
    load_text_encoder_in_8bit: In8bit = False,
    overwrite: Overwrite = False,
) -> None:
    """Captions alone, to text features."""
    with one_line_errors():
        from ltx_trainer.model_files import ModelFiles
        from ltx_trainer.processing.dataset import CAPTIONS, process_dataset
        from ltx_trainer.processing.workspace import ProcessingOptions, default_device

        options = ProcessingOptions(
            trigger=lora_trigger,
            remove_openings=remove_llm_prefixes,
            overwrite=overwrite,
            batch_size=batch_size,
            device=device or default_device(),
            text_encoder_in_8bit=load_text_encoder_in_8bit,
        )
        models = ModelFiles.of(model_path, text_encoder_path)
        columns = (video_column, caption_column)
        _finish(process_dataset(metadata, models, None, options, output_dir, columns, CAPTIONS))


@dataset.command()
def check(
    metadata: Metadata,
    output_dir: OutputDir = None,
    video_column: VideoColumn = None,
    caption_column: CaptionColumn = None,
    prune: Annotated[bool, typer.Option("--prune", help="Delete records that no table names.")] = False,
) -> None:
    """Compare a prepared data set with its table: stale, missing, orphaned records; status 1 if any."""
    with one_line_errors():
        from ltx_trainer.processing.dataset import check_dataset

        found = check_dataset(metadata, output_dir, (video_column, caption_column))
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
        from ltx_trainer.processing.workspace import default_device

        files = find_media(media)
        captioner = transformers_captioner(model, device or default_device(), instruction or INSTRUCTION)
        failed = caption_media(files, output, captioner, override)
        for file, reason in failed:
            typer.echo(f"skipped {file}: {reason}")
        typer.echo(f"{output}: {len(files) - len(failed)} captions")


@dataset.command("split-scenes")
def split_scenes_command(  # noqa: PLR0913
    video: Annotated[Path, typer.Argument()],
    output: Annotated[Path, typer.Argument(help="Folder of the scenes.")],
    detector: Annotated[str, typer.Option(help="content, adaptive, threshold or histogram.")] = "content",
    threshold: Annotated[float | None, typer.Option(help="Of the detector; its own by default.")] = None,
    min_scene_length: Annotated[str, typer.Option(help='Frames, "2s" or a timecode.')] = "15",
    filter_shorter_than: Annotated[str | None, typer.Option(help="Leave shorter scenes out.")] = None,
    max_scenes: Annotated[int | None, typer.Option(min=1)] = None,
    duration: Annotated[str | None, typer.Option(help="Look at the beginning only.")] = None,
    save_images: Annotated[int, typer.Option(help="Pictures per scene to write too.", min=0)] = 0,
    stats_file: Annotated[Path | None, typer.Option(help="Figures per frame, as csv.")] = None,
    luma_only: Annotated[bool, typer.Option("--luma-only", help="Content, adaptive: ignore colour.")] = False,
    adaptive_window: Annotated[int, typer.Option(help="Adaptive: frames to each side.", min=1)] = 2,
    fade_bias: Annotated[float, typer.Option(help="Threshold: where in a fade to cut, -1 to 1.")] = 0.0,
    downscale: Annotated[int | None, typer.Option(help="Look at pictures this much smaller.", min=1)] = None,
    frame_skip: Annotated[int, typer.Option(help="Frames left out between those looked at.", min=0)] = 0,
) -> None:
    """Cut a long video into its scenes."""
    with one_line_errors():
        from ltx_trainer.processing.scenes import SceneOptions, split_scenes

        options = SceneOptions(
            detector=detector,
            threshold=threshold,
            min_scene_length=min_scene_length,
            filter_shorter_than=filter_shorter_than,
            max_scenes=max_scenes,
            duration=duration,
            luma_only=luma_only,
            adaptive_window=adaptive_window,
            fade_bias=fade_bias,
            downscale=downscale,
            frame_skip=frame_skip,
            stats_file=stats_file,
        )
        paths = split_scenes(video, output, options, save_images)
        typer.echo(f"{output}: {len(paths)} scenes")


@dataset.command("decode")
def decode_command(
    root: Annotated[Path, typer.Argument(help="Precomputed data set, or one of its directories of latents.")],
    output: Annotated[Path, typer.Argument(help="Folder of the videos.")],
    model_path: ModelPath,
    video_vae_path: VideoVaePath = None,
    audio_vae_path: AudioVaePath = None,
    with_audio: Annotated[bool, typer.Option("--with-audio", help="With their sound.")] = False,
    device: Device = None,
) -> None:
    """Write precomputed latents as videos, to look at."""
    with one_line_errors():
        from ltx_trainer.model_files import ModelFiles
        from ltx_trainer.processing.decode import decode_latents
        from ltx_trainer.processing.workspace import default_device

        models = ModelFiles.of(model_path, None, video_vae_path, audio_vae_path)
        paths = decode_latents(root, output, models, device or default_device(), with_audio)
        typer.echo(f"{output}: {len(paths)} videos")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a caller did wrong as one line and exit status 1."""
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


def _finish(report: Report) -> None:
    """Print a report; status 1 where nothing came of any row."""
    for line in report.lines():
        typer.echo(line)
    if report.skipped and not (report.written.total() or report.present.total()):
        raise typer.Exit(1)
