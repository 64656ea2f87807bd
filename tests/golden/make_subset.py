"""Copy a subset of the golden cases into `tests/golden/data`, so that a fresh clone tests itself.

    python -m tests.golden.make_subset /path/to/the/full/set

Takes, for every operation, the smallest case with all it needs, then further cases by size while the budget lasts.
The checkpoint that whole-pipeline cases run on lies in `tests/data`, where other tests use it too.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.golden.case import read_header

BUDGET = 19_500_000  # bytes, side files included
SHARED_CHECKPOINT = "tiny-checkpoint"
TARGET = Path(__file__).parent / "data"


def strings(value: Any) -> set[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        return {value}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {text for item in items for text in strings(item)}


def needed(path: Path, case: dict[str, Any]) -> set[Path]:
    """A case's file and every file or folder beside it that its header names."""
    stem = path.name.removesuffix(".safetensors")
    files = {path} | {file for file in path.parent.iterdir() if file.name.startswith(f"{stem}.")}
    for text in strings(case):
        for name in (text, f"{text}.weights.safetensors", f"{text}.safetensors"):
            beside = path.parent / name
            if "/" not in name and 0 < len(name) < 100 and beside.exists():
                files.add(beside)
    if case["component"] in ("pipeline", "prompt_encoder"):
        files |= {path.parent / "inputs", path.parent / "contexts.safetensors"}
    if case["component"] == "media":
        files.add(path.parent / "inputs")
    files = {inner for file in files for inner in ([file] if file.is_file() else file.rglob("*")) if inner.is_file()}
    return {file for file in files if SHARED_CHECKPOINT not in file.parts}


def main(source: Path) -> None:
    cases = []
    for path in sorted(source.glob("*/*.safetensors")):
        header = read_header(path).get("__metadata__") or {}
        if "case" in header:
            case = json.loads(header["case"])
            cases.append((case, needed(path, case)))
    chosen = set(source.glob("*/*.json"))
    cases.sort(key=lambda pair: sum(file.stat().st_size for file in pair[1]))
    seen: set[tuple[str, str]] = set()
    firsts, others = [], []
    for case, files in cases:
        key = (case["component"], case["operation"])
        (others if key in seen else firsts).append(files)
        seen.add(key)
    for files in firsts:
        chosen |= files
    for files in others:
        if sum(file.stat().st_size for file in chosen | files) <= BUDGET:
            chosen |= files
    if TARGET.exists():
        shutil.rmtree(TARGET)
    for file in sorted(chosen):
        target = TARGET / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    print(f"{len(chosen)} files, {sum(file.stat().st_size for file in chosen) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
