"""At the end of a run: how many golden cases ran, per area."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from tests.golden.case import golden_root

CASE = re.compile(r"test_golden\.py::test_case(_on_mlx)?\[(\w+?)-")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, ()):
            if match := CASE.search(report.nodeid):
                counts.setdefault(match[2] + (" on MLX" if match[1] else ""), Counter())[outcome] += 1
    if counts:
        terminalreporter.section(f"golden cases from {golden_root()}")
        for area, outcomes in sorted(counts.items()):
            listed = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
            terminalreporter.line(f"{area:20} {sum(outcomes.values()):4} run: {listed}")
