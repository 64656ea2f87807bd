"""Golden operations of the pipelines with MLX networks."""

from __future__ import annotations

from functools import partial

from tests.golden.operations import Operation
from tests.golden.pipelines_cases import ltxv, runs

OPERATIONS: dict[tuple[str, str], Operation] = {
    key: partial(operation, backend="mlx") for key, operation in {**runs.OPERATIONS, **ltxv.OPERATIONS}.items()
}
#: Pictures, sound, tiles and layouts, the same for every backend.
SHARED = {
    ("ic_lora", "pixel mask -> latent token weights; reference temporal subsampling"),
    ("layout", "frame, tile and canvas rules"),
    ("media", "LogC3 / ACEScct working-space transfers"),
    ("media", "audio decode with start/duration"),
    ("media", "image decode + resize + normalise"),
    ("media", "rgb to 8-bit BT.709 I420 and linear to 10-bit BT.2020 HLG planes"),
    ("tiling", "token tiling and blending (tiled data parallel / tiled stage 2)"),
}
