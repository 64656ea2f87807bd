"""A pinhole camera that follows a path, and what that does to pictures.

Right-handed, x right, y down, z forward, for camera and world alike; a camera at rest sits at the origin and looks
along +z. Angles are in degrees, lengths in scene units, times in seconds. Pixel ``(i, j)`` has its centre at
``(u, v) = (j + 0.5, i + 0.5)``; ``fov`` is the horizontal field of view.
"""

from ltx_media.camera.geometry import Intrinsics, Pose, plane_homography, project, rotation_homography, unproject
from ltx_media.camera.moves import Move, parse_moves, path_of_moves
from ltx_media.camera.path import CameraPath, Key

__all__ = [
    "CameraPath",
    "Intrinsics",
    "Key",
    "Move",
    "Pose",
    "parse_moves",
    "path_of_moves",
    "plane_homography",
    "project",
    "rotation_homography",
    "unproject",
]
