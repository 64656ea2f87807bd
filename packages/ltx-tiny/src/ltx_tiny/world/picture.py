"""Pictures of a scene: an analytic backdrop, a soft shadow, and a shaded body cut from a signed distance.

A frame is the backdrop with two small patches blended in, so most of it is a copy. All edges are anti-aliased by the
distance to them, at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_tiny.world.motion import GROUND_Y, HORIZON_Y, camera, track
from ltx_tiny.world.scene import COLOURS, Body, Scene

Float = NDArray[np.floating[Any]]
Image = NDArray[np.uint8]

BACKDROPS = {  # wall at the top, wall at the horizon, floor far, floor near; sRGB
    "blue": ((84, 132, 206), (84, 132, 206), (60, 98, 160), (72, 114, 182)),
    "grey": ((150, 152, 156), (150, 152, 156), (112, 114, 118), (132, 134, 138)),
    "white": ((236, 234, 228), (236, 234, 228), (196, 192, 184), (214, 210, 202)),
    "mint": ((206, 238, 214), (124, 196, 162), (92, 156, 128), (112, 180, 148)),
    "night": ((16, 18, 44), (52, 50, 104), (28, 28, 62), (38, 38, 80)),
    "sunset": ((122, 92, 158), (250, 178, 128), (150, 98, 112), (184, 124, 122)),
}
SOFTNESS = 0.025  # least width of an outline's ramp
BOARD = 0.3  # width of a pair of floor boards where things stand
VANISHING_Y = -0.45  # where the floor boards would meet
CORNERS = {  # corners, tip, notch, rounding in radii; turned by so many radians
    "box": (4, 1.0, 0.7071, 0.15, np.pi / 4),
    "triangle": (3, 1.06, 0.53, 0.15, 0.0),
    "star": (5, 0.98, 0.45, 0.14, 0.0),
}
RING = (0.75, 0.25)  # middle of the band and half its width
BEVEL = {"ball": 1.0, "ring": RING[1], "box": 0.34, "triangle": 0.34, "star": 0.3}
MARK = {"ring": (0.75, 0.17), "other": (0.5, 0.22)}  # the pale dot: distance from the centre, radius
LIGHT = np.array([-0.42, -0.62, 0.66], dtype=np.float32)
HALF = np.array([-0.23, -0.34, 0.91], dtype=np.float32)


@dataclass(frozen=True)
class Window:
    """The part of a picture that is drawn, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def grown(self, height: int, width: int) -> Window:
        """With one pixel more on every side that has one: slopes of a surface need a neighbour."""
        top, left = max(self.top - 1, 0), max(self.left - 1, 0)
        bottom, right = min(self.top + self.height + 1, height), min(self.left + self.width + 1, width)
        return Window(top, left, bottom - top, right - left)

    def cut_from(self, video: Image, other: Window) -> Image:
        """This window's part of frames ``[F, H, W, 3]`` of a larger window."""
        top, left = self.top - other.top, self.left - other.left
        return video[:, top : top + self.height, left : left + self.width]


@dataclass(frozen=True)
class Frame:
    """The pixels of a window, and the size of the whole picture they belong to."""

    pixels: Image
    window: Window
    height: int
    width: int


@dataclass(frozen=True)
class Place:
    """Place of a body on the screen in one frame, in screen units."""

    x: float
    y: float
    radius: float
    ground: float  # the height of the floor under it
    alpha: float


