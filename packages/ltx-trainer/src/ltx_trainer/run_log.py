"""Log of a run while it learns: rows of figures in files, and one live view in the terminal."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ltx_core.errors import ConfigError
from ltx_trainer.loop import StepReport

LOG_NAME = "metrics.csv"
COLUMNS = ("step", "name", "value")
LOGGED_SIDE = 800  # pixels of a picture in the event files; the file beside them is as it was made
VIDEO, SOUND, PICTURE = (".mp4",), (".wav",), (".png",)


class Log(Protocol):
    """Destination of figures. ``files`` are samples of a validation."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def show(self, step: int, files: Sequence[Path]) -> None: ...

    def close(self) -> None: ...


class CsvLog:
    """One row per figure, ``step,name,value``. A resumed run drops the rows of steps it makes again."""

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_NAME
        kept = [row for row in read_csv_log(path) if row[0] <= first_step] if first_step and path.is_file() else []
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(kept)
        temporary.replace(path)  # a run killed right here keeps what it had logged
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._writer.writerows((step, name, value) for name, value in figures.items())
        self._file.flush()

    def show(self, step: int, files: Sequence[Path]) -> None:
        return

    def close(self) -> None:
        self._file.close()


def read_csv_log(path: Path) -> list[tuple[int, str, float]]:
    """All figures of a run; a line that was being written when it was killed is left out."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in list(csv.reader(file))[1:]:
            try:
                step, name, value = row
                rows.append((int(step), name, float(value)))
            except ValueError:
                continue
    return rows


class TensorboardLog:
    """Event files under ``tensorboard/``."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, files: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        for path in files:
            if path.suffix in PICTURE:
                with Image.open(path) as image:
                    small = image.convert("RGB")
                    small.thumbnail((LOGGED_SIDE, LOGGED_SIDE))
                    self._writer.add_image(path.stem, np.asarray(small), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbLog:
    """A Weights & Biases run, continued under the id kept in the output folder."""

    def __init__(self, folder: Path, section: Any, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("wandb.enabled is true, which needs `pip install wandb`") from error
        note = folder / "wandb_run_id"
        known = note.read_text(encoding="utf-8").strip() if note.is_file() else None
        self._wandb, self._with_media = wandb, section.log_validation_videos
        self._run = wandb.init(
            project=section.project,
            entity=section.entity,
            name=folder.name,
            tags=list(section.tags),
            config=dict(config),
            id=known,
            resume="must" if known else None,
        )
        note.write_text(self._run.id, encoding="utf-8")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def show(self, step: int, files: Sequence[Path]) -> None:
        kinds = ((VIDEO, self._wandb.Video), (PICTURE, self._wandb.Image), (SOUND, self._wandb.Audio))
        media = [kind(str(path)) for path in files for suffixes, kind in kinds if path.suffix in suffixes]
        if media and self._with_media:
            self._run.log({"validation_samples": media}, step=step)

    def close(self) -> None:
        self._run.finish()


class Logs:
    """Several logs as one. Only the main process makes one with members."""

    def __init__(self, members: Iterable[Log]) -> None:
        self.members = list(members)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for member in self.members:
            member.write(step, figures)

    def show(self, step: int, files: Sequence[Path]) -> None:
        for member in self.members:
            member.show(step, files)

    def close(self) -> None:
        for member in self.members:
            member.close()


def figures_of(report: StepReport) -> dict[str, float]:
    """The figures of one optimizer step under their logged names."""
    figures = {f"train/{name}": value for name, value in report.losses.items()}
    return figures | {
        "train/learning_rate": report.learning_rate,
        "train/grad_norm": report.grad_norm,
        "train/step_time": report.seconds,
        "train/data_time": report.data_seconds,
    }


class LiveView:
    """One line that follows the run: losses per modality, learning rate, speed, time left, peak memory.

    In a terminal it is redrawn in place; elsewhere it is printed every ``PLAIN_INTERVAL`` steps.
    """

    PLAIN_INTERVAL = 20

    def __init__(
        self, total: int, peak_memory: Callable[[], int], live: bool = True, further: Callable[[], str] = str
    ) -> None:
        """``further`` gives what is to stand at the end of the line, if anything."""
        from rich.console import Console
        from rich.live import Live

        self.total, self.peak_memory, self.further = total, peak_memory, further
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, refresh_per_second=4, transient=False) if live else None
        self.live = self.live if self.console.is_terminal else None
        self.first: tuple[int, float] | None = None
        self.smoothed: dict[str, float] = {}

    def __enter__(self) -> LiveView:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, report: StepReport) -> None:
        """Show a finished step."""
        now = time.monotonic()
        self.first = self.first or (report.step - 1, now - report.seconds)
        for name, value in report.losses.items():
            self.smoothed[name] = 0.9 * self.smoothed.get(name, value) + 0.1 * value
        speed = (report.step - self.first[0]) / max(now - self.first[1], 1e-9)
        left = (self.total - report.step) / speed if speed else math.inf
        parts = [
            f"step {report.step}/{self.total}",
            *(f"{name.removeprefix('loss_')} {value:.4f}" for name, value in sorted(self.smoothed.items())),
            f"lr {report.learning_rate:.2e}",
            f"{speed:.2f} it/s",
            f"{clock(left)} left",
            f"peak {self.peak_memory() / 2**30:.1f} GiB",
            *filter(None, [self.further()]),
        ]
        if self.live is not None:
            self.live.update(self._bar(report.step, "  ".join(parts)))
        elif report.step % self.PLAIN_INTERVAL == 0 or report.step in (1, self.total):
            self.console.print("  ".join(parts), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def _bar(self, step: int, text: str) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        return Group(ProgressBar(total=self.total, completed=step), Text(text))


def clock(seconds: float) -> str:
    """``h:mm:ss``; ``?`` for no number."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
