"""Camera moves in words: ``pan left 15, zoom in 1.2, 0-2s; orbit right 30 3, 2-4s`` becomes a path.

A move is a name, a direction and an amount; a time range ends a group of moves that happen together. Groups follow one
another; a range may be left out once, it is then the whole clip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltx_core.errors import ConfigError, nearest_hint
from ltx_media.camera.geometry import Pose, orbit
from ltx_media.camera.path import DEFAULT_FOV, CameraPath, Key

#: move -> direction -> sign. Amounts: degrees for turns and orbits, a factor for zoom, scene units for the rest.
DIRECTIONS: dict[str, dict[str, int]] = {
    "pan": {"right": 1, "left": -1},
    "tilt": {"up": 1, "down": -1},
    "roll": {"right": 1, "left": -1, "clockwise": 1, "counterclockwise": -1},
    "zoom": {"in": 1, "out": -1},
    "dolly": {"in": 1, "out": -1, "forward": 1, "back": -1},
    "truck": {"right": 1, "left": -1},
    "pedestal": {"up": 1, "down": -1},
    "jib": {"up": 1, "down": -1},
    "orbit": {"right": 1, "left": -1, "up": 1, "down": -1},
}
KEYS_PER_SECOND = 12  # of a move that is no straight line in pose
DEFAULT_RADIUS = 3.0  # scene units


@dataclass(frozen=True)
class Move:
    """One move from ``start`` to ``end`` seconds (None: the clip's end); ``radius`` is an orbit's or a jib's."""

    kind: str
    direction: str
    amount: float
    start: float = 0.0
    end: float | None = None
    radius: float = DEFAULT_RADIUS

    @property
    def signed(self) -> float:
        return self.amount * DIRECTIONS[self.kind][self.direction]


_RANGE = re.compile(r"^(\d+(?:\.\d+)?)\s*(?:-|to)\s*(\d+(?:\.\d+)?)\s*s?$")


def parse_moves(text: str) -> tuple[Move, ...]:
    """Moves of a line of words. Raises `ConfigError` that names the part it does not know and the nearest one."""
    moves: list[Move] = []
    for group in text.split(";"):
        parts = [part.strip().lower() for part in group.split(",") if part.strip()]
        pending: list[Move] = []
        for part in parts:
            if found := _RANGE.match(part):
                start, end = (float(value) for value in found.groups())
                if not start < end:
                    raise ConfigError(f"camera: range {part!r} is empty, expected START-ENDs with START < END")
                moves += [Move(move.kind, move.direction, move.amount, start, end, move.radius) for move in pending]
                pending = []
            else:
                pending.append(_parse_move(part))
        moves += pending
    if not moves:
        raise ConfigError("camera: no move given, expected something like 'pan left 15, 0-2s'")
    return tuple(moves)


def _parse_move(part: str) -> Move:
    words = part.split()
    kind = words[0]
    if kind not in DIRECTIONS:
        raise ConfigError(f"camera: {kind!r} is no move{nearest_hint(kind, sorted(DIRECTIONS))}")
    directions = DIRECTIONS[kind]
    if len(words) < 3 or words[1] not in directions:
        raise ConfigError(f"camera: {part!r}, expected '{kind} {'|'.join(directions)} AMOUNT'")
    numbers = [_number(word, part) for word in words[2:]]
    if len(numbers) > (2 if kind in ("orbit", "jib") else 1):
        raise ConfigError(
            f"camera: {part!r} has {len(numbers)} numbers, expected one (orbit and jib: amount and radius)"
        )
    if kind == "zoom" and numbers[0] < 1:
        raise ConfigError(f"camera: {part!r}, expected a factor of at least 1; 'zoom out 1.2' makes the picture wider")
    return Move(kind, words[1], numbers[0], radius=numbers[1] if len(numbers) > 1 else DEFAULT_RADIUS)


def _number(word: str, part: str) -> float:
    try:
        value = float(word.rstrip("°x"))
    except ValueError:
        raise ConfigError(f"camera: {word!r} in {part!r} is no number") from None
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"camera: {word} in {part!r}, expected a positive number; the direction gives the sign")
    return value


def path_of_moves(moves: Sequence[Move], seconds: float) -> CameraPath:
    """The path of moves in a clip of ``seconds``, each of which starts and ends gently.

    Raises `ConfigError` for a move that ends after the clip or starts after it.
    """
    for move in moves:
        if (move.end if move.end is not None else seconds) > seconds + 1e-6 or move.start >= seconds:
            raise ConfigError(f"camera: {move.kind} runs to {move.end} s, expected within the clip of {seconds:g} s")
    edges = {0.0, seconds} | {move.start for move in moves} | {min(move.end or seconds, seconds) for move in moves}
    dense = np.linspace(0, seconds, max(int(seconds * KEYS_PER_SECOND), 1) + 1)
    times = sorted(edges | {float(t) for t in dense})
    times = [t for index, t in enumerate(times) if index == 0 or t - times[index - 1] > 1e-9]
    return CameraPath(tuple(_key_at(moves, t, seconds) for t in times))


def _key_at(moves: Sequence[Move], t: float, seconds: float) -> Key:
    pose, zoom = Pose(), 1.0
    for move in moves:
        end = move.end if move.end is not None else seconds
        u = min(max((t - move.start) / (end - move.start), 0.0), 1.0)
        share = u * u * (3 - 2 * u)
        if move.kind == "zoom":
            zoom *= move.amount ** (share * DIRECTIONS["zoom"][move.direction])
        else:
            pose = _move(pose, move, move.signed * share)
    return Key(t, pose, math.degrees(2 * math.atan(math.tan(math.radians(DEFAULT_FOV) / 2) / zoom)))


def _move(pose: Pose, move: Move, amount: float) -> Pose:
    pan, tilt, roll = pose.rotation
    right, down, forward = pose.matrix.T
    match move.kind:
        case "pan":
            return Pose(pose.position, (pan + amount, tilt, roll))
        case "tilt":
            return Pose(pose.position, (pan, tilt + amount, roll))
        case "roll":
            return Pose(pose.position, (pan, tilt, roll + amount))
        case "dolly":
            return _shift(pose, amount * forward)
        case "truck":
            return _shift(pose, amount * right)
        case "pedestal":
            return _shift(pose, -amount * down)
        case "jib":
            risen = _shift(pose, -amount * down)
            return Pose(risen.position, (pan, tilt - math.degrees(math.atan(amount / move.radius)), roll))
        case _:
            across = move.direction in ("left", "right")
            return orbit(pose, move.radius, amount if across else 0.0, 0.0 if across else amount)


def _shift(pose: Pose, by: np.ndarray) -> Pose:
    x, y, z = pose.centre + by
    return Pose((float(x), float(y), float(z)), pose.rotation)