def backdrop(name: str, x: Float, y: Float) -> Float:
    """The empty stage at columns ``x [W]`` and rows ``y [H]``: ``[H, W, 3]`` in 0..255."""
    top, low, far, near = (np.array(colour, dtype=np.float32) for colour in BACKDROPS[name])
    pixel = float(y[1] - y[0])
    down = np.clip((y + 0.5) / (HORIZON_Y + 0.5), 0.0, 1.0)[:, None]
    glow = np.exp(-(((y + 0.12) / 0.34) ** 2))[:, None, None] * np.exp(-((x / 0.42) ** 2))[:, None]
    wall = (top + (low - top) * down)[:, None, :]
    wall = wall + (255.0 - wall) * (wall / 255.0) * (0.4 * glow)
    first = int(np.searchsorted(y, HORIZON_Y - pixel))
    rows = y[first:]
    out = wall.astype(np.float32)
    if len(rows):
        depth = np.clip((rows - HORIZON_Y) / (0.5 - HORIZON_Y), 0.0, 1.0)[:, None]
        across = x / ((rows - VANISHING_Y) / (GROUND_Y - VANISHING_Y))[:, None]
        boards = np.clip(4.0 * np.sin(across * (2.0 * np.pi / BOARD)), -1.0, 1.0)[..., None]
        floor = (far + (near - far) * np.sqrt(depth))[:, None, :] * (1.0 + 0.055 * boards)
        cover = np.clip((rows - HORIZON_Y) / pixel + 0.5, 0.0, 1.0)[:, None, None]
        out[first:] += (floor - out[first:]) * cover
    return out


def grid(height: int, width: int) -> tuple[Float, Float]:
    """Pixel centres in screen units: columns ``[W]`` and rows ``[H]``."""
    side = min(height, width)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / side
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / side
    return x, y


def distance(shape: str, x: Float, y: Float) -> Float:
    """Signed distance to the outline of a body of radius 1 at points in its own frame; negative inside."""
    reach = np.sqrt(x * x + y * y)
    if shape == "ball":
        return reach - 1.0
    if shape == "ring":
        return np.abs(reach - RING[0]) - RING[1]
    corners, tip, notch, rounding, turned = CORNERS[shape]
    sector = 2.0 * np.pi / corners
    # Fold the plane into half a sector, where the outline is one segment from the tip to the notch.
    folded = np.abs((np.arctan2(x, -y) + turned + sector / 2) % sector - sector / 2)
    u, v = reach * np.cos(folded) - tip, reach * np.sin(folded)
    du, dv = notch * np.cos(sector / 2) - tip, notch * np.sin(sector / 2)
    along = np.clip((u * du + v * dv) / (du * du + dv * dv), 0.0, 1.0)
    side = np.sign(u * dv - v * du)
    return np.hypot(u - along * du, v - along * dv) * side - rounding


def shade(body: Body, x: Float, y: Float, angle: float, pixel: float, ramp: float) -> tuple[Float, Float]:
    """Colour ``[h, w, 3]`` and coverage ``[h, w]`` of a body of radius 1 at offsets ``x [w]``, ``y [h]`` on screen.

    ``pixel`` is the distance of two offsets and ``ramp`` that from nothing to full cover at the outline.
    """
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    own_x, own_y = x * cos + y[:, None] * sin, y[:, None] * cos - x * sin
    outline = distance(body.shape, own_x, own_y)
    cover = np.clip(0.5 - outline / ramp, 0.0, 1.0)
    slope_y, slope_x = np.gradient(outline, pixel)
    bevel = BEVEL[body.shape]
    lean = np.clip(1.0 + outline / bevel, 0.0, 1.0)
    facing = np.sqrt(1.0 - lean * lean)
    lit = lean * (slope_x * LIGHT[0] + slope_y * LIGHT[1]) + facing * LIGHT[2]
    gleam = lean * (slope_x * HALF[0] + slope_y * HALF[1]) + facing * HALF[2]
    base = np.array(COLOURS[body.colour], dtype=np.float32)
    away, dot = MARK.get(body.shape, MARK["other"])
    mark = np.clip(0.5 - (np.hypot(own_x, own_y + away) - dot) / ramp, 0.0, 1.0)[..., None]
    paint = base + (np.array([255, 250, 240], dtype=np.float32) - base) * mark
    paint = paint * (0.62 + 0.5 * np.maximum(lit, 0.0))[..., None]
    paint += (255.0 - np.minimum(paint, 255.0)) * (0.35 * np.maximum(gleam, 0.0) ** 30)[..., None]
    return np.minimum(paint, 255.0), cover


