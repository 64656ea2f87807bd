"""The pinhole camera: oracles of its geometry, moves in words, paths as files, and warps against exact renders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltx_core.errors import ConfigError
from ltx_media.camera import CameraPath, Intrinsics, Key, Pose, parse_moves, path_of_moves, project, unproject
from ltx_media.camera.geometry import map_pixels, orbit, plane_homography, rotation_homography
from ltx_media.camera.path import camera_path_from_json
from ltx_media.camera.warp import Warped, fill_holes, warp_by_homography, warp_still

CAMERA = Intrinsics(96, 64, 50.0)


def test_project_and_unproject_are_inverse() -> None:
    rng = np.random.default_rng(0)
    pixels, depth = rng.uniform(0, 64, (50, 2)), rng.uniform(0.5, 20, 50)
    pose = Pose((0.3, -1.0, 2.0), (25, -40, 12))
    back, seen = project(unproject(pixels, depth, pose, CAMERA), pose, CAMERA)
    assert np.abs(back - pixels).max() < 1e-9
    assert np.abs(seen - depth).max() < 1e-9


@pytest.mark.parametrize("angle", [-20.0, 7.0, 30.0])
def test_a_pan_moves_the_centre_by_f_tan(angle: float) -> None:
    homography = rotation_homography(Pose(), Pose(rotation=(angle, 0, 0)), CAMERA, CAMERA)
    centre = map_pixels(homography, np.array([48.0, 32.0]))
    assert centre[0] - 48 == pytest.approx(-CAMERA.focal * math.tan(math.radians(angle)), abs=1e-9)


def test_an_orbit_keeps_its_target() -> None:
    target = np.array([0.0, 0.0, 3.0])
    for azimuth in range(-90, 91, 15):
        pose = orbit(Pose(), 3.0, azimuth, azimuth / 4)
        pixel, depth = project(target, pose, CAMERA)
        assert np.abs(pixel - (48, 32)).max() < 1e-9
        assert depth == pytest.approx(3.0)


def textured_plane(pose: Pose, camera: Intrinsics, distance: float = 4.0) -> torch.Tensor:
    """A facing wall with a smooth texture, rendered exactly: each pixel's ray is cut with it."""
    v, u = np.mgrid[0 : camera.height, 0 : camera.width] + 0.5
    near = unproject(np.stack((u, v), -1), np.ones_like(u), pose, camera)
    rays = near - pose.centre
    hit = pose.centre + rays * ((distance - pose.centre[2]) / rays[..., 2])[..., None]
    return torch.from_numpy(0.5 + 0.5 * np.sin(3 * hit[..., 0]) * np.cos(2.5 * hit[..., 1]))[None]


def shift_that_fits(got: torch.Tensor, want: torch.Tensor, hole: torch.Tensor) -> float:
    """Pixels by which ``got`` is off ``want``, by least squares on the gradient of ``want``."""
    gy, gx = torch.gradient(want[0])
    inside = ~hole
    inside[:2] = inside[-2:] = inside[:, :2] = inside[:, -2:] = False
    rows = torch.stack((gx[inside], gy[inside]), dim=1)
    solution = torch.linalg.lstsq(rows, (got - want)[0][inside][:, None]).solution
    return float(solution.norm())


@pytest.mark.parametrize(
    "pose", [Pose((0, 0, 0.8)), Pose((0.4, -0.2, 0)), Pose((0.2, 0.1, 0.5), (6, -3, 4)), Pose(rotation=(8, 2, 0))]
)
def test_a_warped_plane_is_its_render_within_half_a_pixel(pose: Pose) -> None:
    still, truth = textured_plane(Pose(), CAMERA), textured_plane(pose, CAMERA)
    homography = plane_homography(Pose(), pose, (CAMERA, CAMERA), distance=4.0)
    warped, hole = warp_by_homography(still, homography, (64, 96))
    assert shift_that_fits(warped, truth, hole) < 0.1
    assert float((warped - truth)[0][~hole].abs().max()) < 0.05
    depth = np.full((64, 96), 4.0)
    seen = warp_still(still, [Key(0.0), Key(1.0, pose)], depth=depth)[1]
    assert shift_that_fits(seen.image, truth, seen.hole) < 0.5


def test_a_plane_behind_the_camera_is_a_hole_and_no_mirror() -> None:
    turned = rotation_homography(Pose(), Pose(rotation=(170, 0, 0)), CAMERA, CAMERA)
    assert bool(warp_by_homography(torch.ones(1, 64, 96), turned, (64, 96)).hole.all())


def test_holes_are_filled_with_what_is_around_them() -> None:
    image = torch.full((3, 40, 40), 0.7)
    hole = torch.zeros(40, 40, dtype=torch.bool)
    hole[10:30, 12:35] = True
    filled = fill_holes(Warped(image.masked_fill(hole, 0), hole))
    assert torch.allclose(filled, image, atol=1e-5)


def test_moves_in_words() -> None:
    moves = parse_moves("pan left 15, zoom in 1.2, 0-2s; orbit right 30 4, 2-4s")
    assert [(move.kind, move.start, move.end) for move in moves] == [("pan", 0, 2), ("zoom", 0, 2), ("orbit", 2, 4)]
    path = path_of_moves(moves, 4.0)
    start, middle, end = path.at([0.0, 2.0, 4.0])
    assert start.pose == Pose()
    assert start.fov == pytest.approx(50)
    assert middle.pose.rotation[0] == pytest.approx(-15)
    ratio = math.tan(math.radians(start.fov) / 2) / math.tan(math.radians(middle.fov) / 2)
    assert ratio == pytest.approx(1.2)
    target = 4 * middle.pose.matrix[:, 2]
    pixel, _ = project(target, end.pose, CAMERA._replace(fov=end.fov))
    assert np.abs(pixel - (48, 32)).max() < 1e-6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no move"),
        ("pam left 3", "pan"),
        ("pan up 3", "right|left"),
        ("pan left", "AMOUNT"),
        ("pan left -3", "direction gives the sign"),
        ("pan left nan", "positive"),
        ("zoom in 0.5", "at least 1"),
        ("pan left 3 4", "2 numbers"),
        ("pan left 3, 2-1s", "empty"),
    ],
)
def test_wrong_moves_are_refused_with_what_fits(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("|", r"\|")):
        parse_moves(text)


def test_a_move_beyond_the_clip_is_refused() -> None:
    with pytest.raises(ConfigError, match="within the clip of 2 s"):
        path_of_moves(parse_moves("pan left 3, 1-3s"), 2.0)


def test_a_path_survives_its_file() -> None:
    path = CameraPath((Key(0.0, Pose((1, 2, 3), (4, 5, 6)), 40.0), Key(2.0, Pose(), 60.0)), "linear")
    assert camera_path_from_json(path.to_json()) == path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"keys": []}', "keys"),
        ('{"keys": [{"t": 0}, {"t": 0}]}', "key 1"),
        ('{"keys": [{"t": 0, "fov": 200}]}', "key 0"),
        ('{"keys": [{"t": NaN}]}', "keys"),
        ('{"keys": [{"t": 0, "pan": 3}]}', "pan"),
        ("[", "camera path"),
    ],
)
def test_wrong_path_files_name_the_key(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        camera_path_from_json(text)


def test_a_camera_that_changes_place_needs_a_depth() -> None:
    with pytest.raises(ConfigError, match="depth"):
        warp_still(torch.zeros(3, 8, 8), [Key(0.0), Key(1.0, Pose((0, 0, 1)))])
