"""The measures that make a world, by edition. The bundled weights were trained on edition 1.

Edition 2 is drawn for latent cells of 32 pixels: large bodies with soft outlines that move slowly. The environment
variable ``LTX_TINY_WORLD`` chooses it, for the whole process: detectors, questions and training must agree.

Lengths are in stage units (the shorter side of a picture), times in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ltx_core.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True)
class Edition:
    """Look and speed of a world."""

    radius: Mapping[str, float]
    period: Mapping[str, Range]  # shortest and longest
    gravity: float  # per second squared
    ground_y: float  # where things stand
    slide: float  # from the middle to either end
    climb: float  # how far things rise or fall
    reach: float  # of bodies to either side of the middle
    softness: float  # least width of an outline's ramp
    star: tuple[float, float, float]  # tip, notch, rounding in radii
    hum_width: float  # how much wider than other sounds the hum of what slides is placed, to go from side to side
    swell_power: float  # what grows or shrinks is as loud as its size to this power


EDITIONS = {
    "1": Edition(
        radius={"small": 0.112, "large": 0.19},
        period={"bounces": (0.46, 0.57), "spins": (0.75, 1.05), "blinks": (0.6, 0.8)},
        gravity=9.0,
        ground_y=0.34,
        slide=0.25,
        climb=0.34,
        reach=0.34,
        softness=0.0,
        star=(1.08, 0.5, 0.1),
        hum_width=1.0,
        swell_power=3.5,
    ),
    "2": Edition(
        radius={"small": 0.17, "large": 0.26},
        period={"bounces": (0.62, 0.8), "spins": (0.9, 1.2), "blinks": (0.7, 0.9)},
        gravity=3.0,
        ground_y=0.38,
        slide=0.17,
        climb=0.25,
        reach=0.39,
        softness=0.025,
        star=(0.98, 0.45, 0.14),
        hum_width=1.47,
        swell_power=4.4,
    ),
}


def chosen() -> Edition:
    """The edition of this process. Raises `ConfigError` for one there is not."""
    name = os.environ.get("LTX_TINY_WORLD", "1")
    if name not in EDITIONS:
        raise ConfigError(f"LTX_TINY_WORLD is {name!r}, expected one of {', '.join(EDITIONS)}")
    return EDITIONS[name]


EDITION = chosen()
