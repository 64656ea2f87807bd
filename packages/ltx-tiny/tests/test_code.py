"""The code of a scene: what every cell of a taught latent says."""

from dataclasses import replace

import numpy as np
import pytest

from ltx_tiny.eval.code import read_code
from ltx_tiny.world.code import (
    CELL,
    CHANNELS,
    DEEPEST,
    DEPTHS,
    MEAN_AND_SLOPE,
    POINTS,
    SHAPE_POINTS,
    TRANSFORM,
    scene_code,
    simplex,
)
from ltx_tiny.world.motion import track
from ltx_tiny.world.picture import Window, distance
from ltx_tiny.world.scene import SHAPES, Body, Scene, attributes, sample_scene

BODY = Body("star", "red", "large", "stays still", None, x=0.1, y=0.0, period=1.0, phase=0.0, tilt=0.0)
SCENE = Scene((BODY,), "mint", "still")


def layers(scene, **given):
    code = scene_code(scene, given.pop("frames", 17), 256, 256, 25.0, **given)
    return dict(zip(CHANNELS, code, strict=True))


def test_a_code_lies_on_the_grid_of_a_latent():
    code = scene_code(SCENE, 17, 128, 256, 25.0)
    assert code.shape == (len(CHANNELS), 3, 4, 8) and code.dtype == np.float32
    assert len(CHANNELS) <= 128


def test_cells_near_a_body_say_where_and_what_it_is():
    said, path = layers(SCENE), track(SCENE, BODY, np.zeros(1))
    f, row, column = np.unravel_index(said["near"].argmax(), said["near"].shape)
    assert said["near"][f, row, column] == 1.0
    x = (CELL * (column + 0.5) - path.x[0] * 256 - 128) / CELL
    y = (CELL * (row + 0.5) - path.y[0] * 256 - 128) / CELL
    assert said["x"][f, row, column] == pytest.approx(x / 2, abs=1e-5)
    assert said["own y 0"][f, row, column] == pytest.approx(y * CELL / (path.radius[0] * 256) / 1.5, abs=1e-5)
    deepest = said["depth 00 0"].max() / DEPTHS[0, 0, 0]
    assert deepest > DEEPEST > said["depth 00 0"][0, 0, 0]
    point = np.array([said[f"shape {i}"][f, row, column] for i in range(4)])
    assert np.linalg.norm(SHAPE_POINTS - point, axis=1).argmin() == SHAPES.index("star")


def test_a_cell_says_the_mean_and_the_slopes_of_the_depth_at_its_points():
    said, path = layers(SCENE), track(SCENE, BODY, np.zeros(1))
    f, row, column = 0, 4, 5
    assert said["near"][f, row, column] == 1.0
    middle = (CELL * np.array([column, row]) + CELL / 2 - 128 - 256 * np.array([path.x[0], path.y[0]])) / CELL
    radius = path.radius[0] * 256 / CELL
    across, down = np.meshgrid(middle[0] + np.array(POINTS), middle[1] + np.array(POINTS))
    depth = DEEPEST - distance(BODY.shape, across / radius, down / radius) * radius
    waves = MEAN_AND_SLOPE @ depth @ MEAN_AND_SLOPE.T
    assert waves[0, 0] == pytest.approx(depth.mean()) and abs(waves[0, 1]) > 0.01
    for d, a in ((0, 0), (0, 1), (1, 0)):
        found = said[f"depth {d}{a} 0"][f, row, column] / DEPTHS[d, a, 0]
        assert found == pytest.approx(waves[d, a], abs=1e-4)


def test_what_is_still_leaves_the_changes_at_nothing():
    changes = [name for name in CHANNELS if "change" in name or (name[-1] in "123" and not name.startswith("shape"))]
    said = layers(SCENE)
    assert len(changes) == 22 and all(np.abs(said[name]).max() < 1e-6 for name in changes)
    bounce = layers(replace(SCENE, bodies=(replace(BODY, motion="bounces", period=0.7, pitch="low"),)))
    assert np.abs(bounce["own y 1"]).max() > 0.5


def test_the_first_latent_frame_stands_for_one_picture():
    bounce = replace(SCENE, bodies=(replace(BODY, motion="bounces", period=0.7, pitch="low"),))
    said = layers(bounce)
    assert np.abs(said["own y 1"][0]).max() < 1e-6
    assert np.allclose(layers(bounce, frames=9)["own y 0"], said["own y 0"][:2])  # and no frame depends on later ones


@pytest.mark.parametrize("seed", range(4))
def test_a_window_is_cut_from_the_whole(seed):
    scene = sample_scene(np.random.default_rng(seed))
    part = scene_code(scene, 9, 256, 256, 25.0, 0.2, Window(64, 32, 96, 128))
    assert np.allclose(part, scene_code(scene, 9, 256, 256, 25.0, 0.2)[:, :, 2:5, 1:5])


def test_a_body_that_is_gone_is_not_told_of():
    blinking = replace(SCENE, bodies=(replace(BODY, motion="blinks", period=2.0, pitch="low", phase=0.7),))
    said = layers(blinking, frames=9)
    assert not said["near"].any() and not said["x"].any() and said["stage red"].any()


def test_points_of_a_simplex_are_equally_far_apart():
    points = simplex(5)
    apart = np.linalg.norm(points[:, None] - points, axis=-1)[~np.eye(5, dtype=bool)]
    assert np.ptp(apart) < 1e-9 and np.allclose(points.std(axis=0), 1) and np.allclose(points.mean(axis=0), 0)


def test_the_transform_of_pairs_is_that_of_a_line():
    assert np.allclose(TRANSFORM @ np.ones(4), [1, 0, 0, 0])
    assert np.linalg.matrix_rank(TRANSFORM) == 4


@pytest.mark.parametrize("side", [128, 256])
def test_everything_can_be_read_back_from_a_code(side):
    for number in range(12):
        scene = sample_scene(np.random.default_rng((8, number)), None)
        found = read_code(scene_code(scene, 49, side, side, 25.0), 25.0)
        assert found == {name: attributes(scene)[name] for name in found}


def test_what_is_not_there_is_not_read():
    code = scene_code(SCENE, 17, 128, 128, 25.0)
    code[CHANNELS.index("near")] = 0.0
    found = read_code(code, 25.0)
    assert (found["shape"], found["background"]) == ("unknown", "mint")
