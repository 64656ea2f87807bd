"""Still pictures: decoding to upright opaque sRGB, the recompression rule, PNG files of pictures and of values."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from torch import Tensor

from ltx_core.errors import ConfigError, MediaError
from ltx_media.files import check_regular, media_errors, replacing
from ltx_media.pixels import composite, long_side_fit, to_bytes

logger = logging.getLogger(__name__)

HEIF_SUFFIXES = (".heic", ".heif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", *HEIF_SUFFIXES)
ORIENTATION = 0x0112  # EXIF tag
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)  # what Pillow refuses beyond
MAX_ASPECT = 100  # pictures are scaled to cover a size before they are cut


def is_image(path: str | Path) -> bool:
    """Whether a file's name is that of a still of 8 or 16 bits."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def load_thumbnail(path: str | Path, long_side: int = 896) -> Tensor:
    """A picture for a language model to look at: uint8 ``[h, w, 3]`` whose longer side is ``long_side``."""
    return long_side_fit(decode_image(path).permute(2, 0, 1)[None], long_side)[0].permute(1, 2, 0)


def decode_image(path: str | Path, background: str = "black") -> Tensor:
    """The picture as uint8 ``[h, w, 3]``: upright by its EXIF tag, in sRGB by its ICC profile, over ``background``.

    The first frame of an animation. Raises ``MediaError`` for missing, truncated, oversized and foreign files.
    """
    with open_image(path) as file:
        image = ImageOps.exif_transpose(file)
        pixels = torch.from_numpy(np.array(_to_srgb(image, path)))
        if not image.has_transparency_data:
            return pixels
        alpha = torch.from_numpy(np.array(image.convert("RGBA").getchannel("A")))
    return composite(torch.cat((pixels, alpha[..., None]), -1), background)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """The decoded picture as it lies in the file. Raises ``MediaError`` as `decode_image` does."""
    if Path(path).suffix.lower() in HEIF_SUFFIXES:
        _register_heif(path)
    with media_errors(path, "read image"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        check_regular(path)
        try:
            file = Image.open(path)
        except Image.DecompressionBombError as error:
            raise MediaError(f"{path}: it has too many pixels, expected at most {MAX_PIXELS:,}") from error
        with file:
            check_size(path, *file.size)
            file.load()
            yield file


def check_size(path: str | Path, width: int, height: int) -> None:
    """Refuse what a file claims to be before it is decoded: too many pixels, or a strip. Raises ``MediaError``."""
    if width * height > MAX_PIXELS:
        raise MediaError(f"{path}: it is {width} x {height}, expected at most {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        expected = f"expected a longer side of at most {MAX_ASPECT} times the shorter"
        raise MediaError(f"{path}: it is {width} x {height}, {expected}")


def quarter_turn(image: Image.Image) -> int:
    """Degrees counter-clockwise that turn a picture upright, by its EXIF tag; whether it is mirrored is left out."""
    return {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}.get(image.getexif().get(ORIENTATION, 1), 0)


def _register_heif(path: str | Path) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise MediaError(f"{path}: HEIC pictures need `pip install pillow-heif`, or a copy as PNG or JPEG") from error
    register_heif_opener()


def recompress_image(image: Tensor, crf: float) -> Tensor:
    """uint8 ``[h, w, 3]`` through one H.264 frame at ``crf``; cut to even sides. ``crf`` 0 and one-pixel sides pass."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    if crf <= 0 or height < 2 or width < 2:
        return image
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as sink:
        stream = sink.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        pixels = np.ascontiguousarray(image[:height, :width].numpy())
        sink.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")))
        sink.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as source:
        return torch.from_numpy(next(source.decode(video=0)).to_ndarray(format="rgb24"))


def write_png(path: str | Path, image: Tensor, metadata: Mapping[str, str] | None = None) -> None:
    """Write uint8 ``[h, w, 3]`` as PNG; ``metadata`` becomes text chunks (UTF-8). Raises ``MediaError``."""
    text = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        text.add_itxt(key, value, zip=len(value) > 1024)
    with replacing(path) as temporary, media_errors(path, "write image"):
        Image.fromarray(image.cpu().numpy()).save(temporary, format="PNG", pnginfo=text)


def _to_srgb(image: Image.Image, path: str | Path) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("LA", "La"):
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            logger.warning("%s: its colour profile cannot be applied (%s); taken as sRGB", path, error)
    return image.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, or floats up to 1, as 8 bits."""
    scaled = values * 255.0 if values.dtype.kind == "f" else values / 257.0
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


# Pictures that are given as values and not as files: kept as PNG files, so that a plan stays plain JSON -------------


def picture_file(picture: Any) -> Path:
    """A PNG file of a picture, named by its content, in the cache folder of the user.

    ``picture`` is a PIL image, or a tensor or array ``[H, W, 3]`` or ``[3, H, W]``, uint8 or float in [0, 1].
    """
    pixels = pixels_of(picture)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.blake2b(pixels.numpy().tobytes() + repr(pixels.shape).encode(), digest_size=16).hexdigest()
    path = cache / "ltx" / "pictures" / f"{digest}.png"
    if not path.exists():
        write_png(path, pixels)
    return path


def pixels_of(picture: Any) -> Tensor:
    """uint8 ``[H, W, 3]``. Raises `ConfigError` for what is no picture."""
    if isinstance(picture, Image.Image):
        return torch.from_numpy(np.array(picture.convert("RGB")))
    try:
        pixels = picture.detach().cpu() if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))
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
        pixels = to_bytes(pixels)
    if pixels.dtype != torch.uint8:
        raise ConfigError(f"an image is {pixels.dtype}, expected uint8 or floats in [0, 1]")
    return pixels.contiguous()
