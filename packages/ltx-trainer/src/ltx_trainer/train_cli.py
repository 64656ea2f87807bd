"""``ltx train CONFIG``: a training run from a YAML file. Nothing heavy is imported before the command runs.

``accelerate launch -m ltx_trainer.train_cli CONFIG`` runs the same command in several processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ltx_trainer.cli import one_line_errors

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


@app.command(no_args_is_help=True)
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; `--schema` prints what it may hold.")],
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
        from ltx_trainer.config import read_config

        parsed = read_config(config)
        if plan:
            from ltx_trainer.memory_plan import plan_memory

            typer.echo("\n".join(plan_memory(parsed).lines()))
            return
        from ltx_trainer.run_log import log_to_stderr
        from ltx_trainer.trainer import LtxvTrainer

        trainer = LtxvTrainer(parsed, resume=resume == "latest", overwrite=overwrite)
        log_to_stderr(trainer.accelerator.process_index)
        result = trainer.train(live=not disable_progress_bars)
        if trainer.accelerator.is_main_process:
            typer.echo(
                f"{result.weights} after {result.step} steps in {result.total_time_seconds / 60:.1f} min, "
                f"{result.steps_per_second:.2f} steps/s"
            )
    if result.stopped:
        raise typer.Exit(STOPPED)


if __name__ == "__main__":
    app()
