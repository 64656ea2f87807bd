"""Badges of what is tested, drawn from what the project says of itself: ``python -m tests.badges``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.golden.case import REPOSITORY, find_cases
from tests.golden.waiting import WAITING

FOLDER = REPOSITORY / "docs" / "badges"
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{label}: {value}">
<rect width="{width}" height="20" rx="3" fill="#2f6f4f"/>
<path d="M3 0h{middle}v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#444"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="7" y="14" textLength="{label_width}">{label}</text>
<text x="{start}" y="14" textLength="{value_width}">{value}</text>
</g>
</svg>
"""


def facts() -> dict[str, str]:
    """What each badge says: versions the suite runs with, and how much it compares."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    least, end = map(int, re.findall(r"3\.(\d+)", project["project"]["requires-python"]))
    pinned = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split())
    cases = find_cases(REPOSITORY / "tests" / "golden" / "data")
    assert project["tool"]["mypy"]["disallow_untyped_defs"]
    return {
        "python": " | ".join(f"3.{minor}" for minor in range(least, end)),
        "torch": ".".join(pinned["torch"].split(".")[:2]),
        "recorded numbers": f"{sum(case.key not in WAITING for case in cases)} cases",
        "types": f"mypy {'.'.join(pinned['mypy'].split('.')[:2])}",
        "documented commands": "run by tests",
    }


def draw(label: str, value: str) -> str:
    label_width, value_width = (round(6.4 * len(text)) for text in (label, value))
    start = label_width + 21
    width = start + value_width + 7
    widths = {"label_width": label_width, "value_width": value_width, "width": width, "middle": label_width + 11}
    return SVG.format(label=label, value=value, start=start, **widths)


def path_of(label: str) -> Path:
    return FOLDER / f"{label.replace(' ', '-')}.svg"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for label, value in facts().items():
        path_of(label).write_text(draw(label, value))
