"""The operation table: (area, component, operation) -> function from a case to named results.

Each area has a module here with a dict `OPERATIONS: dict[tuple[str, str], Operation]`. An operation calls public API
only and returns results under the names they have in the case file (`out.*`, and any `mid.*` worth checking).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping

from torch import Tensor

from tests.golden.case import Case

Operation = Callable[[Case], Mapping[str, Tensor]]


def operation_table() -> dict[tuple[str, str, str], Operation]:
    """All operations, found in the modules of this package; the module's name is the area's name."""
    table: dict[tuple[str, str, str], Operation] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for (component, operation), function in module.OPERATIONS.items():
            table[module_info.name, component, operation] = function
    return table
