"""The operation table: (component, operation) -> function from a case to named results, one module per area.

Each area has a module here with a dict `OPERATIONS: dict[tuple[str, str], Operation]`. An operation calls public API
only and returns results under the names they have in the case file (`out.*`, and any `mid.*` worth checking).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping

from torch import Tensor

from tests.golden.case import Case

Operation = Callable[[Case], Mapping[str, Tensor]]


def find_operation(case: Case) -> Operation | None:
    """The operation of a case, from the module of its area; None when the area or the operation is unknown."""
    if importlib.util.find_spec(f"{__name__}.{case.area}") is None:
        return None
    operations: Mapping[tuple[str, str], Operation] = importlib.import_module(f"{__name__}.{case.area}").OPERATIONS
    return operations.get(case.key)
