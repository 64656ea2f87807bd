"""Views of a picture by a moved camera: exact for turns and zooms, by a plane or a depth map when it changes place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_media.camera.geometry import (
    NEAR,
    Array,
    Intrinsics,
    Pose,
    plane_homography,
    project,
    rotation_homography,
    unproject,
)
from ltx_media.camera.path import Key


class Warped(NamedTuple):
    """A warped picture ``[C, H, W]`` and its holes ``[H, W]`` (true where the first view shows nothing)."""

    image: Tensor
    hole: Tensor


def warp_by_homography(image: Tensor, homography: Array, size: tuple[int, int]) -> Warped:
    """Sample ``image`` ``[C, h, w]`` for every pixel centre of a target of ``size`` (H, W), bilinearly.

    ``homography`` maps pixels of ``image`` to the target. Where the picture is minified more than 1.5 times it is
    first reduced by area, so that it does not alias.
    """
    height, width = size
    back: Array = np.linalg.inv(homography).astype(np.float64)
    shrink = _minification(back, size)
    if shrink > 1.5:
        small = F.interpolate(image[None], scale_factor=1 / shrink, mode="area")[0]
        scale = np.diag([image.shape[2] / small.shape[2], image.shape[1] / small.shape[1], 1.0])
        back, image = np.linalg.inv(scale) @ back, small
    v, u = np.mgrid[0:height, 0:width] + 0.5
    source = np.stack((u, v, np.ones_like(u)), axis=-1) @ back.T
    front = source[..., 2] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        places = source[..., :2] / source[..., 2:]
    limits = np.array([image.shape[2], image.shape[1]])
    inside = front & ((places >= 0) & (places <= limits)).all(axis=-1)
    grid = torch.from_numpy(np.where(inside[..., None], 2 * places / limits - 1, 2.0)).to(image.dtype)
    sampled = F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    hole = torch.from_numpy(~inside)
    return Warped(sampled.masked_fill(hole, 0), hole)


def _minification(back: Array, size: tuple[int, int]) -> float:
    """Source pixels per target pixel at the target's centre."""
    height, width = size
    centre = np.array([[width / 2, height / 2], [width / 2 + 1, height / 2], [width / 2, height / 2 + 1]])
    mapped = np.concatenate((centre, np.ones((3, 1))), axis=1) @ back.T
    points = mapped[:, :2] / mapped[:, 2:]
    return float(max(np.linalg.norm(points[1] - points[0]), np.linalg.norm(points[2] - points[0])))


class Reprojection(NamedTuple):
    """A picture seen from another place by its depth, and where each of its pixels went."""

    points: Array  # [H, W, 2] pixels of the new view
    depth: Array  # [H, W] along its z axis
    visible: np.ndarray  # [H, W] the nearest one in its cell of the new view
    image: Tensor  # [C, H, W]
    zbuffer: Array  # [H, W]; 0 in holes
    hole: np.ndarray  # [H, W]


def reproject(
    image: Tensor, depth: Array, start: Pose, end: Pose, cameras: tuple[Intrinsics, Intrinsics]
) -> Reprojection:
    """Splat every pixel of ``image`` ``[C, H, W]`` at ``depth`` ``[H, W]`` into the second view.

    A pixel falls into the cell of its floor; the nearest wins, at equal depth the first. Cells without a winner are
    holes. Raises `ConfigError` when depth and picture differ in size or a depth is not positive.
    """
    height, width = depth.shape
    if tuple(image.shape[-2:]) != (height, width):
        raise ConfigError(f"depth is {width}x{height}, expected {image.shape[-1]}x{image.shape[-2]} like the picture")
    if not (depth > 0).all():
        raise ConfigError("depth has values that are not above 0")
    v, u = np.mgrid[0:height, 0:width] + 0.5
    points, new_depth = project(unproject(np.stack((u, v), axis=-1), depth, start, cameras[0]), end, cameras[1])
    with np.errstate(invalid="ignore"):
        cells = np.floor(points)
        inside = (cells >= 0).all(axis=-1) & (cells[..., 0] < cameras[1].width) & (cells[..., 1] < cameras[1].height)
    source = np.flatnonzero((new_depth > NEAR) & inside)
    order = source[np.lexsort((source, new_depth.ravel()[source]))]
    columns, rows = (cells.reshape(-1, 2)[order, axis].astype(np.int64) for axis in (0, 1))
    _, first = np.unique(rows * cameras[1].width + columns, return_index=True)
    winners, rows, columns = order[first], rows[first], columns[first]
    warped = torch.zeros(image.shape[0], cameras[1].height, cameras[1].width, dtype=image.dtype)
    warped[:, rows, columns] = image.flatten(1)[:, winners]
    visible = np.zeros((height, width), dtype=bool)
    visible.flat[winners] = True
    zbuffer = np.zeros((cameras[1].height, cameras[1].width))
    zbuffer[rows, columns] = new_depth.ravel()[winners]
    hole = np.ones_like(zbuffer, dtype=bool)
    hole[rows, columns] = False
    return Reprojection(points, new_depth, visible, warped, zbuffer, hole)


