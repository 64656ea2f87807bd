"""A few golden cases with each saving off: tolerances hold with and without every one of them."""

from __future__ import annotations

import pytest

from ltx_core.optimizations import NAMES, without
from tests.golden.case import Case, find_cases, golden_root
from tests.golden.operations import find_operation
from tests.golden.waiting import WAITING

OPERATIONS = {("transformer", "forward"), ("transformer", "av_block")}
COMPONENTS = {"denoisers"}
MOST = 6  # cases


def chosen() -> list[Case]:
    """The smallest cases that run a transformer or a denoiser."""
    fitting = [
        case
        for case in find_cases(golden_root())
        if (case.key in OPERATIONS or case.key[0] in COMPONENTS) and case.key not in WAITING
    ]
    return sorted(fitting, key=lambda case: (case.path.stat().st_size, case.name))[:MOST]


@pytest.mark.parametrize("off", ["all", *NAMES])
@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.area}-{case.name}") for case in chosen()])
def test_case_without_a_saving(case: Case, off: str) -> None:
    operation = find_operation(case)
    assert operation is not None
    with without(*(() if off == "all" else (off,))):
        case.check(operation(case))


def test_there_are_cases() -> None:
    assert len(chosen()) >= 3
