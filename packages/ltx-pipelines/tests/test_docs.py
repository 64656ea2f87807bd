"""Every command and program in the documentation runs."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
def test_commands_of_pipelines(line: str, here: Path, loop: None) -> None:
    before = set(here.iterdir())
    assert run([*shlex.split(line)[1:], "--quiet"]) == 0
    made = set(here.iterdir()) - before
    assert len(made) == 1
    if (clip := made.pop()).suffix == ".mp4":
        assert probe_video(clip).has_audio == (" ltxv " not in line)


def test_commands_of_cli(here: Path) -> None:
    """They build on each other, so they run in one folder; the demo is run and judged in ltx-tiny's test_features."""
    lines = commands("cli.md")
    assert lines[0] == "ltx demo"
    for line in lines[1:]:
        assert run(shlex.split(line)[1:]) == 0, line
    names = {
        "bell.mp4",
        "ring.mp4",
        "ring.png",
        "ring-again.mp4",
        "other.mp4",
        "apart.png",
        "take-10.mp4",
        "take-11.mp4",
        "take-sheet.png",
        "draft.mp4",
        "final.mp4",
    }
    assert names <= {path.name for path in here.iterdir()}
    assert probe_video(here / "final.mp4").width == 2 * probe_video(here / "draft.mp4").width


def test_commands_of_large(here: Path) -> None:
    """They build on each other, so they run in one folder."""
    for line in (*commands("large.md"), *commands("camera.md")):
        assert run([*shlex.split(line)[1:], "--quiet"]) == 0, line
    large, fast, both = (probe_video(here / f"{name}.mp4") for name in ("large", "clip-fast", "both"))
    assert (large.width, large.height, fast.frames, fast.fps) == (256, 256, 33, 48)
    assert (both.width, both.frames) == (64, 17 + large.frames)


def test_commands_of_hdr(hdr_adapter: Path) -> None:
    for line in commands("hdr.md"):
        assert run(shlex.split(line)[1:]) == 0
    for name in ("lighthouse", "clip-hdr"):
        frames = probe_video(hdr_adapter / f"{name}.mp4").frames
        assert frames == len(list((hdr_adapter / f"{name}_exr").glob("frame_*.exr")))


