"""The house has floors: imports may only point down, and packages may only import what they are allowed to.

Nor do imports go round in circles, and every module is entered: from a command, a documented function, a script or a
benchmark.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ROOT / "packages"

MAY_IMPORT = {
    "ltx_core": set(),
    "ltx_media": {"ltx_core"},
    "ltx_mlx": {"ltx_core"},
    "ltx_pipelines": {"ltx_core", "ltx_media"},
    "ltx_trainer": {"ltx_core", "ltx_media"},
    "ltx_studio": {"ltx_core", "ltx_media", "ltx_pipelines"},
    "ltx_tiny": {"ltx_core", "ltx_media", "ltx_trainer", "ltx_pipelines"},
}
# Doors of a package to another: files that may import it, when they are used.
DOORS = {"ltx_mlx.pipelines": {"ltx_pipelines"}, "ltx_mlx.generate": {"ltx_pipelines"}}
FLOOR = {
    "types": 0,
    "errors": 0,
    "exports": 0,
    "textfiles": 0,
    "fingerprint": 0,
    "precision": 0,
    "sections": 0,
    "utils": 0,
    "optimizations": 0,
    "model": 1,
    "components": 1,
    "guidance": 1,
    "networks": 2,
    "conditioning": 2,
    "text_encoders": 2,
    "loader": 2,
    "sampling": 3,
    "parallel": 3,
    "pipeline": 4,
}

#: Modules that nothing enters, and why they are there.
NOT_ENTERED: dict[str, str] = {}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES.iterdir() for path in (package / "src").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in MAY_IMPORT}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGES)))
def test_imports_point_down(path: Path) -> None:
    package, *rest = path.relative_to(next(p for p in path.parents if p.name == "src")).with_suffix("").parts
    for name in imported_modules(path):
        other, *room = name.split(".")
        allowed = MAY_IMPORT[package] | DOORS.get(".".join((package, *rest)), set())
        assert other == package or other in allowed, f"{package} imports {name}"
        if package == other == "ltx_core" and rest and room:
            here, there = FLOOR[rest[0]] if rest[0] != "__init__" else 0, FLOOR[room[0]]
            assert there <= here, f"{'.'.join(rest)} (floor {here}) imports {name} (floor {there})"


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages by its name."""
    found = {}
    for path in sources():
        source = next(parent for parent in path.parents if parent.name == "src")
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(code: str) -> Iterator[str]:
    """Modules that some code imports anywhere, in functions and for types too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules() else node.module for name in inside)


def names_in(code: str, package: str) -> Iterator[str]:
    """Modules whose names stand in strings: "module:thing", and any in files that import modules by name."""
    by_name = "import_module(" in code or "lazily(" in code
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, colon, _ = node.value.partition(":")
            yield module
            if colon or by_name:
                yield f"{package}.{module}"


def test_no_imports_in_a_circle() -> None:
    graph = {}
    for name, path in modules().items():
        package = name.partition(".")[0]
        found = {other for other in imports_of(path.read_text()) if other.startswith(package) and other != name}
        graph[name] = found & modules().keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def commands() -> Iterator[str]:
    """Modules that console scripts and entry points name."""
    for file in PACKAGES.glob("*/pyproject.toml"):
        project: dict[str, Any] = tomllib.loads(file.read_text())["project"]
        for group in (project.get("scripts", {}), *project.get("entry-points", {}).values()):
            yield from (target.partition(":")[0] for target in group.values())


def documented() -> Iterator[str]:
    """Modules that documents name, alone or before a name in them, and those run with ``-m``."""
    folders = ("docs/**/*.md", "tests/documents/*.md", "README.md", "packages/*/README.md", "examples/**/*.md")
    for page in (page for pattern in folders for page in ROOT.glob(pattern)):
        text = page.read_text()
        yield from (f"{name}.__main__" for name in re.findall(r"-m (ltx_[\w.]+)", text))
        for name in re.findall(r"ltx_\w+(?:\.\w+)+", text):
            yield name
            yield name.rpartition(".")[0]


def scripts() -> Iterator[str]:
    """Modules that scripts, examples and benchmarks import."""
    patterns = ("benchmarks/*.py", "packages/*/scripts/*.py", "examples/**/*.py")
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        yield from imports_of(path.read_text())


def test_every_module_is_entered() -> None:
    entered: set[str] = set()
    ahead = [*commands(), *documented(), *scripts()]
    while ahead:
        name = ahead.pop()
        if name in entered or name not in modules():
            continue
        entered.add(name)
        path, package = modules()[name], name.rpartition(".")[0]
        code = path.read_text()
        ahead += [*imports_of(code), *names_in(code, name if path.name == "__init__.py" else package), package]
    assert modules().keys() - entered == NOT_ENTERED.keys()
