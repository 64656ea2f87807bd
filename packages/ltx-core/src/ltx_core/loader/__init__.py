"""From files to networks: headers, components, adapters, quantised weights, streaming."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltx_core.loader.checkpoint import Checkpoint
    from ltx_core.loader.lora import Lora

__all__ = ["Checkpoint", "Lora"]


def __getattr__(name: str) -> Any:
    """Import an exported name when it is used: ``loader.metadata`` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{name.lower()}"), name)