def test_commands_of_performance(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for line in commands("performance.md"):
        assert run(shlex.split(line)[1:]) == 0, line
    assert probe_video(here / "sparse.mp4").has_audio
    said = capfd.readouterr().err
    assert (
        "the picture's self-attention computes" in said and "of 8 calls of the transformer ran its first block" in said
    )


def test_commands_of_scale(here: Path) -> None:
    """Those with --ray are run in tests/test_ray.py, torchrun in the trainer's test_fleet.py."""
    lines = [line for line in commands("scale.md") if "--ray" not in line and not line.startswith("torchrun")]
    assert len(lines) == 2
    for line in lines:
        assert run(shlex.split(line)[1:]) == 0, line
    assert probe_video(here / "shared.mp4").has_audio


def test_commands_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They build on each other, so they run in one folder."""
    monkeypatch.chdir(tmp_path)
    for line in commands("weights.md"):
        assert run(shlex.split(line)[1:]) == 0, line
    assert {"ball.mp4", "tiny-single", "tiny-q8", "tiny-extracted.safetensors"} <= {p.name for p in tmp_path.iterdir()}


def test_commands_of_long(here: Path, small_model: Path) -> None:
    (scenes,) = blocks("long.md", "yaml")
    (here / "scenes.yaml").write_text(scenes)
    for line in commands("long.md"):
        assert run(shlex.split(line)[1:]) == 0, line
    rain, story, night = (probe_video(here / f"{name}.mp4") for name in ("rain", "story", "night"))
    assert (rain.frames, story.frames, night.frames) == (48, 48, 48) and rain.has_audio
    (program,) = blocks("long.md", "python")
    exec(compile(program, "docs/long.md", "exec"), {"MODEL": str(small_model)})
    assert probe_video(here / "held.mp4").frames == 48


def test_commands_of_sound(here: Path) -> None:
    for line in commands("sound.md"):
        assert run(shlex.split(line)[1:]) == 0, line
    (program,) = blocks("sound.md", "python")
    exec(compile(program, "docs/sound.md", "exec"), {})
    for clip in ("boat.mp4", "boat-too.mp4"):
        assert probe_video(here / clip).has_audio and probe_video(here / clip).frames == 9
    assert "training_mode: audio_adapter" in (here / "sound.yaml").read_text()


@pytest.mark.backend("mlx")
def test_commands_of_mlx(here: Path, small_model: Path) -> None:
    pytest.importorskip("mlx.core", reason="mlx is not installed: `pip install mlx`")
    for line in commands("mlx.md"):
        assert run(shlex.split(line)[1:]) == 0, line
    assert {"ball.mp4", "ball-torch.mp4", "ball-q8.mp4"} <= {path.name for path in here.iterdir()}
    (program,) = blocks("mlx.md", "python")
    names: dict[str, object] = {}
    exec(compile(program.replace('"tiny"', f'"{small_model}"'), "docs/mlx.md", "exec"), names)
    assert names["plan"].backend == "mlx" and len(names["frames"]) > 0


def test_the_first_command_of_the_readme(here: Path) -> None:
    line = next(line for line in README.read_text().splitlines() if line.startswith("ltx generate"))
    assert run(shlex.split(line)[1:]) == 0
    assert probe_video(here / "ball.mp4").has_audio


def test_every_pipeline_has_a_command_in_the_documentation() -> None:
    shown = {shlex.split(line)[1] for line in (*commands("pipelines.md"), *commands("hdr.md"))}
    assert pipelines().keys() <= shown
    table = (DOCS / "pipelines.md").read_text()
    for command, kind in pipelines().items():
        assert f"| `{command}` | `{kind.__name__}` |" in table


@pytest.fixture
def loop(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pipeline of the documentation as a file in the current folder."""
    (text,) = (block for block in blocks("pipelines.md", "python") if "class LoopPipeline(" in block)
    assert len(text.splitlines()) < 60
    (here / "loop.py").write_text(text)
    monkeypatch.syspath_prepend(here)
    yield
    sys.modules.pop("loop", None)


@pytest.mark.parametrize("program", blocks("pipelines.md", "python"))
def test_programs(program: str, here: Path, small_model: Path, loop: None) -> None:
    names = {"MODEL": str(small_model)}
    exec(compile(program, "docs/pipelines.md", "exec"), names)  # the documentation's own text
    if "plan" in names:
        assert names["frames"] == 9
        assert [c.strength for c in names["plan"].stages[0].streams["video"].conditions] == [1.0, 0.5]
        assert "hold: float (0 to 1; default 1.0)" in names["HeldLoopPipeline"].__call__.__doc__
    elif "made" in names:
        assert probe_video(here / "bell.mp4").frames == 9


def test_the_program_of_camera(here: Path) -> None:
    (program,) = blocks("camera.md", "python")
    names: dict[str, Any] = {}
    exec(compile(program, "docs/camera.md", "exec"), names)
    assert [c.kind for c in names["plan"].stages[0].streams["video"].conditions] == ["image", "camera"]


def test_a_pipeline_in_a_file_is_a_command(here: Path, loop: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["loop:LoopPipeline", "--help"]) == 0
    assert "A clip that ends where it began." in capfd.readouterr().out
    assert run(shlex.split("plan waves --pipeline loop:LoopPipeline -i photo.png -f 9 --json")) == 0
    plan = json.loads(capfd.readouterr().out)["plan"]
    assert [c["frame_idx"] for c in plan["stages"][0]["streams"]["video"]["conditions"]] == [0, 8]
    assert run(["loop:Pipeline", "-p", "x"]) == 2 and run(["lop:LoopPipeline", "-p", "x"]) == 2


@pytest.mark.parametrize("page", [*sorted(DOCS.glob("*.md")), README], ids=lambda page: page.name)
def test_a_document_names_what_is_there(page: Path) -> None:
    """Links, files by their way from the root, and modules by their name or the end of their path."""
    text, root = page.read_text(), DOCS.parent
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    files = re.findall(r"`((?:benchmarks|docs|examples|packages|tests)/[\w./-]+)`", text)
    gone = {name for name in links if not (page.parent / name).exists()}
    gone |= {name for name in files if not (root / name).exists()}
    sources = [path.as_posix() for part in ("packages", "benchmarks", "tests") for path in (root / part).rglob("*.py")]
    modules = {name for name in re.findall(r"`([\w/]+\.py)`", text) if "/" not in name or name not in files}
    assert not gone | {name for name in modules if not any(path.endswith(f"/{name}") for path in sources)}


def test_the_configuration_reference_is_what_the_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reference"]) == 0
    assert capsys.readouterr().out == (DOCS / "configuration-reference.md").read_text()
