"""Poses, projection and homographies of a pinhole camera, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltx_core.errors import ConfigError

Array = NDArray[np.float64]
NEAR = 1e-3  # scene units; what is nearer is not seen


class Intrinsics(NamedTuple):
    """Picture size in pixels and horizontal field of view in degrees; square pixels, centred."""

    width: int
    height: int
    fov: float

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return self.width / 2 / math.tan(math.radians(self.fov) / 2)

    @property
    def matrix(self) -> Array:
        """K ``[3, 3]``."""
        return np.array([[self.focal, 0, self.width / 2], [0, self.focal, self.height / 2], [0, 0, 1]])


@dataclass(frozen=True)
class Pose:
    """Place and direction of a camera: ``rotation`` is (pan, tilt, roll) in degrees.

    pan > 0 turns right, tilt > 0 up, roll > 0 clockwise as seen from behind the camera.
    """

    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def matrix(self) -> Array:
        """R ``[3, 3]``, camera to world; its columns are the camera's right, down and forward axes."""
        pan, tilt, roll = (math.radians(angle) for angle in self.rotation)
        return _turn(0, 2, pan) @ _turn(2, 1, tilt) @ _turn(1, 0, roll)

    @property
    def centre(self) -> Array:
        return np.array(self.position, dtype=np.float64)


def _turn(first: int, second: int, angle: float) -> Array:
    """A rotation that carries axis ``second`` towards axis ``first``."""
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = math.sin(angle), -math.sin(angle)
    return matrix


def relative(start: Pose, end: Pose) -> tuple[Array, Array]:
    """(R, T) that take a point of the first camera into the second: ``R Y + T``."""
    back = end.matrix.T
    return back @ start.matrix, back @ (start.centre - end.centre)


def project(points: Array, pose: Pose, camera: Intrinsics) -> tuple[Array, Array]:
    """Pixels ``[..., 2]`` and depths ``[...]`` of world points ``[..., 3]``; only depths above `NEAR` are seen."""
    seen = (points - pose.centre) @ pose.matrix
    depth = seen[..., 2]
    centre = np.array([camera.width / 2, camera.height / 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        return camera.focal * seen[..., :2] / depth[..., None] + centre, depth


def unproject(pixels: Array, depth: Array, pose: Pose, camera: Intrinsics) -> Array:
    """World points ``[..., 3]`` of pixels ``[..., 2]`` at ``depth`` ``[...]`` (along z, not along the ray)."""
    centre = np.array([camera.width / 2, camera.height / 2])
    rays = np.concatenate(((pixels - centre) / camera.focal, np.ones((*pixels.shape[:-1], 1))), axis=-1)
    return pose.centre + (rays * depth[..., None]) @ pose.matrix.T


def rotation_homography(start: Pose, end: Pose, first: Intrinsics, second: Intrinsics) -> Array:
    """``[3, 3]`` from pixels of the first view to the second, exact for any scene. Raises where the camera moved."""
    if start.position != end.position:
        raise ConfigError("the camera changes its place, expected turns and zooms alone; give a depth or a plane")
    turn, _ = relative(start, end)
    return _scale(second.matrix @ turn @ np.linalg.inv(first.matrix))


def plane_homography(
    start: Pose,
    end: Pose,
    cameras: tuple[Intrinsics, Intrinsics],
    normal: tuple[float, float, float] = (0.0, 0.0, 1.0),
    distance: float = 1.0,
) -> Array:
    """``[3, 3]`` from pixels of the first view to the second for a plane ``normal . Y = distance`` of the first one.

    A facing wall has the normal (0, 0, 1). Raises `ConfigError` for a distance that is not positive.
    """
    if not distance > 0:
        raise ConfigError(f"plane distance is {distance}, expected above 0")
    turn, shift = relative(start, end)
    unit = np.array(normal, dtype=np.float64) / np.linalg.norm(normal)
    first, second = cameras
    return _scale(second.matrix @ (turn + np.outer(shift, unit) / distance) @ np.linalg.inv(first.matrix))


def _scale(matrix: Array) -> Array:
    """With 1 in the corner, or -1 where the first view's centre lies behind the second camera: the sign is kept."""
    return matrix / abs(matrix[2, 2])


def map_pixels(homography: Array, pixels: Array) -> Array:
    """Pixels ``[..., 2]`` carried by a homography."""
    mapped = np.concatenate((pixels, np.ones((*pixels.shape[:-1], 1))), axis=-1) @ homography.T
    return mapped[..., :2] / mapped[..., 2:]


def orbit(start: Pose, radius: float, azimuth: float, elevation: float = 0.0) -> Pose:
    """The pose on a sphere of ``radius`` around the point ahead; azimuth > 0 to its right, elevation > 0 up."""
    target = start.centre + radius * start.matrix[:, 2]
    pan, tilt, roll = start.rotation
    rotation = (pan - azimuth, tilt - elevation, roll)
    x, y, z = target - radius * Pose(rotation=rotation).matrix[:, 2]
    return Pose((float(x), float(y), float(z)), rotation)
