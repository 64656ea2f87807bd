"""Progress of one generation or many: bars on a terminal, a line per phase elsewhere, JSON for programs, or nothing."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

    from ltx_pipelines.running.preview import PreviewMap
    from ltx_pipelines.utils.model_ledger import ModelLedger

Style = Literal["bars", "lines", "json", "quiet"]
PHASES = {
    "text": "reading the prompt",
    "conditions": "preparing",
    "upsample": "enlarging",
    "denoise": "denoising",
    "decode": "decoding and writing",
}


def style_of(given: Mapping[str, Any]) -> Style:
    """The style of progress that a line asks for."""
    if given.get("json"):
        return "json"
    if given.get("quiet"):
        return "quiet"
    return "bars" if sys.stderr.isatty() else "lines"


def is_watched() -> bool:
    """Whether somebody sees bars: on a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@dataclass
class Reporter:
    """Follows one generation. Text goes to standard error, JSON events to standard output."""

    style: Style
    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    _open: tuple[str, float] | None = None
    preview: PreviewMap | None = None  # draws what each step predicts
    _bars: Any = None
    _bar: Any = None

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Bars live inside this block."""
        if self.style == "bars":
            self._bars = self._make_bars()
            self._bars.start()
        try:
            yield self
        finally:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def note(self, text: str, **fields: Any) -> None:
        """A line for the user; ``fields`` go to programs instead."""
        if self.style == "json":
            self.emit("note", text=text, **fields)
        elif self.style != "quiet":
            self._print(text)

    def show_previews(self, ledger: ModelLedger) -> None:
        """Draw what each step predicts, where there are bars and the model's map of latents is known."""
        from ltx_pipelines.running.preview import find_map

        if self.style != "bars":
            self.note("previews are left out: they are shown on a terminal or in a notebook")
            return
        self.preview = find_map(ledger)
        if self.preview is None:
            self.note("previews come with the next clip: this one, decoded, teaches the colours of the model's latents")

    def event(self, event: Any) -> None:
        """One event of the engine."""
        if event.phase in ("done", "window"):
            return
        name = PHASES[event.phase] + (f", stage {event.stage + 1}" if event.phase == "denoise" else "")
        if event.step:
            self.steps += 1
            self._step(event)
            if event.note:
                self.note(event.note)
        else:
            self._begin(name, event)

    def wrote_frames(self, frames: int, total: int) -> None:
        """So many frames have gone to the writer."""
        if self.style == "json":
            self.emit("frames", done=frames, total=total)
        elif self._bars is not None:
            self._bars.update(self._bar, completed=frames, total=total)

    def finish(self) -> float:
        """Close the last phase; the seconds since the start."""
        self._close()
        return time.perf_counter() - self.started

    def emit(self, kind: str, **fields: Any) -> None:
        """One JSON object on standard output."""
        self._send(sys.stdout, json.dumps({"event": kind, **fields}))

    def _make_bars(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        kind: type[Progress] = Progress
        if self.preview is not None:
            from ltx_pipelines.cli.preview import PicturedProgress

            kind = PicturedProgress
        return kind(*columns, console=Console(stderr=True))

    def _begin(self, name: str, event: Any) -> None:
        self._close()
        self._open = (name, time.perf_counter())
        if self.style == "json":
            self.emit("phase", phase=event.phase, stage=event.stage + 1, total=event.total)
        elif self._bars is not None:
            self._bar = self._bars.add_task(name, total=event.total or None)

    def _step(self, event: Any) -> None:
        if self.style == "json":
            position = {"stage": event.stage + 1, "step": event.step, "total": event.total}
            self.emit("step", sigma=round(float(event.sigma), 6), **position)
        elif self._bars is not None:
            self._bars.update(self._bar, completed=event.step)
            if self.preview is not None and (latent := event.preview()) is not None:
                middle = latent.shape[2] // 2
                self._bars.show(self.preview.frames(latent[:, :, middle : middle + 1], 1)[0])

    def _close(self) -> None:
        if self._open is None:
            return
        name, began = self._open
        seconds = time.perf_counter() - began
        self._open = None
        if self._bars is not None:
            shown = self._bars.tasks[self._bar]
            self._bars.update(self._bar, total=shown.total or 1, completed=shown.total or 1)
        elif self.style == "lines":
            self._print(f"{name}: {seconds:.1f} s")

    def _print(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            self._send(sys.stderr, text)

    def _send(self, stream: TextIO, line: str) -> None:
        """A line, unless its reader has gone away: that costs the report and not the clip."""
        try:
            stream.write(line + "\n")
            stream.flush()
        except BrokenPipeError:
            self.style = "quiet"
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# Clips that are made elsewhere -------------------------------------------------------------------------------------


@dataclass
class Relayed(Reporter):
    """Keeps the lines on a clip for whoever asked for it from elsewhere, and tells how far it is."""

    tell: Any = None
    lines: list[str] = field(default_factory=list)

    def event(self, event: Any) -> None:
        super().event(event)
        if event.phase in PHASES:
            steps = f" {event.step}/{event.total}, stage {event.stage + 1}" if event.step else ""
            self.tell(PHASES[event.phase] + steps)

    def _send(self, stream: TextIO, line: str) -> None:
        self.lines.append(line)


@dataclass
class Overview(Reporter):
    """Bars on a terminal, one of all clips and one for each worker; elsewhere the lines on each clip as it ends."""

    clips: int = 0
    _rows: dict[int, Any] = field(default_factory=dict)  # bars of workers

    def _make_bars(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[far]}"))
        bars = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
        self._bar = bars.add_task("clips", total=self.clips, far=f"0/{self.clips}")
        return bars

    def seen(self, worker: int, job: Any, far: str) -> None:
        """A worker is so far with its job; with none it has just started, or ended one."""
        if self._bars is None:
            return
        if worker not in self._rows:
            self._rows[worker] = self._bars.add_task("", total=None, far="")
        if job is None or not far:
            self._bars.reset(self._rows[worker], total=None)
        self._bars.update(self._rows[worker], description=f"worker {worker}: {job or 'waiting'}", far=far)

    def ended(self, lines: Iterable[str]) -> None:
        """A clip has ended, and this is said of it."""
        for line in lines:
            if self.style == "json":
                self._send(sys.stdout, line)
            elif self.style != "quiet":
                self._print(line)
        if self._bars is not None:
            done = self._bars.tasks[self._bar].completed + 1
            self._bars.update(self._bar, advance=1, far=f"{done:.0f}/{self.clips}")


def human_bytes(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
