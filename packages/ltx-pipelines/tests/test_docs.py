"""Every command and program in the documentation runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ltx_pipelines.cli.app import run
from ltx_pipelines.pipeline import pipelines
from ltx_pipelines.utils.media_io import probe_video

DOCS = Path(__file__).resolve().parents[3] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = DOCS.parent / "README.md"


def blocks(name: str, kind: str) -> list[str]:
    return [body for language, body in BLOCK.findall((DOCS / name).read_text()) if language == kind]


def commands(name: str) -> list[str]:
    return [line for block in blocks(name, "sh") for line in block.splitlines() if line.startswith("ltx ")]


@pytest.mark.parametrize("line", commands("pipelines.md"))
def test_commands_of_pipelines(line: str, here: Path) -> None:
    before = set(here.iterdir())
    assert run([*shlex.split(line)[1:], "--quiet"]) == 0
    made = set(here.iterdir()) - before
    assert len(made) == 1
    if (clip := made.pop()).suffix == ".mp4":
        assert probe_video(clip).has_audio


def test_commands_of_cli(here: Path) -> None:
    """They build on each other, so they run in one folder."""
    for line in commands("cli.md"):
        assert run(shlex.split(line)[1:]) == 0, line
    names = {"demo.mp4", "demo.png", "bell.mp4", "bell.png", "bell-again.mp4", "other.mp4", "draft.mp4", "final.mp4"}
    assert names <= {path.name for path in here.iterdir()}
    assert probe_video(here / "final.mp4").width == 2 * probe_video(here / "draft.mp4").width


def test_the_first_command_of_the_readme(here: Path) -> None:
    line = next(line for line in README.read_text().splitlines() if line.startswith("ltx generate"))
    assert run(shlex.split(line)[1:]) == 0
    assert probe_video(here / "ball.mp4").has_audio


def test_every_pipeline_has_a_command_in_the_documentation() -> None:
    shown = {shlex.split(line)[1] for line in commands("pipelines.md")}
    assert pipelines().keys() <= shown
    table = (DOCS / "pipelines.md").read_text()
    for command, kind in pipelines().items():
        assert f"| `{command}` | `{kind.__name__}` |" in table


@pytest.mark.parametrize("program", blocks("pipelines.md", "python"))
def test_programs(program: str, here: Path, small_model: Path) -> None:
    names = {"MODEL": str(small_model)}
    exec(compile(program, "docs/pipelines.md", "exec"), names)  # the documentation's own text
    assert len(program.splitlines()) < 60
    if "frames" in names:
        assert names["frames"] == 9
    else:
        assert probe_video(here / "bell.mp4").frames == 9
