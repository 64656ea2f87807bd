"""Scenes of the toy world, as data: a ``Scene`` holds bodies, a background and a camera move.

Everything that can be seen or heard follows from the scene alone. Scenes are drawn from a seed, and a fixed part of all
(colour, shape, motion) triples is held out: ``split`` says which, and training never sees those.

Stage coordinates: x to the right and y downwards from the middle of the picture; one unit is its shorter side.
Times are in seconds.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ltx_core.errors import ConfigError

SHAPES = ("ball", "box", "triangle", "star", "ring")
SIZES = ("small", "large")
PITCHES = ("low", "middle", "high")
CAMERAS = ("still", "pans left", "pans right", "zooms in", "zooms out")
MOTIONS = (
    "bounces",
    "slides left",
    "slides right",
    "rises",
    "falls",
    "spins",
    "grows",
    "shrinks",
    "blinks",
    "stays still",
)
COLOURS = {  # sRGB
    "red": (222, 38, 44),
    "orange": (250, 128, 16),
    "yellow": (250, 214, 32),
    "green": (46, 164, 60),
    "cyan": (26, 198, 210),
    "blue": (34, 78, 226),
    "purple": (124, 44, 186),
    "pink": (252, 122, 186),
}
BACKGROUNDS = ("blue", "grey", "white", "mint", "night", "sunset")
CLASHES = {  # colours that would be hard to see
    "blue": ("blue", "cyan"),
    "mint": ("green", "cyan"),
    "night": ("blue", "purple"),
    "sunset": ("orange", "pink"),
}
RADIUS = {"small": 0.17, "large": 0.26}
PITCHED = ("bounces", "blinks")  # motions whose sound is low, middle or high; a held tone is too
PERIOD = {"bounces": (0.62, 0.8), "spins": (0.9, 1.2), "blinks": (0.7, 0.9)}  # shortest and longest
REACH = 0.39  # of bodies to either side of the middle
SOUNDS = {  # what each motion sounds like; a body that stays still holds a tone or is silent
    "bounces": "knock",
    "slides left": "hum to the left",
    "slides right": "hum to the right",
    "rises": "rising glide",
    "falls": "falling glide",
    "spins": "tick",
    "grows": "swell",
    "shrinks": "fade",
    "blinks": "beep",
}
HELD_OUT_SHARE = 8  # one triple in so many
SECONDS = 49 / 25


@dataclass(frozen=True)
class Body:
    """One thing on the stage, what it does and how that sounds."""

    shape: str
    colour: str
    size: str  # at the start: what grows is small, what shrinks is large
    motion: str
    pitch: str | None  # of the knocks, the beeps or the held tone; None where the motion decides, or all is silent
    x: float  # where it stands, or the middle of its slide
    y: float  # height above its lowest place, for what hovers
    period: float  # seconds between impacts, turns or appearances
    phase: float  # in [0, 1): how far into the first period the clip starts
    tilt: float  # radians, clockwise


@dataclass(frozen=True)
class Scene:
    """Everything that decides a clip. ``seconds`` is how long a one-way motion or camera move takes."""

    bodies: tuple[Body, ...]
    background: str
    camera: str
    seconds: float = SECONDS

    @property
    def body(self) -> Body:
        """The first body: the one the captions speak of."""
        return self.bodies[0]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers."""
        return {**asdict(self), "bodies": [asdict(body) for body in self.bodies]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scene:
        """The inverse of ``to_json``. Raises ``ConfigError`` for an attribute the world does not have."""
        scene = cls(**{**values, "bodies": tuple(Body(**body) for body in values["bodies"])})
        _check("background", scene.background, BACKGROUNDS)
        _check("camera", scene.camera, CAMERAS)
        for body in scene.bodies:
            for name, allowed in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("motion", MOTIONS)):
                _check(name, getattr(body, name), tuple(allowed))
            if body.pitch is not None:
                _check("pitch", body.pitch, PITCHES)
        return scene


def sound_of(body: Body) -> str:
    """The kind of sound a body makes: a value of ``SOUNDS``, "tone" or "silence"."""
    return SOUNDS.get(body.motion, "silence" if body.pitch is None else "tone")


def attributes(scene: Scene) -> dict[str, str]:
    """Everything a caption can state about a scene, by name; ``pitch`` only where the sound has one."""
    body = scene.body
    values = {name: str(getattr(body, name)) for name in ("shape", "colour", "size", "motion")}
    values |= {"background": scene.background, "camera": scene.camera, "sound": sound_of(body)}
    return values if body.pitch is None else {**values, "pitch": body.pitch}


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")


def held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether this triple is kept from training. Depends on the three words alone."""
    return zlib.crc32(f"{colour} {shape} {motion}".encode()) % HELD_OUT_SHARE == 0


def split(scene: Scene) -> str:
    """``"held_out"`` if any body shows a held-out triple, else ``"train"``."""
    kept = any(held_out(body.colour, body.shape, body.motion) for body in scene.bodies)
    return "held_out" if kept else "train"


def cameras_for(motion: str, size: str) -> tuple[str, ...]:
    """The camera moves that neither hide nor undo a motion, and keep the body in the picture."""
    if motion.startswith("slides"):
        return ("still", "zooms in", "zooms out") if size == "small" else ("still",)
    if motion in ("grows", "shrinks"):
        return ("still", "pans left", "pans right")
    return CAMERAS


def sample_scene(rng: np.random.Generator, part: str | None = "train", seconds: float = SECONDS) -> Scene:
    """Draw a scene with one body; ``part`` is ``"train"``, ``"held_out"`` or None for both."""
    if part not in ("train", "held_out", None):
        raise ConfigError(f"part is {part!r}, expected 'train', 'held_out' or None")
    while True:
        scene = _sample(rng, seconds)
        if part is None or split(scene) == part:
            return scene


def _sample(rng: np.random.Generator, seconds: float) -> Scene:
    motion = str(rng.choice(MOTIONS))
    background = str(rng.choice(BACKGROUNDS))
    colour = str(rng.choice([name for name in COLOURS if name not in CLASHES.get(background, ())]))
    size = {"grows": "small", "shrinks": "large"}.get(motion, str(rng.choice(SIZES)))
    pitch: str | None = str(rng.choice(PITCHES))
    if motion == "stays still":
        pitch = pitch if rng.random() < 0.6 else None
    elif motion not in PITCHED:
        pitch = None
    moves = cameras_for(motion, size)[1:]
    camera = str(rng.choice(moves)) if moves and rng.random() < 0.4 else "still"
    radius = RADIUS["large" if motion in ("grows", "shrinks") else size]
    room = 0.03 if motion.startswith("slides") else REACH - radius
    room = max(room - (0.1 if camera.startswith("pans") else 0.0), 0.02)
    body = Body(
        shape=str(rng.choice(SHAPES)),
        colour=colour,
        size=size,
        motion=motion,
        pitch=pitch,
        x=_round(rng.uniform(-room, room)),
        y=_round(rng.uniform(0.0, 0.12)),
        period=_round(rng.uniform(*PERIOD.get(motion, (1.0, 1.0)))),
        phase=_round(rng.uniform(0.0, 1.0)),
        tilt=_round(rng.uniform(-0.25, 0.25)) if motion in ("rises", "falls", "blinks") else 0.0,
    )
    return Scene((body,), background, camera, seconds)


def _round(value: float) -> float:
    return round(float(value), 4)
