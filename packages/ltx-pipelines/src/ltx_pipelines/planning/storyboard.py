"""A storyboard: the scenes of a long clip in a YAML file, each with its prompt, length, pictures and camera.

::

    - prompt: a red ball bounces
      seconds: 4
      keyframes:
        - {image: ball.png, at: 0.5, strength: 0.8, release: smoothstep}
    - prompt: a blue box spins
      seconds: 3
      camera: pan left 15
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ltx_core.components.strength import Curve
from ltx_core.errors import ConfigError
from ltx_core.textfiles import read_yaml
from ltx_pipelines.planning.plan import ImageCondition, Scene
from ltx_pipelines.planning.schema import Misfit, fit


@dataclass(frozen=True)
class SceneKeyframe:
    """A picture ``at`` seconds into its scene; the rest as in `ImageCondition`."""

    image: str
    at: float = 0.0
    strength: float = 1.0
    release: Curve = "hold"
    reach: int = 0
    curve: Curve = "hold"


@dataclass(frozen=True)
class BoardScene:
    """A scene as the file says it."""

    prompt: str
    seconds: float
    camera: str | None = None
    keyframes: tuple[SceneKeyframe, ...] = ()


@dataclass(frozen=True)
class Storyboard:
    """Scenes in their order, with all pictures by their frame in the whole clip."""

    scenes: tuple[Scene, ...]
    images: tuple[ImageCondition, ...]
    seconds: float


def read_storyboard(path: str, fps: float, common: str = "") -> Storyboard:
    """Read a file; ``common`` stands before every prompt. Pictures are looked for beside the file.

    Raises `ConfigError` that names the file, the scene and what does not fit.
    """
    listed = read_yaml(Path(path))
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{path}: holds {type(listed).__name__}, expected a list of scenes")
    scenes: list[Scene] = []
    images: list[ImageCondition] = []
    start = 0.0
    for number, entry in enumerate(listed, 1):
        scene = _read_scene(entry, f"{path}: scene {number}")
        scenes.append(Scene(f"{common} {scene.prompt}".strip(), round(start * fps), scene.camera))
        for key in scene.keyframes:
            if not 0 <= key.at < scene.seconds:
                raise ConfigError(f"{path}: scene {number}: at is {key.at:g} s, the scene has {scene.seconds:g} s")
            place = str(Path(path).parent / key.image)
            frame = round((start + key.at) * fps)
            images.append(ImageCondition(place, frame, key.strength, None, key.release, key.reach, key.curve))
        start += scene.seconds
    return Storyboard(tuple(scenes), tuple(images), start)


def _read_scene(entry: object, where: str) -> BoardScene:
    try:
        scene: BoardScene = fit(BoardScene, entry)
    except (Misfit, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from None
    if not scene.seconds > 0:
        raise ConfigError(f"{where}: seconds is {scene.seconds:g}, expected more than 0")
    if not scene.prompt.strip():
        raise ConfigError(f"{where}: prompt is empty, expected a description of the scene")
    return scene
