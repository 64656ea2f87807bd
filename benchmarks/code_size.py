"""Amount of code to read: code lines, files and long functions of each package, against the goals.

A code line is one that is left when blank lines, comments, docstrings and imports are taken away.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Options, Table

PACKAGES = Path(__file__).resolve().parents[1] / "packages"
CORE = PACKAGES / "ltx-core" / "src" / "ltx_core"
PIPELINES = PACKAGES / "ltx-pipelines" / "src" / "ltx_pipelines"

#: Counted together against the goals.
TOGETHER = ("ltx-core", "ltx-media", "ltx-pipelines")
MOST_LINES, MOST_FILES = 12_000, 190
MOST_LINES_OF_FUNCTION, MOST_PARAMETERS = 60, 8

#: What a reader follows from a plan to one step of the network.
PATH = (
    PIPELINES / "running" / "engine.py",
    PIPELINES / "running" / "stages.py",
    CORE / "sampling" / "stage.py",
    CORE / "sampling" / "loop.py",
    CORE / "sampling" / "samplers.py",
    CORE / "sampling" / "denoisers.py",
    CORE / "model" / "transformer" / "model.py",
    CORE / "model" / "transformer" / "block.py",
)
MOST_PATH_LINES, MOST_PATH_FILES = 1_000, 8

Function = ast.FunctionDef | ast.AsyncFunctionDef
NO_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)


@dataclass(frozen=True)
class Size:
    """Counts of some files."""

    files: int
    lines: int
    long_functions: tuple[str, ...]  # of more than MOST_LINES_OF_FUNCTION code lines
    wide_functions: tuple[str, ...]  # of more than MOST_PARAMETERS parameters


def size_of(paths: Iterable[Path]) -> Size:
    """Count Python files."""
    files, lines, long, wide = 0, 0, [], []
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        code = code_lines(path, tree)
        files, lines = files + 1, lines + len(code)
        for function in functions(tree):
            where = f"{path.stem}.{function.name}"
            own = sum(function.lineno <= line <= (function.end_lineno or 0) for line in code)
            long += [f"{where} {own}"] if own > MOST_LINES_OF_FUNCTION else []
            wide += [f"{where} {parameters(function)}"] if parameters(function) > MOST_PARAMETERS else []
    return Size(files, lines, tuple(long), tuple(wide))


def code_lines(path: Path, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    held = {line for token in tokens if token.type not in NO_CODE for line in range(token.start[0], token.end[0] + 1)}
    return held - {line for node in not_code(tree) for line in range(node.lineno, (node.end_lineno or 0) + 1)}


def not_code(tree: ast.Module) -> Iterator[ast.stmt]:
    """Imports and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif (
            isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None
        ):
            yield node.body[0]


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def parameters(function: Function) -> int:
    """Parameters other than ``self`` and ``cls``."""
    given = function.args
    names = [
        each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if each
    ]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def sources(package: str) -> list[Path]:
    return sorted((PACKAGES / package / "src").rglob("*.py"))


def run(options: Options) -> list[Table]:
    """A table of packages and one of the path from a plan to a step; ``options`` change nothing."""
    names = sorted(folder.name for folder in PACKAGES.iterdir() if (folder / "src").is_dir())
    sizes = {name: size_of(sources(name)) for name in names}
    columns = ("package", "code lines", "files", "functions > 60 lines", "> 8 parameters")
    packages = Table("Code to read", columns, [row(name, size) for name, size in sizes.items()])
    together = size_of(path for name in TOGETHER for path in sources(name))
    packages.rows.append(row(" + ".join(name.removeprefix("ltx-") for name in TOGETHER), together))
    packages.notes += [goal("code lines", together.lines, MOST_LINES), goal("files", together.files, MOST_FILES)]
    for size in sizes.values():
        packages.notes += size.long_functions + size.wide_functions
    path = Table("From a plan to a step", ("file", "code lines"))
    path.rows += [[str(file.relative_to(PACKAGES)), str(size_of([file]).lines)] for file in PATH]
    whole = size_of(PATH)
    path.notes += [goal("code lines", whole.lines, MOST_PATH_LINES), goal("files", whole.files, MOST_PATH_FILES)]
    return [packages, path]


def row(name: str, size: Size) -> list[str]:
    return [name, str(size.lines), str(size.files), str(len(size.long_functions)), str(len(size.wide_functions))]


def goal(what: str, value: int, most: int) -> str:
    return f"{what}: {value} of at most {most}{'' if value <= most else f', {value - most} too many'}"
