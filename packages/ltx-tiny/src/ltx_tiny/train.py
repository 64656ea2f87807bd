"""The recipe that makes ltx-tiny, stage by stage: ``ltx tiny train``.

Every stage is a task of the one training loop, keeps its state under ``OUT/<stage>/`` and goes on from it, so the
command can be stopped and given again at any time. What a stage needs of the stages before it, it reads from their
newest exported files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError
from ltx_trainer.loop import CHECKPOINT_FOLDER, LoopSettings, Task, train
from ltx_trainer.scratch.data import Curriculum, Examples, Stage
from ltx_trainer.scratch.pictures import Curves
from ltx_trainer.state import newest

RECIPES = Path(__file__).parent / "recipes"
LOG_EVERY = 25  # steps
LOOP_KEYS = (
    *("learning_rate", "warmup_steps", "scheduler_type", "scheduler_params", "max_grad_norm", "ema_decay"),
    *("checkpoint_interval", "validation_interval", "optimizer_params", "validate_first"),
)
OPTIMIZER = {"betas": (0.9, 0.95), "weight_decay": 0.0}


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
        return Curriculum(tuple(Stage(**stage) for stage in self.stage(name)["curriculum"]))

    def examples(self, name: str, make: Callable[[int, int, Stage], Mapping[str, Any]]) -> Examples:
        return Examples(make, self.curriculum(name), int(self.values["workers"]))

    def settings(self, name: str) -> LoopSettings:
        """The loop's settings of a stage; the recipe's sizes and seed must agree when it is resumed."""
        stage = self.stage(name)
        given = {key: stage[key] for key in LOOP_KEYS if key in stage}
        return LoopSettings(
            steps=self.curriculum(name).steps,
            mixed_precision=stage.get("mixed_precision", self.values["mixed_precision"]),
            seed=self.seed,
            fingerprint={"seed": self.seed, "config": self.config.get(stage.get("section", ""), None)},
            **{"optimizer_params": OPTIMIZER, **given},
        )

    def exported(self, name: str) -> Path:
        """The newest file a stage has exported. Raises `ConfigError` when there is none yet."""
        folder = self.out / name / CHECKPOINT_FOLDER
        files = newest(folder.glob(f"{name}_step_*.safetensors"))
        if not files:
            raise ConfigError(f"{folder} holds no file of stage {name}, expected it to be trained first")
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


def run_task(recipe: Recipe, name: str, task: Task) -> bool:
    """Train one stage to its end, or until it is told to stop; whether it got to the end."""
    from accelerate import Accelerator

    folder = recipe.out / name
    settings = recipe.settings(name)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, cpu=recipe.device == "cpu")
    curves: Curves | None = None
    started, stopped = time.monotonic(), False
    for report in train(task, settings, folder, accelerator):
        if curves is None:
            curves = Curves(folder / "curves.csv", report.step)
        if report.step % LOG_EVERY == 0 or report.metrics or report.step == settings.steps:
            data_share = report.data_seconds / max(report.seconds, 1e-9)
            speed = {"lr": report.learning_rate, "seconds": report.seconds, "data_share": data_share}
            curves.add(report.step, {**report.losses, **report.metrics, **speed, "grad_norm": report.grad_norm})
            shown = {**report.losses, **report.metrics}
            figures = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
            say(f"{name} {report.step}/{settings.steps}  {figures}  {time.monotonic() - started:.0f} s")
        if report.metrics or report.files:
            curves.draw(folder / "curves.png")
        stopped = report.stopped
    if curves is not None:
        curves.close()
    return not stopped


def say(line: str) -> None:
    """Print a line of progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def video_vae(recipe: Recipe) -> Task:
    from ltx_tiny.examples import VideoExamples, held_out_clips
    from ltx_trainer.scratch.video_vae import VideoVaeTask

    check = recipe.stage("video_vae").get("check", {"clips": 4, "frames": 17, "sides": (128, 256)})
    held_out = [held_out_clips(check["clips"], check["frames"], side) for side in check["sides"]]
    examples = recipe.examples("video_vae", VideoExamples(recipe.seed))
    return VideoVaeTask(recipe.config, examples, held_out)


def audio_vae(recipe: Recipe) -> Task:
    from ltx_tiny.examples import SoundExamples, held_out_sound
    from ltx_trainer.scratch.audio_vae import AudioVaeTask

    samples = int(recipe.stage("audio_vae")["samples"])
    examples = recipe.examples("audio_vae", SoundExamples(recipe.seed, samples))
    return AudioVaeTask(recipe.config, examples, held_out_sound(8, samples))


def vocoder(recipe: Recipe) -> Task:
    from ltx_tiny.examples import SoundExamples, held_out_sound
    from ltx_trainer.scratch.vocoder import VocoderTask

    samples = int(recipe.stage("vocoder")["samples"])
    examples = recipe.examples("vocoder", SoundExamples(recipe.seed, samples))
    return VocoderTask(recipe.config, examples, held_out_sound(8, samples))


STAGES: dict[str, Callable[[Recipe], Task]] = {"video_vae": video_vae, "audio_vae": audio_vae, "vocoder": vocoder}


def run(recipe: Recipe, only: Iterable[str] = ()) -> None:
    """Run the stages in order, or only those named. Raises `ConfigError` for a stage there is not."""
    only = tuple(only)
    if unknown := [name for name in only if name not in STAGES]:
        raise ConfigError(f"stage is {unknown[0]!r}, expected one of {', '.join(STAGES)}")
    for name in only or STAGES:
        if not run_task(recipe, name, STAGES[name](recipe)):
            say(f"stopped in stage {name}; the same command goes on from here")
            return


if __name__ == "__main__":
    run(Recipe(read_recipe(), Path(sys.argv[1])), sys.argv[2:])
