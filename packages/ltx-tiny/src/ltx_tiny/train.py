"""The recipe that makes ltx-tiny, stage by stage: ``ltx tiny train``.

Every stage is a task of the one training loop, keeps its state under ``OUT/<stage>/`` and goes on from it, so the
command can be stopped and given again at any time. What a stage needs of the stages before it, it reads from their
newest exported files. Beside each state lie ``metrics.csv``, ``curves.png`` and ``samples/``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ltx_core.errors import ConfigError
from ltx_trainer.loop import CHECKPOINT_FOLDER, LoopSettings, StepReport, Task, train
from ltx_trainer.run_log import LOG_NAME, CsvLog, read_csv_log
from ltx_trainer.scratch.data import Curriculum, Examples, Stage
from ltx_trainer.scratch.pictures import draw_curves
from ltx_trainer.state import newest

RECIPES = Path(__file__).parent / "recipes"
LOG_EVERY = 25  # steps
COMMON_KEYS = ("mixed_precision", "compile", "optimizer_type")  # of all stages, unless one says otherwise
LOOP_KEYS = (
    *("learning_rate", "warmup_steps", "scheduler_type", "scheduler_params", "max_grad_norm", "ema_decay"),
    *("checkpoint_interval", "validation_interval", *COMMON_KEYS),
)


@dataclass(frozen=True)
class Recipe:
    """The recipe of one run and where it keeps its files."""

    values: Mapping[str, Any]
    out: Path
    device: str = "cpu"

    @property
    def seed(self) -> int:
        return int(self.values["seed"])

    @property
    def config(self) -> dict[str, Any]:
        """The ``config`` of the checkpoint, all sections."""
        return dict(self.values["config"])

    def stage(self, name: str) -> Mapping[str, Any]:
        return self.values["stages"][name]

    def curriculum(self, name: str) -> Curriculum:
        return Curriculum(tuple(map(Stage.from_dict, self.stage(name)["curriculum"])))

    def examples(self, name: str, make: Callable[[int, int, Stage], Mapping[str, Any]]) -> Examples:
        return Examples(make, self.curriculum(name), int(self.values["workers"]))

    def settings(self, name: str) -> LoopSettings:
        """The loop's settings of a stage; the seed must agree when it is resumed."""
        stage = self.stage(name)
        given = {k: self.values[k] for k in COMMON_KEYS} | {k: stage[k] for k in LOOP_KEYS if k in stage}
        return LoopSettings(
            steps=self.curriculum(name).steps,
            seed=self.seed,
            fingerprint={"seed": self.seed},
            **given,
        )

    def exported(self, name: str) -> Path:
        """The newest file a stage has exported. Raises `ConfigError` when there is none yet."""
        folder = self.out / name / CHECKPOINT_FOLDER
        files = newest(folder.glob(f"{name}_step_*.safetensors"))
        if not files:
            raise ConfigError(f"{folder} holds no file of stage {name}, expected that stage to be run first")
        return files[0]


def read_recipe(overlay: str | None = None) -> dict[str, Any]:
    """The recipe, with the values of an overlay (``gpu`` or ``smoke``) put over it."""
    import yaml

    values = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    return values if overlay is None else merged(values, yaml.safe_load((RECIPES / f"{overlay}.yaml").read_text()))


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, mapping by mapping; lists and plain values are replaced whole."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def run(recipe: Recipe, only: Iterable[str] = ()) -> bool:
    """Run the stages in order, or only those named; whether all came to their end.

    Raises `ConfigError` for a stage there is not, or one whose forerunners have not been run.
    """
    from ltx_tiny.stages import STAGES

    only = tuple(only)
    if unknown := [name for name in only if name not in STAGES]:
        raise ConfigError(f"stage is {unknown[0]!r}, expected one of {', '.join(STAGES)}")
    for name in only or STAGES:
        task = STAGES[name](recipe)
        if task is not None and not run_task(recipe, name, task):
            say(f"stopped in stage {name}; the same command goes on from here")
            return False
    return True


def run_task(recipe: Recipe, name: str, task: Task) -> bool:
    """Train one stage to its end, or until it is told to stop; whether it got to the end."""
    from accelerate import Accelerator

    folder, settings = recipe.out / name, recipe.settings(name)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, cpu=recipe.device == "cpu")
    log: CsvLog | None = None
    since: list[StepReport] = []  # the last line of the log
    started, stopped = time.monotonic(), False
    for report in train(task, settings, folder, accelerator):
        log = log or CsvLog(folder, report.step - 1)
        since.append(report)
        if report.step % LOG_EVERY == 0 or report.metrics or report.files:
            figures = {**mean_figures(since), **report.metrics}
            log.write(report.step, figures)
            draw_curves(folder / "curves.png", read_csv_log(folder / LOG_NAME))
            shown = "  ".join(f"{key} {figures[key]:.4g}" for key in (*report.losses, *report.metrics))
            say(f"{name} {report.step}/{settings.steps}  {shown}  {time.monotonic() - started:.0f} s")
            since.clear()
        stopped = report.stopped
    if log is None:
        say(f"{name} was trained to its end before, {settings.steps} steps")
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


def say(line: str) -> None:
    """Print a line of progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
