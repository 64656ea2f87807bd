"""Still pictures: decoding to upright sRGB, the recompression rule, and image conditions in [-1, 1]."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from torch import Tensor

from ltx_media.color import HDRColorSpace, to_working_codes
from ltx_media.errors import media_errors
from ltx_media.exr import is_exr, read_exr
from ltx_media.files import replacing
from ltx_media.fit import center_crop_fit, long_side_fit, to_signed

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")


def is_image(path: str | Path) -> bool:
    """Whether a file's name is that of a still of 8 or 16 bits."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def load_image(
    path: str | Path, height: int, width: int, crf: float = 0, color_space: HDRColorSpace | None = None
) -> Tensor:
    """An image condition ``[1, 3, 1, height, width]``, float32 in [-1, 1], fitted by a centre crop.

    ``crf`` > 0 first passes the picture through H.264, so that it looks like a video frame to the model. An EXR file
    needs ``color_space`` and is never recompressed. Raises ``MediaError``.
    """
    if is_exr(path):
        linear = _to_planes(read_exr(path))
        return to_working_codes(center_crop_fit(linear, height, width), color_space, path)[:, :, None] * 2 - 1
    image = recompress_image(decode_image(path), crf)
    return to_signed(center_crop_fit(_to_planes(image).float(), height, width))[:, :, None]


def load_thumbnail(path: str | Path, long_side: int = 896) -> Tensor:
    """A picture for a language model to look at: uint8 ``[h, w, 3]`` whose longer side is ``long_side``."""
    return long_side_fit(_to_planes(decode_image(path)), long_side)[0].permute(1, 2, 0)


def decode_image(path: str | Path) -> Tensor:
    """The picture as uint8 ``[h, w, 3]``: turned upright by its EXIF tag, alpha dropped, its ICC profile applied.

    The first frame of an animation. Raises ``MediaError`` for missing, truncated and foreign files.
    """
    with media_errors(path, "read image"), Image.open(path) as file:
        file.load()
        image = _to_srgb(ImageOps.exif_transpose(file), path)
    return torch.from_numpy(np.array(image))


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
    if image.mode == "LA":
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


def _to_planes(image: Tensor) -> Tensor:
    return image.permute(2, 0, 1)[None]  # [1, 3, h, w]
