"""The import paths of the API guide: ``ltx_core.pipeline.components`` is ``ltx_core.components``, and so on."""

import sys
from importlib import import_module
from pkgutil import walk_packages

from ltx_core import components, conditioning

for _package in (components, conditioning):
    for _name in (
        _package.__name__,
        *(each.name for each in walk_packages(_package.__path__, f"{_package.__name__}.")),
    ):
        sys.modules[_name.replace("ltx_core", __name__, 1)] = import_module(_name)
