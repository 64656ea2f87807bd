"""``ltx train``: a training run from a YAML file, or from clips. Nothing heavy is imported before the command runs.

``torchrun --nproc_per_node N -m ltx_trainer.train_cli CONFIG`` runs the same command in several processes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from ltx_core.errors import ConfigError
from ltx_trainer.cli import log_to_stderr, one_line_errors
from ltx_trainer.command_options import expand_options, shown

Resume = Literal["latest", "none"]
STOPPED = 130

app = typer.Typer(add_completion=False, help="Fine-tune or train a model.")


def print_schema(wanted: bool) -> None:
    """Print every key a configuration may have, and stop."""
    if wanted:
        from ltx_trainer.config import TrainerConfig
        from ltx_trainer.config_schema import schema_markdown

        typer.echo(schema_markdown(TrainerConfig))
        raise typer.Exit


@dataclass(frozen=True)
class InitOptions:
    """Source of a new configuration."""

    init: str | None = field(
        default=None, metadata=shown("Write the configuration of a mode, and stop: --init list.", metavar="MODE")
    )
    data: Path | None = field(default=None, metadata=shown("With --init: clips or table that fill it in."))
    model: str | None = field(default=None, metadata=shown("With --init or clips: a checkpoint, a folder, or tiny."))
    output: Path | None = field(default=None, metadata=shown("With --init or clips: name of the configuration."))


@app.command(no_args_is_help=True)
@expand_options
def train(
    start: InitOptions,
    source: Annotated[
        Path | None, typer.Argument(help="YAML file; or a folder of clips, or a table of them, for a LoRA of them.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: optimization.steps=40.")
    ] = None,
    resume: Annotated[
        Resume, typer.Option(help="Go on from the newest state in the output folder, or begin in a new or empty one.")
    ] = "latest",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew in a folder in use; its checkpoints are deleted.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the memory the run will need, and stop.")] = False,
    disable_progress_bars: Annotated[
        bool, typer.Option("--disable-progress-bars", help="Print a line now and then instead of a live view.")
    ] = False,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Print every key of the configuration.", is_eager=True, callback=print_schema),
    ] = False,
) -> None:
    """Train what a configuration describes, on every device the launcher gives."""
    with one_line_errors():
        from ltx_trainer.config_file import read_config

        check_launch()
        if start.init is not None:
            typer.echo(initial(start.init, start.data or source, start.model, start.output))
            return
        if source is None:
            raise ConfigError("nothing to train from, expected a YAML file or a folder of clips")
        log_to_stderr(int(os.environ.get("RANK", "0")))
        path = source if source.suffix.lower() in (".yaml", ".yml") else configure(source, start.model, start.output)
        parsed = read_config(path, change or ())
        if plan:
            from ltx_trainer.memory_plan import plan_memory

            typer.echo("\n".join(plan_memory(parsed).lines()))
            return
        from ltx_trainer.trainer import LtxvTrainer

        trainer = LtxvTrainer(parsed, resume=resume == "latest", overwrite=overwrite)
        result = trainer.train(live=not disable_progress_bars)
        if trainer.accelerator.is_main_process:
            typer.echo(
                f"{result.weights} after {result.step} steps in {result.total_time_seconds / 60:.1f} min, "
                f"{result.steps_per_second:.2f} steps/s"
            )
    if result.stopped:
        raise typer.Exit(STOPPED)


def initial(mode: str, data: Path | None, model: str | None, output: Path | None) -> str:
    """Write the configuration of a mode, or list the modes; returns what to say of it."""
    from ltx_trainer.init import write_configuration
    from ltx_trainer.model_files import find_model
    from ltx_trainer.modes import MODES

    if mode == "list":
        return "\n".join(f"{name:16} {one.says}" for name, one in MODES.items())
    models = find_model(model) if model is not None else None
    path = write_configuration(mode, data, models, output or Path(f"{mode}.yaml"))
    return f"{path}: look through it, then `ltx train {path}`"


def configure(clips: Path, model: str | None, output: Path | None) -> Path:
    """The configuration of a LoRA of ``clips``: the one written for them before, or a new one for what they hold."""
    from ltx_trainer.init import usual_mode, write_configuration
    from ltx_trainer.model_files import find_model

    path = output or Path(f"{clips.resolve().stem}-lora.yaml")
    if path.is_file():
        typer.echo(f"{path} is there already and is used as it is")
        return path
    mode = usual_mode(clips)
    files = find_model(model)
    write_configuration(mode, clips, files, path)
    typer.echo(f"{path}: {mode} LoRA of {files.model_path.name}; change it and run `ltx train {path}`")
    if model is None:
        typer.echo("no --model was given: this is the small one that comes with the package")
    return path


def check_launch() -> None:
    """Refuse to be the one process of a launcher that was asked for several."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if launched and "WORLD_SIZE" not in os.environ and "PMI_SIZE" not in os.environ:
        raise ConfigError(
            "the launcher was asked for several processes and started one: `accelerate launch` needs --multi_gpu for "
            "several; `torchrun --nproc_per_node N -m ltx_trainer.train_cli CONFIG` works on every machine"
        )


if __name__ == "__main__":
    app()