def draw(
    scene: Scene,
    frames: int,
    height: int,
    width: int,
    fps: float,
    start: float = 0.0,
    window: Window | None = None,
) -> Image:
    """Frames of a scene from ``start`` seconds on: uint8 ``[F, H, W, 3]``, or only a window of them."""
    asked = window or Window(0, 0, height, width)
    window = asked.grown(height, width)
    t = start + np.arange(frames) / fps
    x, y = grid(height, width)
    x, y = x[window.left : window.left + window.width], y[window.top : window.top + window.height]
    view = camera(scene, t)
    tracks = [(body, track(scene, body, t)) for body in scene.bodies]
    video = np.empty((frames, len(y), len(x), 3), dtype=np.uint8)
    moving = scene.camera != "still"
    for f in range(frames):
        zoom = view.zoom[f]
        if moving or f == 0:
            columns, rows = (x / zoom + view.x[f]).astype(np.float32), (y / zoom).astype(np.float32)
            empty = (backdrop(scene.background, columns, rows) + 0.5).astype(np.uint8)
        video[f] = empty
        frame = Frame(video[f], window, height, width)
        for body, path in tracks:
            if path.alpha[f] > 0.0:
                x_on_screen = (path.x[f] - view.x[f]) * zoom
                place = Place(x_on_screen, path.y[f] * zoom, path.radius[f] * zoom, GROUND_Y * zoom, path.alpha[f])
                _shadow(frame, place)
                _body(frame, place, body, path.angle[f])
    return asked.cut_from(video, window)


def _shadow(frame: Frame, place: Place) -> None:
    """Darken the floor under a body; wider and fainter the higher it is."""
    lift = max(place.ground - place.y - place.radius, 0.0)
    wide = place.radius * 1.25 + 0.25 * lift
    tall = 0.24 * wide
    patch = _patch(frame, place.x, place.ground, wide, tall)
    if patch is not None:
        pixels, x, y = patch
        inside = np.maximum(1.0 - (x / wide) ** 2 - ((y / tall) ** 2)[:, None], 0.0)
        dark = 1.0 - (place.alpha * 0.62 / (1.0 + 4.0 * lift)) * inside
        pixels[:] = (pixels * dark[..., None] + 0.5).astype(np.uint8)


def _body(frame: Frame, place: Place, body: Body, angle: float) -> None:
    """Blend a body into a frame."""
    reach = 1.25 * place.radius
    patch = _patch(frame, place.x, place.y, reach, reach)
    if patch is not None:
        pixels, x, y = patch
        pixel = 1.0 / (min(frame.height, frame.width) * place.radius)
        scale = np.float32(place.radius)
        colour, cover = shade(body, x / scale, y / scale, angle, pixel, max(pixel, SOFTNESS / place.radius))
        under = pixels.astype(np.float32)
        pixels[:] = (under + (colour - under) * (cover * place.alpha)[..., None] + 0.5).astype(np.uint8)


def _patch(frame: Frame, x: float, y: float, wide: float, tall: float) -> tuple[Image, Float, Float] | None:
    """The pixels within (wide, tall) of a screen point, and their offsets from it; None if there are none."""
    side, window = min(frame.height, frame.width), frame.window
    column, row = x * side + frame.width / 2, y * side + frame.height / 2
    left = max(int(column - wide * side) - 1, window.left)
    right = min(int(column + wide * side) + 2, window.left + window.width)
    top = max(int(row - tall * side) - 1, window.top)
    bottom = min(int(row + tall * side) + 2, window.top + window.height)
    if right - left < 2 or bottom - top < 2:
        return None
    px = ((np.arange(left, right) + 0.5 - column) / side).astype(np.float32)
    py = ((np.arange(top, bottom) + 0.5 - row) / side).astype(np.float32)
    rows, columns = (
        slice(a - first, b - first) for a, b, first in ((top, bottom, window.top), (left, right, window.left))
    )
    return frame.pixels[rows, columns], px, py
