"""Comparing two ways to compute one thing, and tables of the results."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ltx_core.model.common.meter import Meter

Arm = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    """Settings of a run of benchmarks."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 5


@dataclass
class Table:
    """Rows of text under a title."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]

        def line(row: Sequence[str]) -> str:
            cells = [
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        body = [line(self.columns), line(["-" * w for w in widths]), *map(line, self.rows)]
        return "\n".join([self.title, "", *body, *(f"* {note}" for note in self.notes), ""])


@dataclass(frozen=True)
class Timing:
    """Seconds of every arm in every round, and what the arms gave."""

    seconds: Mapping[str, Sequence[float]]
    results: Mapping[str, Any]
    peaks: Mapping[str, int]

    def median(self, arm: str) -> float:
        return statistics.median(self.seconds[arm])

    def ratio(self, arm: str, to: str) -> float:
        """Median over the rounds of the quotient of two arms."""
        return statistics.median(a / b for a, b in zip(self.seconds[arm], self.seconds[to], strict=True))

    def difference(self, arm: str, to: str) -> float:
        """Largest absolute difference between what two arms gave."""
        return max_difference(self.results[arm], self.results[to])


def tensors_of(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def max_difference(left: Any, right: Any) -> float:
    pairs = zip(tensors_of(left), tensors_of(right), strict=True)
    return max((float((a.float() - b.float()).abs().max()) for a, b in pairs), default=0.0)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def alternate(arms: Mapping[str, Arm], options: Options, measure_memory: bool = True) -> Timing:
    """Run every arm once to warm up, then ``rounds`` times, every other round in reverse order."""
    results, peaks = {}, {}
    for name, arm in arms.items():
        results[name], peaks[name] = peak_of(arm, options.device) if measure_memory else (arm(), 0)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.rounds):
        order = list(arms) if number % 2 == 0 else list(reversed(arms))
        for name in order:
            synchronize(options.device)
            clock = clock_of(options.device)
            start = clock()
            arms[name]()
            synchronize(options.device)
            seconds[name].append(clock() - start)
    return Timing(seconds, results, peaks)


def clock_of(device: torch.device) -> Callable[[], float]:
    """On one CPU thread the processor time of this process, so that others on the machine do not count."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def peak_of(arm: Arm, device: torch.device) -> tuple[Any, int]:
    """The result of an arm, and the most bytes its tensors took at once besides those there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = arm()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    held = {tensor.untyped_storage()._cdata for tensor in gc.get_objects() if type(tensor) in TENSORS}
    live = Meter(held)
    with live:
        result = arm()
    return result, live.peak


TENSORS = (Tensor, torch.nn.Parameter)
COMPARISON = ("case", "plain s", "improved s", "plain / improved", "max abs diff", "plain MB", "improved MB")


def comparison(name: str, timing: Timing, plain: str = "plain", improved: str = "improved") -> list[str]:
    """A row of ``COMPARISON``."""
    return [
        name,
        f"{timing.median(plain):.3f}",
        f"{timing.median(improved):.3f}",
        f"{timing.ratio(plain, improved):.3f}",
        f"{timing.difference(plain, improved):.1e}",
        f"{timing.peaks[plain] / 1e6:.1f}",
        f"{timing.peaks[improved] / 1e6:.1f}",
    ]


def drain(items: Iterable[Any]) -> Any:
    """The last of the items."""
    last = None
    for last in items:  # noqa: B007
        pass
    return last
