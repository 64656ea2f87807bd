"""Buckets: the sizes clips are brought to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ltx_core.errors import ConfigError
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape


class Bucket(NamedTuple):
    """A size in pixels; 1 frame is for stills."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


def parse_buckets(text: str, factors: SpatioTemporalScaleFactors) -> tuple[Bucket, ...]:
    """``"WxHxF;WxHxF"`` as buckets. Raises `ConfigError` that names the nearest valid size."""
    buckets = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        try:
            width, height, frames = map(int, part.lower().split("x"))
        except ValueError as error:
            raise ConfigError(f"bucket is {part!r}, expected width x height x frames such as 960x544x49") from error
        try:
            factors.check(VideoPixelShape(1, frames, height, width, 1.0))
        except ConfigError as error:
            raise ConfigError(f"bucket {part}: {error}") from error
        buckets.append(Bucket(frames, height, width))
    if not buckets:
        raise ConfigError(f"resolution buckets are {text!r}, expected such as 960x544x49;544x960x49")
    return tuple(buckets)


def select_bucket(frames: int, height: int, width: int, buckets: Sequence[Bucket]) -> int | None:
    """The index of the bucket for a clip: nearest in aspect, then longest, then largest; None where all are longer."""

    def rank(index: int) -> tuple[float, int, int]:
        bucket = buckets[index]
        aspect = abs(math.log(width / height) - math.log(bucket.width / bucket.height))
        return aspect, -bucket.frames, -bucket.height * bucket.width

    fitting = [index for index, bucket in enumerate(buckets) if bucket.frames <= frames]
    return min(fitting, key=rank, default=None)
