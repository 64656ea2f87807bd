"""The recipe that makes ltx-tiny, stage by stage: ``ltx tiny train``.

Every stage is a task of the one training loop, keeps its state under ``OUT/<stage>/`` and goes on from it, so the
command can be stopped and given again at any time. What a stage needs of the stages before it, it reads from their
newest exported files. Beside each state lie ``metrics.csv``, ``curves.png`` and ``samples/``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from statistics import fmean

import typer

from ltx_core.errors import ConfigError
from ltx_core.precision import resolve_mixed
from ltx_tiny.bundle import reuse
from ltx_tiny.recipe import Recipe
from ltx_tiny.stages import STAGES
from ltx_trainer.loop import StepReport, Task, train
from ltx_trainer.pretrain.pictures import draw_curves
from ltx_trainer.run_log import LOG_NAME, CsvLog, read_csv_log

LOG_EVERY = 25  # steps


def run(recipe: Recipe, only: Iterable[str] = (), reused: Iterable[str] = ()) -> bool:
    """Run the stages in order, or only those named; whether all came to their end.

    Those ``reused`` are not trained: they are taken from the packaged weights.

    Raises `ConfigError` for a stage there is not and one whose forerunners have not been run.
    """
    only, reused = tuple(only), tuple(reused)
    if unknown := [name for name in (*only, *reused) if name not in STAGES]:
        raise ConfigError(f"stage is {unknown[0]!r}, expected one of {', '.join(STAGES)}")
    for name in only or STAGES:
        if name in reused:
            typer.echo(f"{name} is taken from the packaged weights: {reuse(name, recipe.config, recipe.exports(name))}")
            continue
        task = STAGES[name](recipe)
        if task is not None and not run_task(recipe, name, task):
            typer.echo(f"stopped in stage {name}; the same command goes on from here")
            return False
    return True


def run_task(recipe: Recipe, name: str, task: Task) -> bool:
    """Train one stage to its end, or until it is told to stop; whether it got to the end."""
    from accelerate import Accelerator

    folder, settings = recipe.out / name, recipe.settings(name)
    accelerator = Accelerator(
        mixed_precision=resolve_mixed(settings.mixed_precision, recipe.device).mixed, cpu=recipe.device == "cpu"
    )
    log: CsvLog | None = None
    since: list[StepReport] = []  # the last line of the log
    started, stopped = time.monotonic(), False
    for report in train(task, settings, folder, accelerator):
        log = log or CsvLog(folder, report.step - 1)
        since.append(report)
        if report.step % LOG_EVERY == 0 or report.metrics or report.files or report.non_finite:
            figures = {**mean_figures(since), **report.metrics}
            log.write(report.step, figures)
            draw_curves(folder / "curves.png", read_csv_log(folder / LOG_NAME))
            shown = "  ".join(f"{key} {figures[key]:.4g}" for key in (*report.losses, *report.metrics))
            typer.echo(f"{name} {report.step}/{settings.steps}  {shown}  {time.monotonic() - started:.0f} s")
            since.clear()
        stopped = report.stopped
    if log is None:
        typer.echo(f"{name} was trained to its end before, {settings.steps} steps")
    else:
        log.close()
    return not stopped


def mean_figures(reports: Sequence[StepReport]) -> dict[str, float]:
    """Means over some steps; the learning rate is the last one's."""
    figures = {name: fmean(report.losses[name] for report in reports) for name in reports[-1].losses}
    data, whole = sum(report.data_seconds for report in reports), sum(report.seconds for report in reports)
    return {
        **figures,
        "grad_norm": fmean(report.grad_norm for report in reports),
        "seconds": whole / len(reports),
        "data_share": data / max(whole, 1e-9),
        "lr": reports[-1].learning_rate,
    }
