"""From files to networks: headers, components, adapters, quantised weights, streaming."""

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.lora import Lora

__all__ = ["Checkpoint", "Lora"]
