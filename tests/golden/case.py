"""Golden cases: numbers in safetensors files with a JSON header or entries of JSON files, and how results compare."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_CHECKPOINT = REPOSITORY / "tests" / "data" / "tiny-checkpoint"  # random weights: LTX-2 19B layout, Gemma 3, LoRAs


def golden_root() -> Path:
    """`LTX_GOLDEN_DIR`, else the full set beside the repository, else the committed subset."""
    if given := os.environ.get("LTX_GOLDEN_DIR"):
        return Path(given)
    full = REPOSITORY.parent / "shared" / "golden"
    return full if full.is_dir() else REPOSITORY / "tests" / "golden" / "data"


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, without its tensors."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


@dataclass(frozen=True)
class Case:
    """One golden file, or one entry of a JSON file: what to call, on what, and what must come out."""

    path: Path
    header: Mapping[str, Any]

    @property
    def area(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return self.header.get("entry") or self.path.name.removesuffix(".safetensors")

    @property
    def key(self) -> tuple[str, str]:
        """(component, operation): what the operation table is indexed by."""
        return self.header["component"], self.header["operation"]

    @property
    def args(self) -> dict[str, Any]:
        return self.header.get("args") or {}

    @property
    def rtol(self) -> float:
        return float(self.header.get("rtol", 0))

    @property
    def atol(self) -> float:
        return float(self.header.get("atol", 0))

    @property
    def directory(self) -> Path:
        return self.path.parent

    @property
    def weights_path(self) -> Path:
        """The checkpoint beside the case: its own, or that of the case or file `args.weights` names."""
        named = self.args.get("weights")
        name = named if isinstance(named, str) else self.name
        return self.directory / (name if name.endswith(".safetensors") else f"{name}.weights.safetensors")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path) if self.path.suffix == ".safetensors" else {}

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix`` (with its dot), keyed by the rest of their names."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.group("in.")

    @property
    def outputs(self) -> dict[str, Tensor]:
        return self.group("out.")

    def check(self, got: Mapping[str, Tensor]) -> None:
        """Compare results, keyed by full name (``out.x``, ``mid.y``), with the file. Every ``out.*`` must be there."""
        expected = {name for name in self.tensors if name.startswith("out.")}
        missing, unknown = sorted(expected - set(got)), sorted(set(got) - set(self.tensors))
        assert not missing, f"{self.area}/{self.name}: the operation gave no {missing}"
        assert not unknown, f"{self.area}/{self.name}: the operation gave {unknown}, which the case does not hold"
        for name, value in got.items():
            assert_close(value, self.tensors[name], self.rtol, self.atol, f"{self.area}/{self.name}: {name}")


def assert_close(got: Tensor, want: Tensor, rtol: float, atol: float, what: str) -> None:
    """`|got - want| <= atol + rtol * |want|`, shapes equal, NaN where and only where NaN is wanted."""
    assert tuple(got.shape) == tuple(want.shape), f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if want.dtype.is_floating_point or got.dtype.is_floating_point:
        got, want = got.detach().to("cpu", torch.float64), want.to(torch.float64)
    else:
        got, want = got.detach().to("cpu", torch.int64), want.to(torch.int64)
    same = torch.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if not bool(same.all()):
        worst = (got - want).abs().nan_to_num(float("inf")).max().item()
        raise AssertionError(f"{what}: {int((~same).sum())} of {same.numel()} differ, worst by {worst:.3e}")


def find_cases(root: Path) -> Iterator[Case]:
    """Every golden case under ``root/<area>/``; side files (weights, adapters) have no ``case`` header.

    Every JSON file directly in an area is a list of cases.
    """
    for path in sorted(root.glob("*/*.safetensors")):
        header = read_header(path).get("__metadata__") or {}
        if "case" in header:
            yield Case(path, json.loads(header["case"]))
    for path in sorted(root.glob("*/*.json")):
        yield from entries(path)


def entries(path: Path) -> Iterator[Case]:
    """The cases of a JSON file: each entry of each of its lists of objects is one.

    The component is the file's stem, the operation the list's key. ``args`` are the entry and, under ``shared``, what
    the file says beside its cases. There are no tensors: an operation asserts what it got. A file without any such list
    is one case of no known operation.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    content = content if isinstance(content, dict) else {"cases": content}
    groups = {key: value for key, value in content.items() if isinstance(value, list) and is_object(value[:1])}
    shared = {key: value for key, value in content.items() if key not in groups}
    for operation, items in (groups or {"": [{}]}).items():
        for index, entry in enumerate(items):
            name = "-".join(filter(None, (path.stem, operation, str(entry.get("name", index)))))
            args = {**entry, "shared": shared}
            yield Case(path, {"entry": name, "component": path.stem, "operation": operation, "args": args})


def is_object(items: list[Any]) -> bool:
    return bool(items) and isinstance(items[0], dict)
