"""Runs every golden case through public API. A case whose operation is unknown fails."""

from __future__ import annotations

import pytest

from tests.golden.case import Case, find_cases, golden_root
from tests.golden.operations import find_operation
from tests.golden.waiting import WAITING

CASES = list(find_cases(golden_root()))


def as_parameter(case: Case) -> object:
    reason = WAITING.get(case.key)
    marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
    return pytest.param(case, id=f"{case.area}-{case.name}", marks=marks)


def test_there_are_cases() -> None:
    assert CASES, f"no golden case under {golden_root()}"


@pytest.mark.parametrize("case", [as_parameter(case) for case in CASES])
def test_case(case: Case) -> None:
    operation = find_operation(case)
    assert operation is not None, f"unknown operation {case.key} in area {case.area}"
    case.check(operation(case))
