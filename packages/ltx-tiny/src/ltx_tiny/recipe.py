"""The recipe that makes ltx-tiny, as data: every size and setting of a run, and where the run keeps its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError
from ltx_core.textfiles import read_yaml
from ltx_trainer.loop import CHECKPOINT_FOLDER, LoopSettings
from ltx_trainer.pretrain.data import Curriculum, Examples, Stage
from ltx_trainer.state import newest

RECIPES = Path(__file__).parent / "recipes"
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

    def exports(self, name: str) -> Path:
        """The folder that a stage exports to."""
        return self.out / name / CHECKPOINT_FOLDER

    def exported_file(self, name: str) -> Path:
        """The newest file a stage has exported. Raises `ConfigError` when there is none yet."""
        folder = self.exports(name)
        files = newest(folder.glob(f"{name}_step_*.safetensors"))
        if not files:
            raise ConfigError(f"{folder} holds no file of stage {name}, expected that stage to be run first")
        return files[0]


def read_recipe(overlay: str | None = None) -> dict[str, Any]:
    """The recipe, with the values of an overlay (``gpu`` or ``smoke``) put over it."""
    values: dict[str, Any] = read_yaml(RECIPES / "tiny.yaml")
    return values if overlay is None else merge(values, read_yaml(RECIPES / f"{overlay}.yaml"))


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, mapping by mapping; lists and plain values are replaced whole."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both
