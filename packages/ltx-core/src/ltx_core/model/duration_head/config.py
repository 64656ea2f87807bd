"""The duration head's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx_core.errors import ConfigError
from ltx_core.sections import read_fields


@dataclass(frozen=True)
class DurationHeadConfig:
    """Widths of the two contexts and of the head. The head count cannot be read off tensor shapes."""

    video_width: int = 4096
    audio_width: int = 2048
    pooler_hidden_dim: int = 256
    num_queries: int = 1
    num_pooler_heads: int = 4
    mlp_hidden: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"duration head: {name} is {value!r}, expected a positive integer")
        if self.pooler_hidden_dim % self.num_pooler_heads:
            expected = f"a multiple of num_pooler_heads {self.num_pooler_heads}"
            raise ConfigError(f"duration head: pooler_hidden_dim is {self.pooler_hidden_dim}, expected {expected}")

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> DurationHeadConfig:
        """Read ``transformer`` for the context widths and ``duration_head``, where present, for the rest."""
        transformer, head = config.get("transformer") or {}, config.get("duration_head") or {}
        widths = {
            "video_width": transformer.get("cross_attention_dim", cls.video_width),
            "audio_width": transformer.get("audio_cross_attention_dim", cls.audio_width),
        }
        return cls(**{name: value for name, value in read_fields(cls, head).items() if value is not None} | widths)
