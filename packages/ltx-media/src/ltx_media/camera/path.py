"""A camera path: poses and fields of view at given times, interpolated between them, and its JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ltx_core.errors import ConfigError
from ltx_core.textfiles import read_text
from ltx_media.camera.geometry import Array, Pose

Interpolation = Literal["linear", "smoothstep", "cubic"]
DEFAULT_FOV = 50.0  # degrees


@dataclass(frozen=True)
class Key:
    """Pose and horizontal field of view (degrees) at ``t`` seconds."""

    t: float
    pose: Pose = field(default_factory=Pose)
    fov: float = DEFAULT_FOV


@dataclass(frozen=True)
class CameraPath:
    """Keys in order of time; before the first and after the last the end poses hold.

    Angles are interpolated each for itself, the field of view as ln tan(fov / 2), so that a steady zoom multiplies the
    picture by equal factors in equal times.
    """

    keys: tuple[Key, ...]
    interpolation: Interpolation = "cubic"

    def __post_init__(self) -> None:
        if not self.keys:
            raise ConfigError("camera path has no key, expected at least one")
        for index, key in enumerate(self.keys):
            if index and not key.t > self.keys[index - 1].t:
                raise ConfigError(
                    f"camera path: key {index} is at {key.t} s, expected after {self.keys[index - 1].t} s"
                )
            if not 1 < key.fov < 179:
                raise ConfigError(f"camera path: key {index} has fov {key.fov}, expected between 1 and 179 degrees")

    def at(self, times: Sequence[float] | Array) -> list[Key]:
        """Pose and field of view at each of ``times`` (seconds)."""
        rows = _interpolate(
            np.array([_row(key) for key in self.keys]), self.times, np.asarray(times), self.interpolation
        )
        return [_key(float(t), row) for t, row in zip(times, rows, strict=True)]

    def frames(self, count: int, fps: float) -> list[Key]:
        """Pose and field of view of each frame; frame i stands at ``i / fps``."""
        return self.at([index / fps for index in range(count)])

    @property
    def times(self) -> Array:
        return np.array([key.t for key in self.keys])

    @property
    def moves_in_space(self) -> bool:
        """Whether the camera changes its place; then pictures need a depth."""
        return len({key.pose.position for key in self.keys}) > 1

    def to_json(self) -> str:
        """The path as text that `camera_path_from_json` reads back to an equal path."""
        keys = [
            {"t": key.t, "position": key.pose.position, "rotation": key.pose.rotation, "fov": key.fov}
            for key in self.keys
        ]
        return json.dumps({"version": 1, "interpolation": self.interpolation, "keys": keys})


def _row(key: Key) -> list[float]:
    return [*key.pose.position, *key.pose.rotation, math.log(math.tan(math.radians(key.fov) / 2))]


def _key(t: float, row: Array) -> Key:
    x, y, z, pan, tilt, roll, zoom = (float(value) for value in row)
    return Key(t, Pose((x, y, z), (pan, tilt, roll)), math.degrees(2 * math.atan(math.exp(zoom))))


def _interpolate(rows: Array, keys: Array, times: Array, kind: Interpolation) -> Array:
    """``[T, columns]`` from rows at ``keys``."""
    if len(keys) == 1:
        return np.repeat(rows, len(times), axis=0)
    times = times.clip(keys[0], keys[-1])
    first = (np.searchsorted(keys, times, side="right") - 1).clip(0, len(keys) - 2)
    width = keys[first + 1] - keys[first]
    u = ((times - keys[first]) / width)[:, None]
    before, after = rows[first], rows[first + 1]
    if kind == "linear":
        return before + (after - before) * u
    if kind == "smoothstep":
        return before + (after - before) * (3 * u**2 - 2 * u**3)
    slopes = np.empty_like(rows)
    slopes[1:-1] = (rows[2:] - rows[:-2]) / (keys[2:] - keys[:-2])[:, None]
    slopes[0] = (rows[1] - rows[0]) / (keys[1] - keys[0])
    slopes[-1] = (rows[-1] - rows[-2]) / (keys[-1] - keys[-2])
    h = width[:, None]
    return (
        (2 * u**3 - 3 * u**2 + 1) * before
        + (u**3 - 2 * u**2 + u) * h * slopes[first]
        + (3 * u**2 - 2 * u**3) * after
        + (u**3 - u**2) * h * slopes[first + 1]
    )


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    t: FiniteFloat
    position: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    rotation: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    fov: FiniteFloat | None = None


class _PathFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: Literal[1] = 1
    fov: FiniteFloat = DEFAULT_FOV
    interpolation: Interpolation = "cubic"
    keys: list[_KeyFile] = Field(min_length=1)


def camera_path_from_json(text: str | bytes, name: str = "camera path") -> CameraPath:
    """Read a path. What a key leaves out is as in the key before. Raises `ConfigError` that names the key."""
    try:
        return _path_of(_PathFile.model_validate_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise ConfigError(f"{name}: {place}: {first['msg']}") from error


def read_camera_path(path: str | Path) -> CameraPath:
    """Read a path file. Raises `ConfigError` that names it."""
    return camera_path_from_json(read_text(path), str(path))


def _path_of(file: _PathFile) -> CameraPath:
    keys: list[Key] = []
    last = Key(0.0, Pose(), file.fov)
    for item in file.keys:
        pose = Pose(item.position or last.pose.position, item.rotation or last.pose.rotation)
        last = Key(item.t, pose, item.fov if item.fov is not None else last.fov)
        keys.append(last)
    return CameraPath(tuple(keys), file.interpolation)