def warp_still(
    image: Tensor,
    keys: Sequence[Key],
    depth: Array | None = None,
    plane: float | None = None,
    size: tuple[int, int] | None = None,
) -> list[Warped]:
    """Views, one for each of ``keys``, of a still ``[C, h, w]`` that the first of them sees as it is.

    Frames have ``size`` (H, W), by default the still's. Turns and zooms need nothing else; when the camera changes its
    place, ``depth`` ``[h, w]`` or the distance of a facing ``plane``. Every frame is warped from the still itself.
    Raises `ConfigError` when neither is given.
    """
    height, width = image.shape[-2:]
    return [_warp_one(image, (keys[0], key), size or (height, width), depth, plane) for key in keys]


def _warp_one(
    image: Tensor, keys: tuple[Key, Key], size: tuple[int, int], depth: Array | None, plane: float | None
) -> Warped:
    first, key = keys
    height, width = image.shape[-2:]
    cameras = (Intrinsics(width, height, first.fov), Intrinsics(size[1], size[0], key.fov))
    if first.pose.position == key.pose.position:
        return warp_by_homography(image, rotation_homography(first.pose, key.pose, *cameras), size)
    if depth is not None:
        seen = reproject(image, depth, first.pose, key.pose, cameras)
        return _close_cracks(Warped(seen.image, torch.from_numpy(seen.hole)))
    if plane is not None:
        homography = plane_homography(first.pose, key.pose, cameras, distance=plane)
        return warp_by_homography(image, homography, size)
    raise ConfigError("the camera changes its place: expected a depth file or the distance of a plane")


def _close_cracks(seen: Warped) -> Warped:
    """Cracks one cell wide filled by the mean of their valid neighbours; larger holes stay."""
    valid = (~seen.hole).to(seen.image.dtype)[None, None]
    kernel = torch.ones(1, 1, 3, 3, dtype=valid.dtype)
    count = F.conv2d(valid, kernel, padding=1)
    crack = seen.hole & (count[0, 0] >= 6)
    mean = F.conv2d((seen.image[:, None] * valid), kernel, padding=1)[:, 0] / count[0].clamp(min=1)
    return Warped(torch.where(crack, mean, seen.image), seen.hole & ~crack)


def fill_holes(seen: Warped) -> Tensor:
    """The picture ``[C, H, W]`` with its holes filled from their surroundings, coarse to fine, never black."""
    weight = (~seen.hole).to(seen.image.dtype)[None]
    return _push_pull(seen.image * weight, weight)


def _push_pull(image: Tensor, weight: Tensor) -> Tensor:
    if min(image.shape[-2:]) <= 1 or bool((weight > 0).all()):
        return image / weight.clamp(min=1e-6)
    half = (max((image.shape[-2] + 1) // 2, 1), max((image.shape[-1] + 1) // 2, 1))
    coarse = _push_pull(*(F.adaptive_avg_pool2d(part[None], half)[0] for part in (image, weight)))
    below = F.interpolate(coarse[None], size=image.shape[-2:], mode="bilinear", align_corners=False)[0]
    return torch.where(weight > 0, image / weight.clamp(min=1e-6), below)
