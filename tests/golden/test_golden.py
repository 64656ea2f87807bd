"""Runs every golden case through public API. A case whose operation is unknown fails.

``--backend torch`` and ``--backend mlx`` run the cases with the networks of one backend; without the option, both.
"""

from __future__ import annotations

import importlib.util

import pytest

from tests.golden import mlx
from tests.golden.case import Case, find_cases, golden_root
from tests.golden.operations import Operation, find_operation
from tests.golden.waiting import WAITING

CASES = list(find_cases(golden_root()))
NEEDS_MLX = pytest.mark.skipif(
    importlib.util.find_spec("mlx") is None, reason="mlx is not installed: `pip install mlx`, on Linux mlx-cpu too"
)


def as_parameter(case: Case) -> object:
    reason = WAITING.get(case.key)
    marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
    return pytest.param(case, id=f"{case.area}-{case.name}", marks=marks)


def test_there_are_cases() -> None:
    assert CASES, f"no golden case under {golden_root()}"


@pytest.mark.backend("torch")
@pytest.mark.parametrize("case", [as_parameter(case) for case in CASES])
def test_case(case: Case) -> None:
    run(case, find_operation(case), case)


@NEEDS_MLX
@pytest.mark.backend("mlx")
@pytest.mark.parametrize("case", [as_parameter(case) for case in CASES if case.area in mlx.AREAS])
def test_case_on_mlx(case: Case) -> None:
    run(case, mlx.find_operation(case), mlx.relaxed(case))


def run(case: Case, operation: Operation | None, expected: Case) -> None:
    assert operation is not None, f"unknown operation {case.key} in area {case.area}"
    expected.check(operation(case))
