"""Every example and every cell of the notebook runs; on a random model, so that it takes seconds."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NOTEBOOK = json.loads((EXAMPLES / "first_clip.ipynb").read_text())


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example(script: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(script.read_text().splitlines()) < 40
    monkeypatch.setattr(sys, "argv", [script.name])
    runpy.run_path(str(script), run_name="__main__")


def test_notebook(here: Path) -> None:
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells)
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "first_clip.ipynb", "exec"), names)
