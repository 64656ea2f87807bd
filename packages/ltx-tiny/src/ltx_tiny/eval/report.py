"""Many results as one: shares with confidence intervals, lags, a table to read and JSON to keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.eval.detectors import ATTRIBUTES, Result

CONFIDENCE_Z = 1.96  # 95%
MISSED_MS = 1000.0  # what an event without any sound counts as


@dataclass(frozen=True)
class Share:
    """So many right of so many, with the 95% Wilson interval."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)


@dataclass(frozen=True)
class Spread:
    """Median of so many numbers, and where their bad end begins: a percentile; nan without any numbers."""

    count: int
    median: float
    tail: float

    @classmethod
    def of_lags(cls, lags_ms: Sequence[float]) -> Spread:
        """Magnitudes, with the 95th percentile as the tail; infinite lags count as ``MISSED_MS``."""
        return cls._of(np.minimum(np.abs(np.array(lags_ms, dtype=np.float64)), MISSED_MS), 95)

    @classmethod
    def of_ties(cls, ties: Sequence[float]) -> Spread:
        """Correlations or overlaps, with the 5th percentile as the tail."""
        return cls._of(np.array(ties, dtype=np.float64), 5)

    @classmethod
    def of_jitters(cls, jitters: Sequence[float]) -> Spread:
        """Spread of figures of which small ones are good, with the 95th percentile as the tail."""
        return cls._of(np.array(jitters, dtype=np.float64), 95)

    @classmethod
    def _of(cls, values: NDArray[np.float64], tail: float) -> Spread:
        if not len(values):
            return cls(0, float("nan"), float("nan"))
        return cls(len(values), float(np.median(values)), float(np.percentile(values, tail)))


@dataclass(frozen=True)
class Average:
    """Mean of so many numbers with its 95% interval, and the worst of them; nan without any numbers."""

    count: int
    mean: float
    half: float  # of the interval
    worst: float

    @classmethod
    def of(cls, values: Sequence[float], worst: Callable[[Sequence[float]], float] = min) -> Average:
        """``worst`` chooses the bad end: the least, or the greatest."""
        if not values:
            return cls(0, float("nan"), float("nan"), float("nan"))
        spread = float(np.std(values, ddof=1)) if len(values) > 1 and np.all(np.isfinite(values)) else float("nan")
        half = CONFIDENCE_Z * spread / len(values) ** 0.5
        return cls(len(values), float(np.mean(values)), half, float(worst(values)))

    @property
    def interval(self) -> tuple[float, float]:
        return self.mean - self.half, self.mean + self.half


@dataclass(frozen=True)
class Row:
    """One figure of a model that no prompt asks for, and the best it could be."""

    name: str
    best: str
    measured: Average | Spread
    digits: int = 1
    ends: tuple[str, str] = ("lowest", "95%")  # what the worst of an average and the tail of a spread are called


@dataclass(frozen=True)
class Summary:
    """An eval in numbers."""

    count: int
    shares: Mapping[str, Share]  # of each attribute, where it was stated; and "all stated"
    lag_ms: Spread
    tie: Spread  # correlations, where sound should move with sight
    outline: Spread  # overlaps of outlines with true ones
    jitter: Spread  # their changes from frame to frame


def wilson(right: int, total: int, z: float = CONFIDENCE_Z) -> tuple[float, float]:
    """The Wilson score interval of a share; (0, 1) when nothing was counted."""
    if not total:
        return 0.0, 1.0
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * float(np.sqrt(share * (1 - share) / total + z * z / (4 * total**2)))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def summarise(results: Sequence[Result]) -> Summary:
    """Count what was right, over all results that stated it."""
    shares = {}
    for name in ATTRIBUTES:
        marks = [result.correct[name] for result in results if name in result.stated]
        if marks:
            shares[name] = Share(sum(marks), len(marks))
    shares["all stated"] = Share(sum(result.passed for result in results), len(results))
    lags = [lag for result in results for lag in result.lags_ms]
    ties = [result.tie for result in results if result.tie is not None]
    outlines = Spread.of_ties([result.outline for result in results])
    jitters = Spread.of_jitters([result.jitter for result in results])
    return Summary(len(results), shares, Spread.of_lags(lags), Spread.of_ties(ties), outlines, jitters)


