"""From files to networks: headers, components, adapters, quantised weights, streaming."""

from typing import TYPE_CHECKING

from ltx_core.exports import lazily

if TYPE_CHECKING:
    from ltx_core.loader.checkpoint import Checkpoint as Checkpoint
    from ltx_core.loader.lora import Lora as Lora

__getattr__, __dir__, __all__ = lazily(__name__, {"Checkpoint": "checkpoint", "Lora": "lora"})
