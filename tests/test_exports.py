"""What the packages export is found, and its help names every argument."""

from __future__ import annotations

import inspect
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


@pytest.mark.parametrize("package", PACKAGES)
def test_exports_are_listed_and_no_other_name_is_found(package: str) -> None:
    module = import_module(package)
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="has no attribute Nothing"):
        _ = module.Nothing
