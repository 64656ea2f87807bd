"""A scene as white lines on black: outline, pale mark and horizon, as an edge detector would leave them.

What an in-context adapter is given to turn into a clip. The camera may zoom; where it pans cannot be seen.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ltx_tiny.world.motion import HORIZON_Y, camera, track
from ltx_tiny.world.picture import MARK, Image, distance, grid
from ltx_tiny.world.scene import Scene

LINE = 0.014  # width of a line in stage units
PAPER, INK = 0, 255


def drawable(scene: Scene) -> Scene:
    """The scene with a camera whose motion a drawing can show."""
    return replace(scene, camera="still") if scene.camera.startswith("pans") else scene


def draw_lines(scene: Scene, frames: int, height: int, width: int, fps: float, start: float = 0.0) -> Image:
    """The drawing of a scene from ``start`` seconds on: uint8 ``[F, H, W, 3]``."""
    scene = drawable(scene)
    t = start + np.arange(frames) / fps
    x, y = grid(height, width)
    path, view = track(scene, scene.body, t), camera(scene, t)
    shape = scene.body.shape
    away, dot = MARK.get(shape, MARK["other"])
    ink = np.zeros((frames, height, width), dtype=np.float32)
    for f in range(frames):
        radius, zoom = path.radius[f] * view.zoom[f], view.zoom[f]
        across, down = (x - path.x[f] * zoom) / radius, ((y - path.y[f] * zoom) / radius)[:, None]
        cos, sin = np.cos(path.angle[f]), np.sin(path.angle[f])
        own_x, own_y = across * cos + down * sin, down * cos - across * sin
        outline = distance(shape, own_x.astype(np.float32), own_y.astype(np.float32)) * radius
        mark = (np.hypot(own_x, own_y + away) - dot) * radius
        floor = np.where(outline > 0, (y - HORIZON_Y * zoom)[:, None], 1.0)  # hidden by the body
        edges = np.minimum(np.minimum(np.abs(outline), np.abs(mark)) + (1.0 - path.alpha[f]), np.abs(floor))
        ink[f] = np.clip((LINE - edges) * min(height, width), 0.0, 1.0)
    return np.repeat((PAPER + (INK - PAPER) * ink + 0.5).astype(np.uint8)[..., None], 3, axis=-1)
