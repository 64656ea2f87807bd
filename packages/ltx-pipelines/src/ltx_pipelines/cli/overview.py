"""Clips that are made elsewhere: what their workers keep of what is said, and one view of them all."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from ltx_pipelines.cli.progress import PHASES, Reporter

if TYPE_CHECKING:
    from rich.progress import Progress


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
            else:
                self._print(line)
        if self._bars is not None:
            done = self._bars.tasks[self._bar].completed + 1
            self._bars.update(self._bar, advance=1, far=f"{done:.0f}/{self.clips}")
