"""Make a clip with a trained adapter, as validation does: ``python inference.py --model-path ... --prompt ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ltx_trainer.cli import one_line_errors

Lora = Annotated[list[str] | None, typer.Option(help="Adapter, as FILE or FILE:STRENGTH; may be given several times.")]


def main(
    model_path: Annotated[Path, typer.Option(help="Unified checkpoint, or the transformer of a split pack.")],
    prompt: Annotated[str, typer.Option(help="What to make.")],
    output: Annotated[Path, typer.Option(help="Where to; a number and the suffix are added.")] = Path("sample"),
    text_encoder_path: Annotated[Path | None, typer.Option(help="Gemma folder, or packed text encoder.")] = None,
    video_vae_path: Annotated[Path | None, typer.Option(help="Video VAE of a split pack.")] = None,
    audio_vae_path: Annotated[Path | None, typer.Option(help="Audio VAE of a split pack.")] = None,
    lora: Lora = None,
    config: Annotated[Path | None, typer.Option(help="YAML of a `validation` section: sizes, guidance, steps.")] = None,
) -> None:
    """Make one sample."""
    with one_line_errors():
        import yaml

        from ltx_trainer.inference import make_samples
        from ltx_trainer.model_files import ModelFiles
        from ltx_trainer.validation_config import ValidationConfig

        section = yaml.safe_load(config.read_text(encoding="utf-8")) if config is not None else {}
        settings = ValidationConfig.model_validate({**section, "samples": [{"prompt": prompt}]})
        files = ModelFiles.of(model_path, text_encoder_path, video_vae_path, audio_vae_path)
        for path in make_samples(files, settings, output, tuple(parse_lora(text) for text in lora or ())):
            typer.echo(path)


def parse_lora(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:STRENGTH``."""
    path, _, strength = text.rpartition(":")
    try:
        return (Path(path), float(strength)) if path else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


if __name__ == "__main__":
    typer.run(main)
