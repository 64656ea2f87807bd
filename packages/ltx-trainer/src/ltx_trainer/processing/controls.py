"""References made of the clips themselves, for adapters that follow a control: edges, a small or a blurred picture.

A control takes frames ``[3, F, H, W]`` in [-1, 1] and gives frames of the same shape. ``depth:FOLDER`` and
``pose:FOLDER`` are made by networks in folders; packages register others under the entry points ``ltx.controls``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import ConfigError, nearest_hint

Control = Callable[[Tensor], Tensor]

LOW, HIGH = 0.1, 0.25  # gradients per pixel that continue an edge, and that begin one
SMOOTHING, BLUR = 1.4, 6.0  # standard deviations, pixels
SMALLER = 4  # times, on each side
MOST_ROUNDS = 1000
#: Controls made by networks that users name, and what those are.
NETWORKS = {
    "depth": "a depth model, such as depth-anything/Depth-Anything-V2-Small-hf",
    "pose": "a ViTPose model, such as usyd-community/vitpose-base-simple; after a comma that of a detector of persons",
}


def find_control(name: str, device: str = "cpu") -> Control:
    """A control that is built in, made by the network in a folder, or installed.

    Raises `ConfigError` with the nearest name, and where there is no such network.
    """
    if name in CONTROLS:
        return CONTROLS[name]
    installed = {entry.name: entry for entry in entry_points(group="ltx.controls")}
    if name in installed:
        found: Control = installed[name].load()
        return found
    kind, _, place = name.partition(":")
    if kind in NETWORKS:
        if not place:
            raise ConfigError(f"control is {name!r}, expected {kind}:FOLDER with the folder of {NETWORKS[kind]}")
        return _open(kind, place, device)
    known = (*CONTROLS, *NETWORKS, *installed)
    raise ConfigError(f"control is {name!r}, expected one of {', '.join(known)}{nearest_hint(name, known)}")


@lru_cache(maxsize=2)
def _open(kind: str, place: str, device: str) -> Control:
    """A control with its network, kept for the clips that follow."""
    from ltx_trainer.processing.depth import depth_control
    from ltx_trainer.processing.pose import pose_control

    return depth_control(place, device) if kind == "depth" else pose_control(place, device)


def release_networks() -> None:
    """Let go of the networks of controls; `find_control` reads them again."""
    _open.cache_clear()


def canny(frames: Tensor) -> Tensor:
    """White edges of one pixel on black, after J. Canny, "A computational approach to edge detection" (1986)."""
    grey = gaussian(((frames.float() + 1) / 2).mean(dim=0)[:, None], SMOOTHING)  # [F, 1, H, W]
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    gx, gy = (F.conv2d(padded, one[None, None]) for one in (kernel, kernel.T))
    strength = torch.hypot(gx, gy)
    thin = strength * _is_ridge(strength, torch.atan2(gy, gx))
    weak, edges = thin > LOW, thin > HIGH
    for _ in range(MOST_ROUNDS):
        grown = (F.max_pool2d(edges.float(), 3, stride=1, padding=1) > 0) & weak
        if torch.equal(grown, edges):
            break
        edges = grown
    return (edges[:, 0].to(frames.dtype) * 2 - 1).expand(3, -1, -1, -1).contiguous()


def _is_ridge(strength: Tensor, angle: Tensor) -> Tensor:
    """Mask of points where the gradient is no weaker than at both neighbours along it."""
    around = F.pad(strength, (1, 1, 1, 1))
    height, width = strength.shape[-2:]
    sector = (angle / (torch.pi / 4)).round().long() % 4
    ridge = torch.zeros_like(strength, dtype=torch.bool)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead, behind = (
            around[..., 1 + sign * dy : 1 + sign * dy + height, 1 + sign * dx : 1 + sign * dx + width]
            for sign in (1, -1)
        )
        ridge |= (sector == number) & (strength >= ahead) & (strength > behind)
    return ridge


def downscale(frames: Tensor) -> Tensor:
    """A picture blurred to the detail of a quarter of its width and height."""
    height, width = frames.shape[-2:]
    batch = frames.transpose(0, 1)
    size = max(height // SMALLER, 1), max(width // SMALLER, 1)
    small = F.interpolate(batch.float(), size, mode="bilinear", antialias=True, align_corners=False)
    large = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
    return large.clamp(-1, 1).transpose(0, 1).to(frames.dtype)


def blur(frames: Tensor) -> Tensor:
    """The picture without its details."""
    return gaussian(frames.transpose(0, 1).float(), BLUR).transpose(0, 1).to(frames.dtype)


def gaussian(pictures: Tensor, deviation: float) -> Tensor:
    """Pictures ``[N, C, H, W]`` blurred with a standard deviation in pixels; edges are continued."""
    reach = round(3 * deviation)
    line = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * deviation**2))
    kernel = (line / line.sum()).expand(pictures.shape[1], 1, -1)
    for pad, shape in (((reach, reach, 0, 0), (1, -1)), ((0, 0, reach, reach), (-1, 1))):
        padded = F.pad(pictures, pad, mode="replicate")
        pictures = F.conv2d(padded, kernel.unflatten(-1, shape), groups=pictures.shape[1])
    return pictures


CONTROLS: dict[str, Control] = {"canny": canny, "downscale": downscale, "blur": blur}