def table(summaries: Mapping[str, Summary]) -> str:
    """Summaries side by side, one column each, as lines of Markdown."""
    names = [name for name in (*ATTRIBUTES, "all stated") if any(name in s.shares for s in summaries.values())]
    rows = [["", *(f"{title} (n = {summary.count})" for title, summary in summaries.items())]]
    rows += [[name, *(_share(summary.shares.get(name)) for summary in summaries.values())] for name in names]
    rows.append(["lag, ms", *(_spread(summary.lag_ms, "95%", 0) for summary in summaries.values())])
    rows.append(["sound follows sight", *(_spread(summary.tie, "5%", 2) for summary in summaries.values())])
    rows.append(["outline, overlap", *(_spread(summary.outline, "5%", 3) for summary in summaries.values())])
    rows.append(["outline, jitter", *(_spread(summary.jitter, "95%", 4) for summary in summaries.values())])
    return _lines(rows)


def figures(rows: Sequence[Row]) -> str:
    """Figures one under the other, each beside the best it could be, as lines of Markdown."""
    cells = [["", "at best", "measured"]]
    for row in rows:
        measured = row.measured
        if isinstance(measured, Spread):
            said = _spread(measured, row.ends[1], row.digits)
        else:
            said = _average(measured, row.ends[0], row.digits)
        cells.append([row.name, row.best, said])
    return _lines(cells)


def write_json(
    path: Path,
    summaries: Mapping[str, Summary],
    details: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Sequence[Row] = (),
) -> None:
    """Write summaries and, under the same titles, one record per clip; figures under ``figures``."""
    content: dict[str, Any] = {
        title: {"summary": to_json(summary), "clips": list(details.get(title, ()))}
        for title, summary in summaries.items()
    }
    content["figures"] = {row.name: {"at_best": row.best, **_numbers(row.measured)} for row in rows}
    content |= {title: list(records) for title, records in details.items() if title not in summaries}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def to_json(summary: Summary) -> dict[str, Any]:
    """Plain dictionaries, lists, strings and numbers; None for what nothing was counted for."""
    shares = {
        name: {
            "right": share.right,
            "total": share.total,
            "share": round(share.value, 4) if share.total else None,
            "interval_95": [round(end, 4) for end in share.interval],
        }
        for name, share in summary.shares.items()
    }
    spreads = {"lag_ms": summary.lag_ms, "tie": summary.tie, "outline": summary.outline, "jitter": summary.jitter}
    return {"count": summary.count, "shares": shares} | {name: _numbers(spread) for name, spread in spreads.items()}


def finite(value: float) -> float | None:
    """A number JSON can hold; None for what is infinite or none."""
    return round(value, 4) if np.isfinite(value) else None


def _numbers(measured: Average | Spread) -> dict[str, Any]:
    if isinstance(measured, Spread):
        return {"count": measured.count, "median": finite(measured.median), "tail": finite(measured.tail)}
    interval = [finite(end) for end in measured.interval]
    return {
        "count": measured.count,
        "mean": finite(measured.mean),
        "interval_95": interval,
        "worst": finite(measured.worst),
    }


def _lines(rows: Sequence[Sequence[str]]) -> str:
    """Cells as a table in Markdown, the first row as its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _share(share: Share | None) -> str:
    if share is None or not share.total:
        return "-"
    low, high = share.interval
    return f"{share.value:.1%} ({low:.0%}-{high:.0%}, {share.right}/{share.total})"


def _spread(spread: Spread, tail: str, digits: int) -> str:
    if not spread.count:
        return "-"
    return f"median {spread.median:.{digits}f}, {tail} {spread.tail:.{digits}f} (of {spread.count})"


def _average(average: Average, worst: str, digits: int) -> str:
    if not average.count:
        return "-"
    low, high = average.interval
    interval = f" ({low:.{digits}f}-{high:.{digits}f})" if np.isfinite(average.half) else ""
    return f"{average.mean:.{digits}f}{interval}, {worst} {average.worst:.{digits}f} (of {average.count})"
