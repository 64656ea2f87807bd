"""What installs: one distribution of all packages, its parts, the lock file, and what messages advise to install."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ltx_core import __version__
from tests.badges import FOLDER, draw, facts, path_of

ROOT = Path(__file__).resolve().parents[1]
PARTS = sorted((ROOT / "packages").iterdir())
ENTRIES = ("scripts", "entry-points")


@cache
def read(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text())


def project(folder: Path) -> dict[str, Any]:
    return read(str((folder / "pyproject.toml").relative_to(ROOT)))["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.lower())


def third_party(requirements: list[str]) -> set[str]:
    return {one for one in requirements if not one.startswith("ltx")}


def test_the_whole_has_the_code_and_the_data_of_its_parts() -> None:
    settings = read("pyproject.toml")["tool"]["setuptools"]
    folders = [str((part / "src").relative_to(ROOT)) for part in PARTS]
    assert sorted(settings["packages"]["find"]["where"]) == folders
    data: dict[str, list[str]] = {}
    for part in PARTS:
        data |= read(f"packages/{part.name}/pyproject.toml")["tool"]["setuptools"]["package-data"]
    assert settings["package-data"] == data


def test_the_whole_requires_what_its_parts_require() -> None:
    whole = read("pyproject.toml")["project"]
    optional = [one for extra in whole["optional-dependencies"].values() for one in extra]
    parts = [project(part) for part in PARTS]
    required = {one for part in parts for one in third_party(part["dependencies"])}
    extras = {name: set(ones) for part in parts for name, ones in part.get("optional-dependencies", {}).items()}
    assert required <= {*whole["dependencies"], *optional}
    assert set(whole["dependencies"]) <= required
    for name, ones in extras.items():
        assert third_party(list(ones)) <= set(whole["optional-dependencies"].get(name, ())), f"extra {name}"


def test_the_whole_has_the_commands_and_models_of_its_parts() -> None:
    found: dict[str, dict[str, str]] = {}
    for part in PARTS:
        for group, entries in _entries(project(part)).items():
            found[group] = found.get(group, {}) | entries
    assert _entries(read("pyproject.toml")["project"]) == found


def _entries(table: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {"scripts": table.get("scripts", {})} | table.get("entry-points", {})


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_is_pinned_to_its_siblings(part: Path) -> None:
    """The names ltx-core and ltx-pipelines belong to others on the index: ours have a prefix, and one version."""
    table = project(part)
    assert table["name"] == part.name.replace("ltx-", "ltx-workshop-") and table["version"] == __version__
    optional = [one for extra in table.get("optional-dependencies", {}).values() for one in extra]
    siblings = {project(other)["name"] for other in PARTS}
    for one in (one for one in [*table["dependencies"], *optional] if one.startswith("ltx")):
        name, _, version = one.partition("==")
        assert name in siblings and version == __version__, one


def test_the_whole_has_the_same_version() -> None:
    assert read("pyproject.toml")["project"]["version"] == __version__


def locked() -> dict[str, dict[str, Any]]:
    return {package["name"]: package for package in read("uv.lock")["package"]}


def test_the_lock_file_is_of_this_project() -> None:
    """What `uv lock --check` says, without uv: every requirement stands in it as it does in the project files."""
    packages = locked()
    for folder in (ROOT, *PARTS):
        table = project(folder)
        optional = [one for extra in table.get("optional-dependencies", {}).values() for one in extra]
        wanted = {normal(re.split(r"[>=<]", one)[0]) for one in [*table["dependencies"], *optional]}
        listed = packages[table["name"]].get("metadata", {}).get("requires-dist", [])
        assert {one["name"] for one in listed} == wanted, f"{folder.name}: run `make lock`"
        given = {normal(re.split(r"[>=<]", one)[0]): one for one in third_party([*table["dependencies"], *optional])}
        for one in listed:
            assert one["name"] not in given or given[one["name"]].partition(";")[0].endswith(one["specifier"]), one


def test_the_lock_file_has_the_tested_versions_from_the_public_index() -> None:
    packages = locked()
    for line in (ROOT / "constraints.txt").read_text().split():
        name, _, version = line.partition("==")
        assert packages[normal(name)]["version"] == version, f"{line}: run `make lock`"
    sources = {package["source"]["registry"] for package in packages.values() if "registry" in package["source"]}
    assert sources == {"https://pypi.org/simple"}
    hosts = set(re.findall(r'url = "https?://([^/]+)/', (ROOT / "uv.lock").read_text()))
    assert hosts == {"files.pythonhosted.org"}


def test_dependencies_are_bounded_from_above_and_locked_by_digest() -> None:
    for folder in (ROOT, *PARTS):
        table = project(folder)
        optional = [one for extra in table.get("optional-dependencies", {}).values() for one in extra]
        for one in third_party([*table["dependencies"], *optional]):
            assert ",<" in one, f"{folder.name}: {one} has no upper bound"
    text = (ROOT / "uv.lock").read_text()
    files = re.findall(r"\{ url = \"[^}]*\}", text)
    assert len(files) > 500 and all('hash = "sha256:' in file for file in files)


def test_messages_advise_to_install_only_what_the_index_has() -> None:
    """Names after `pip install` in sources and documents are packages of the lock file, or folders."""
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    texts += [path for part in PARTS for path in (part / "src").rglob("*.py")]
    for path in texts:
        for advice in re.findall(r"pip install ([^`#\n{]+)", path.read_text()):
            for word in advice.replace('"', " ").replace("'", " ").split():
                name = word.partition("[")[0]
                folder = name == "." or (ROOT / name).is_dir()
                assert folder or name.startswith("-") or normal(name) in locked(), f"{path.name}: pip install {word}"


def test_what_a_message_calls_installable_is_required() -> None:
    from ltx_pipelines.cli.errors import DISTRIBUTION_OF

    table = read("pyproject.toml")["project"]
    optional = [one for extra in table["optional-dependencies"].values() for one in extra]
    required = {normal(one.split(">=")[0]) for one in [*table["dependencies"], *optional]}
    assert {normal(name) for name in DISTRIBUTION_OF.values()} <= required


WITHOUT = """
import sys
sys.modules["torch"] = None
sys.argv = ["ltx", *{line}]
from ltx_pipelines.cli import main
sys.exit(main())
"""


def without_torch(*line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """An `ltx` command in a fresh interpreter that finds no torch."""
    code = WITHOUT.format(line=list(line))
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("line", ["demo", "tiny train", "tiny eval", "distilled --prompt ball", "ltxv --prompt ball"])
def test_without_torch_a_command_says_how_to_install_it(line: str, tmp_path: Path) -> None:
    ended = without_torch(*line.split(), cwd=tmp_path)
    advice = "ltx: torch is not installed: `pip install torch`, or the build for your GPU from pytorch.org\n"
    assert (ended.returncode, ended.stderr) == (1, advice)


def test_without_torch_the_doctor_names_it(tmp_path: Path) -> None:
    ended = without_torch("doctor", cwd=tmp_path)
    assert ended.returncode == 0 and not ended.stderr
    assert "torch is not installed: `pip install torch`" in ended.stdout and "libx264" in ended.stdout


def test_every_part_has_a_readme_that_links_to_what_is_there() -> None:
    for part in PARTS:
        text = (part / project(part)["readme"]).read_text()
        pages = re.findall(r"`(docs/\S+\.md)`", text)
        assert text.startswith(f"# {part.name}\n") and all((ROOT / page).is_file() for page in pages)


def test_the_badges_of_the_readme_say_what_is_so() -> None:
    shown = re.findall(r"!\[(.*?): (.*?)\]\((docs/badges/.*?)\)", (ROOT / "README.md").read_text())
    assert {label: value for label, value, _ in shown} == facts()
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(path_of(label).name for label, *_ in shown)
    for label, value, path in shown:
        assert (ROOT / path).read_text() == draw(label, value), "python -m tests.badges draws it anew"
