"""The size that is asked for and the one the model works at."""

from __future__ import annotations

from dataclasses import dataclass

from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape


@dataclass(frozen=True)
class PaddedSize:
    """A size and the smallest around it that the model can hold: sides multiples of 32, frames 8k+1."""

    asked: VideoPixelShape
    padded: VideoPixelShape

    @classmethod
    def of(cls, asked: VideoPixelShape, factors: SpatioTemporalScaleFactors) -> PaddedSize:
        def up(size: int, step: int) -> int:
            return -(-size // step) * step

        sides = {"height": up(asked.height, factors.height), "width": up(asked.width, factors.width)}
        return cls(asked, asked._replace(frames=up(asked.frames - 1, factors.time) + 1, **sides))

    @property
    def top(self) -> int:
        """Rows above the picture; a surplus row is below it."""
        return (self.padded.height - self.asked.height) // 2

    @property
    def left(self) -> int:
        """Columns left of the picture; a surplus column is right of it."""
        return (self.padded.width - self.asked.width) // 2
