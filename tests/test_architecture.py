"""The house has floors: imports may only point down, and packages may only import what they are allowed to."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[1] / "packages"

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
    "precision": 0,
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
    "pipeline": 4,
}


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
