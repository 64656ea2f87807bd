"""Placement of weights: the device, the type of matrices, and the number of networks in memory at once."""

from __future__ import annotations

import logging
import math
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ltx_core.loader.layouts import find_files, open_file
from ltx_core.precision import WIDENED, Precision
from ltx_pipelines.planning.plan import BackendName, ModelFiles
from ltx_pipelines.request import Policy

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MEANING: dict[Policy, str] = {
    "resident": "all networks stay",
    "sequential": "large networks one at a time",
    "streamed": "large networks one at a time, two blocks of the transformer and of the language model",
}


def default_backend() -> BackendName:
    """MLX on Apple silicon where it is installed, else torch."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mlx" if apple and find_spec("mlx") and find_spec("ltx_mlx") else "torch"


def default_device(backend: BackendName = "torch") -> str:
    """The device of tensors: the accelerator there is, else the processor; MLX moves what it computes with itself."""
    if backend == "mlx":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def weight_bytes(files: ModelFiles, precision: Precision, quantization: str | None = None) -> dict[str, int]:
    """Bytes that the weights of each slot take in memory; a quantised transformer at most what it takes on disk."""
    itemsize, sizes = (precision.stored or precision.dtype).itemsize, {}
    for slot, name in files.paths():
        found = [file for file in find_files(Path(name)) if file.is_file()]
        infos = [info for file in found for info in open_file(file, None).tensors.values()]
        sizes[slot] = sum(math.prod(i.shape) * (itemsize if i.dtype.is_floating_point else 1) for i in infos)
        if slot == "checkpoint" and quantization is not None:
            sizes[slot] = min(sizes[slot], sum(file.stat().st_size for file in found))
    return sizes


def choose_precision(
    precision: Precision, files: ModelFiles, policy: Policy, quantization: str | None, free: int
) -> Precision:
    """The precision that ``auto`` means; where its float32 weights do not fit, matrices stay in bfloat16 instead."""
    if precision.name != "float32":
        return precision
    sizes = weight_bytes(files, precision, quantization)
    together = sum(sizes.values()) if policy == "resident" else max(sizes.values(), default=0)
    if 1.1 * together < free:
        return precision
    logger.info("%.1f GB of float32 weights, %.1f GB free: matrices stay in bfloat16", together / 1e9, free / 1e9)
    return Precision(WIDENED)


def choose_policy(sizes: dict[str, int], free: int, device: torch.device) -> Policy:
    """Resident when all weights and half as much again fit, streamed when the transformer's file alone does not."""
    needed = sum(sizes.values())
    chosen: Policy = "sequential"
    if 1.5 * needed < free:
        chosen = "resident"
    elif 1.1 * sizes.get("checkpoint", 0) > free:
        chosen = "streamed"
    logger.info(
        "%.1f GB of weights, %.1f GB free on %s: %s, %s", needed / 1e9, free / 1e9, device, chosen, MEANING[chosen]
    )
    return chosen


def choose_spread(sizes: dict[str, int], free: int, devices: int) -> int:
    """Number of devices that the transformer is spread over: as few as it fits on, 1 where it does not fit at all."""
    needed = 1.1 * sizes.get("checkpoint", 0)
    fits = (count for count in range(1, devices + 1) if devices % count == 0 and needed / count <= free)
    return next(fits, 1)
