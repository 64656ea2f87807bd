"""Pictures that are given as values and not as files: kept as PNG files, so that a plan stays plain JSON."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_core.errors import ConfigError

if TYPE_CHECKING:
    import torch


def with_picture_files(images: Any) -> Any:
    """The same with every picture (PIL, tensor, array) replaced by the name of a file that holds it."""
    if isinstance(images, str | bytes | os.PathLike | int | float) or images is None or is_dataclass(images):
        return images
    if isinstance(images, Mapping):
        return {name: with_picture_files(value) for name, value in images.items()}
    if isinstance(images, Sequence):
        return [with_picture_files(value) for value in images]
    return str(picture_file(images))


def picture_file(picture: Any) -> Path:
    """A PNG file of a picture, named by its content, in the cache folder of the user.

    ``picture`` is a PIL image, or a tensor or array ``[H, W, 3]`` or ``[3, H, W]``, uint8 or float in [0, 1].
    """
    from ltx_pipelines.utils.media_io import write_png

    pixels = pixels_of(picture)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.blake2b(pixels.numpy().tobytes() + repr(pixels.shape).encode(), digest_size=16).hexdigest()
    path = cache / "ltx" / "pictures" / f"{digest}.png"
    if not path.exists():
        write_png(path, pixels)
    return path


def pixels_of(picture: Any) -> torch.Tensor:
    """uint8 ``[H, W, 3]``. Raises `ConfigError` for what is no picture."""
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(picture, Image.Image):
        return torch.from_numpy(np.array(picture.convert("RGB")))
    try:
        pixels = picture.detach().cpu() if isinstance(picture, torch.Tensor) else torch.from_numpy(np.array(picture))
    except TypeError:
        pixels = torch.zeros(0)
    pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
    pixels = pixels.movedim(0, -1) if pixels.ndim == 3 and pixels.shape[0] == 3 != pixels.shape[-1] else pixels
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        expected = "expected a file name, a PIL image, or a tensor or array [H, W, 3]"
        raise ConfigError(f"images hold {type(picture).__name__} {list(getattr(picture, 'shape', ()))}, {expected}")
    if pixels.is_floating_point():
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ConfigError(f"an image goes from {pixels.min():g} to {pixels.max():g}, expected floats in [0, 1]")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ConfigError(f"an image is {pixels.dtype}, expected uint8 or floats in [0, 1]")
    return pixels.contiguous()
