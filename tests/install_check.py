"""What a new user does, tried for real: build the wheels, install them in a clean environment, make a clip.

``python tests/install_check.py [3.11 3.12 ...]`` does so with every named Python that this machine has (the one that
runs it, unless named) and says which it has not. It needs the package index; the wheels of the dependencies come from
pip's cache when they were fetched before. Exit code 1 with the failed command, when anything fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
WHOLE = "ltx-workshop"
PARTS = [WHOLE + "-" + folder.name.removeprefix("ltx-") for folder in sorted((ROOT / "packages").iterdir())]
NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__", "tests", "docs")


def main(versions: list[str]) -> int:
    """Check each Python in turn; the exit code."""
    found = {version: interpreter(version) for version in versions or [HERE]}
    with tempfile.TemporaryDirectory(prefix="ltx-install-") as name:
        scratch = Path(name)
        wheels = None
        for version, python in found.items():
            if python is None:
                say(f"Python {version}: skipped, this machine has none")
                continue
            wheels = wheels or build(python, scratch)
            check(python, wheels, scratch / version)
            say(f"Python {version}: installed from wheels, made clips, brought no foreign ltx package")
    if wheels is None:
        say("none of these Pythons was found, nothing was checked")
    return int(wheels is None)


def interpreter(version: str) -> str | None:
    """A Python of this version: the one that runs this, one on the path, or one that pyenv or uv keeps."""
    if version == HERE:
        return sys.executable
    kept = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    kept += [*Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/python")]
    for python in filter(None, (shutil.which(f"python{version}"), *map(str, kept))):
        asked = subprocess.run([python, "-c", "import ensurepip"], capture_output=True, check=False)
        if asked.returncode == 0:  # a stand-in on the path may have no Python behind it
            return python
    return None


def build(python: str, scratch: Path) -> Path:
    """Wheels of the whole and of every part, built from a copy, so that no left-over of an earlier build gets in."""
    sources, wheels = scratch / "sources", scratch / "wheels"
    shutil.copytree(ROOT, sources, ignore=NOT_SOURCES)
    venv = environment(python, scratch / "build")
    folders = [str(sources), *(str(folder) for folder in sorted((sources / "packages").iterdir()))]
    run(venv / "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, *folders)
    return wheels


def check(python: str, wheels: Path, folder: Path) -> None:
    """The parts by name, then the whole in their place, each with a clip; then what is said without torch."""
    folder.mkdir()
    bin_folder = environment(python, folder / "venv")
    pip = [bin_folder / "python", "-m", "pip"]
    install = [*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", "--find-links", wheels]
    run(*install, *PARTS)
    assert ours(pip) == set(PARTS), f"installed {ours(pip)}, expected {PARTS}"
    make_clip(bin_folder, folder / "parts")
    run(*pip, "uninstall", "--quiet", "--yes", *PARTS)
    run(*install, f"{WHOLE}[train]")
    assert ours(pip) == {WHOLE}, f"installed {ours(pip)}, expected {WHOLE}"
    make_clip(bin_folder, folder / "whole")
    run_readme(bin_folder, folder / "whole")
    run(*pip, "uninstall", "--quiet", "--yes", "torch")
    for line in (["demo"], ["generate", "a ball"], ["tiny", "train"]):
        ended = subprocess.run([bin_folder / "ltx", *line], cwd=folder, capture_output=True, text=True, check=False)
        said = ended.stderr.strip()
        assert ended.returncode == 1 and "pip install torch" in said and "\n" not in said, f"ltx {line}: {said}"
    assert "pip install torch" in run(bin_folder / "ltx", "doctor", cwd=folder)


def environment(python: str, folder: Path) -> Path:
    """A new virtual environment; its folder of programs."""
    run(python, "-m", "venv", folder)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def ours(pip: list[str | Path]) -> set[str]:
    """Everything installed that calls itself ltx."""
    listed = json.loads(run(*pip, "list", "--format", "json"))
    return {package["name"] for package in listed if package["name"].lower().startswith("ltx")}


def make_clip(bin_folder: Path, folder: Path) -> None:
    """`ltx demo` in an empty folder, away from the sources."""
    folder.mkdir()
    run(bin_folder / "ltx", "demo", "--quiet", cwd=folder)
    assert (folder / "demo.mp4").stat().st_size > 10_000, "the demo's clip is empty"


def run_readme(bin_folder: Path, folder: Path) -> None:
    """The Python program of the README, as printed."""
    program = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    run(bin_folder / "python", "-c", program, cwd=folder)
    assert (folder / "ball.mp4").stat().st_size > 10_000, "the README's clip is empty"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command without this checkout on its path; what it printed. Says what failed, and stops."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    if ended.returncode:
        say(f"failed: {' '.join(map(str, command))}\n{ended.stdout}\n{ended.stderr}")
        raise SystemExit(1)
    return ended.stdout


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
