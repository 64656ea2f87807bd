"""What the packages export is imported when it is asked for, and its help names every argument."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ("ltx_core", "ltx_pipelines", "ltx_trainer")
MADE_BY_OTHERS = {"Plan"}  # which pipelines make of a request
EXPORTED = [(one, name) for one in PACKAGES for name in import_module(one).__all__ if name not in MADE_BY_OTHERS]
OF_PYTHON = {"args", "kwargs", "kind"}


@pytest.mark.parametrize(("package", "name"), EXPORTED)
def test_help_names_every_argument(package: str, name: str) -> None:
    thing = getattr(import_module(package), name)
    if callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
        said = f"{inspect.getdoc(thing)} {inspect.getdoc(thing.__init__)}"
        unnamed = {one for one in inspect.signature(thing).parameters if f"``{one}``" not in said}
        assert not unnamed - OF_PYTHON


def test_importing_a_package_imports_no_torch() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_there_is_not_is_refused(package: str) -> None:
    with pytest.raises(AttributeError, match="no attribute nonsense"):
        import_module(package).nonsense  # noqa: B018
