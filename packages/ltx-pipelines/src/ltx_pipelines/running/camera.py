"""Views of the first picture by a moved camera, as a condition: held where it is seen, made where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape
from ltx_media.camera.path import camera_path_from_json
from ltx_media.camera.warp import Warped, fill_holes, warp_still
from ltx_media.source import Wanted, normalize_source
from ltx_pipelines.planning.plan import CameraCondition

FINER = 2  # how much larger than the clip the picture is warped from, so that a zoom finds something
SEEN_SHARE = 0.95  # of a cell in every one of its frames, for the cell to be held


def warped_clip(camera: CameraCondition, shape: VideoPixelShape, background: str) -> list[Warped]:
    """The camera's view of the picture at each frame, ``[3, H, W]`` in [-1, 1], and its holes."""
    keys = camera_path_from_json(camera.camera_path).frames(shape.frames, shape.fps)
    height, width = FINER * shape.height, FINER * shape.width
    still = normalize_source(camera.image, Wanted(height, width, 1, background=background)).video[0, :, 0]
    depth = None if camera.depth is None else read_depth(camera.depth, height, width)
    return warp_still(still, keys, depth, camera.plane, (shape.height, shape.width))


def seen_cells(frames: list[Warped], factors: SpatioTemporalScaleFactors) -> Tensor:
    """Latent cells ``[f, h, w]`` that show the picture alone in all their frames, as do their neighbours."""
    shown = torch.stack([(~frame.hole).float() for frame in frames])[:, None]
    size = shown.shape[2] // factors.height, shown.shape[3] // factors.width
    cells = F.interpolate(shown, size=size, mode="area")[:, 0]
    grouped = cells[1:].unflatten(0, (-1, factors.time)).amin(dim=1) if len(frames) > 1 else cells[:0]
    lowest = torch.cat((cells[:1], grouped))
    around = -F.max_pool2d(-lowest[:, None], 3, stride=1, padding=1)[:, 0]  # the encoder looks beyond its cell
    return around >= SEEN_SHARE


def fill_frames(frames: list[Warped]) -> Tensor:
    """The frames ``[1, 3, F, H, W]`` with their holes filled from around them."""
    return torch.stack([fill_holes(frame) for frame in frames], dim=1)[None]


def read_depth(path: str, height: int, width: int) -> np.ndarray:
    """A depth map ``[height, width]`` in scene units from .npy or the tensor ``depth`` of .safetensors, by area."""
    try:
        if path.endswith(".safetensors"):
            values = SafetensorsFile(Path(path)).read("depth").float()
        else:
            values = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot read depth, expected .npy or .safetensors with `depth`: {error}") from error
    values = values.squeeze()
    if values.ndim != 2 or not bool((values > 0).all()):
        raise MediaError(f"{path}: depth has shape {list(values.shape)}, expected [H, W] of values above 0")
    return F.interpolate(values[None, None], size=(height, width), mode="nearest")[0, 0].double().numpy()
