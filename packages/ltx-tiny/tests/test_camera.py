"""Where the camera of a clip goes that is steered by a warped picture, read off the bundled model's clips."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ltx_media.camera import CameraPath, Intrinsics, Key, Pose
from ltx_media.images import write_png
from ltx_pipelines import TI2VidTwoStagesPipeline
from ltx_tiny.eval.stage import find_camera, reduced
from ltx_tiny.world.motion import progress
from ltx_tiny.world.render import render
from ltx_tiny.world.scene import Body, Scene

RING = Body("ring", "orange", "small", "spins", None, -0.17, 0.075, 1.02, 0.2, 0.0)
SCENE = Scene((RING,), "grey", "still")
PAN, ZOOM, FOV = 5.0, 1.13, 50.0
FRAMES, FPS = 49, 25.0


def path_of(kind: str) -> CameraPath:
    """A pan or a zoom as gentle as the world's own."""
    share = progress(SCENE, np.arange(FRAMES) / FPS)
    keys = []
    for frame, u in enumerate((share - share[0]) / (share[-1] - share[0])):
        fov = math.degrees(2 * math.atan(math.tan(math.radians(FOV) / 2) / ZOOM**u)) if kind == "zoom" else FOV
        keys.append(Key(frame / FPS, Pose(rotation=(PAN * u if kind == "pan" else 0.0, 0.0, 0.0)), fov))
    return CameraPath(tuple(keys), "linear")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "words", "short"), [("pan", "pans right", 0.1), ("zoom", "zooms in", 0.15)])
def test_the_camera_goes_where_it_is_asked_to(kind: str, words: str, short: float, tmp_path: Path) -> None:
    """A pan within 10 %; of a zoom the bundled VAE alone loses 11 %."""
    write_png(tmp_path / "first.png", torch.from_numpy(render(SCENE, 1, 512, 512)[0][0]))
    pipeline = TI2VidTwoStagesPipeline.from_pretrained("tiny")
    prompt, image = f"a small orange ring spins, the camera {words}", (str(tmp_path / "first.png"), 0, 1.0, 0)
    made = pipeline(prompt, images=[image], camera=path_of(kind), progress=False)
    assert made.video is not None
    pan, zoom = find_camera(reduced((made.video.tensor() * 255).round().to(torch.uint8).numpy()))
    focal = Intrinsics(256, 256, FOV).focal
    asked = focal * math.tan(math.radians(PAN)) / 256 if kind == "pan" else math.log(ZOOM)
    got = float(pan[-1] - pan[0]) if kind == "pan" else float(np.log(zoom[-1] / zoom[0]))
    print(f"{kind}: {got:.4f} of {asked:.4f}")
    assert got == pytest.approx(asked, rel=short)
