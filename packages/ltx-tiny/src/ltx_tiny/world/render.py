"""A scene as a clip: pictures and the sound that belongs to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx_core.errors import ConfigError
from ltx_tiny.world.picture import draw
from ltx_tiny.world.scene import Scene
from ltx_tiny.world.sound import play


def render(
    scene: Scene, frames: int = 49, height: int = 256, width: int = 256, fps: float = 25.0
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw and play a scene.

    Returns the video, uint8 ``[F, H, W, 3]`` sRGB, frame f showing the instant f / fps, and the sound, float32
    ``[2, S]`` in [-1, 1] at 16 kHz with S = round(F / fps * 16000). Raises ``ConfigError`` for an empty size.
    """
    if frames < 1 or height < 8 or width < 8 or not fps > 0:
        size = f"{frames} frames of {height}x{width} at {fps} fps"
        raise ConfigError(f"clip is {size}, expected at least 1 frame of 8x8 at a positive rate")
    return draw(scene, frames, height, width, fps), play(scene, frames / fps)
