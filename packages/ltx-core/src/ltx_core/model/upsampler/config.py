"""Configuration of the latent upsampler, read from the flat `config` of an upscaler file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx_core.errors import ConfigError, check_known
from ltx_core.sections import read_fields

NORM_GROUPS = 32

# spatial_scale -> (channel shuffle factor, stride of the blur after it)
RATIONAL_SCALES: dict[float, tuple[int, int]] = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}


@dataclass(frozen=True)
class LatentUpsamplerConfig:
    """Configuration of an upscaler's network, from its file.

    Raises ``ConfigError`` for combinations that name no network. ``rational_resampler`` and ``spatial_scale`` have no
    effect together with ``temporal_upsample``.
    """

    in_channels: int = 128
    mid_channels: int = 512
    num_blocks_per_stage: int = 4
    dims: int = 3
    spatial_upsample: bool = True
    temporal_upsample: bool = False
    spatial_scale: float = 2.0
    rational_resampler: bool = False

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ConfigError(f"dims is {self.dims}, expected 2 or 3")
        if self.mid_channels < NORM_GROUPS or self.mid_channels % NORM_GROUPS:
            raise ConfigError(f"mid_channels is {self.mid_channels}, expected a multiple of {NORM_GROUPS}")
        if not (self.spatial_upsample or self.temporal_upsample):
            raise ConfigError("spatial_upsample and temporal_upsample are both false, expected at least one true")
        if self.temporal_upsample and self.dims == 2:
            raise ConfigError("dims is 2 with temporal_upsample true, expected dims 3")
        if self.is_rational:
            check_known("spatial_scale", self.spatial_scale, RATIONAL_SCALES)

    @property
    def is_rational(self) -> bool:
        """Whether the upsampling module is the shuffle-then-blur one."""
        return self.rational_resampler and self.spatial_upsample and not self.temporal_upsample

    @property
    def rational_scale(self) -> tuple[int, int]:
        """(shuffle factor, blur stride) of the rational form."""
        return RATIONAL_SCALES[self.spatial_scale]

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> LatentUpsamplerConfig:
        """Read the flat config of an upscaler file; keys this network does not know are ignored."""
        name = config.get("_class_name", "LatentUpsampler")
        if name != "LatentUpsampler":
            raise ConfigError(f"_class_name is {name!r}, expected 'LatentUpsampler'")
        return cls(**read_fields(cls, config))
