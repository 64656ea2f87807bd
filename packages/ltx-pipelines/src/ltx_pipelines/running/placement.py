"""Where weights go: the device, what matrices are kept in, and how many networks are in memory at once."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Literal

import torch

from ltx_core.loader.layouts import open_file
from ltx_core.model.common.memory import free_bytes
from ltx_core.precision import WIDENED, DtypeName, Precision, resolve
from ltx_pipelines.planning.plan import ModelFiles

logger = logging.getLogger(__name__)

Policy = Literal["auto", "resident", "sequential", "streamed"]
MEANING: dict[Policy, str] = {
    "resident": "all networks stay",
    "sequential": "large networks one at a time",
    "streamed": "large networks one at a time, two blocks of the transformer",
}


def default_device() -> str:
    """The accelerator there is, else the processor."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def weight_bytes(files: ModelFiles, precision: Precision, quantization: str | None = None) -> dict[str, int]:
    """Bytes that the weights of each slot take in memory; a quantised transformer at most what it takes on disk."""
    itemsize, sizes = (precision.stored or precision.dtype).itemsize, {}
    for slot, name in files.paths():
        path = Path(name)
        found = [file for file in (path.glob("*.safetensors") if path.is_dir() else [path]) if file.is_file()]
        infos = [info for file in found for info in open_file(file, None).tensors.values()]
        sizes[slot] = sum(math.prod(i.shape) * (itemsize if i.dtype.is_floating_point else 1) for i in infos)
        if slot == "checkpoint" and quantization is not None:
            sizes[slot] = min(sizes[slot], sum(file.stat().st_size for file in found))
    return sizes


def choose_precision(
    dtype: DtypeName | torch.dtype, device: torch.device, files: ModelFiles, policy: Policy, quantization: str | None
) -> Precision:
    """As asked; where ``auto`` means float32 and its weights do not fit, matrices stay in bfloat16 and are widened."""
    precision = resolve(dtype, device)
    if dtype != "auto" or precision.dtype is not torch.float32:
        return precision
    sizes, free = weight_bytes(files, precision, quantization), free_bytes(device)
    together = sum(sizes.values()) if policy == "resident" else max(sizes.values(), default=0)
    if 1.1 * together < free:
        return precision
    logger.info("%.1f GB of float32 weights, %.1f GB free: matrices stay in bfloat16", together / 1e9, free / 1e9)
    return resolve(WIDENED, device)


def choose_policy(sizes: dict[str, int], device: torch.device) -> Policy:
    """Resident when all weights and half as much again fit, streamed when the transformer's file alone does not."""
    needed, free = sum(sizes.values()), free_bytes(device)
    chosen: Policy = "sequential"
    if 1.5 * needed < free:
        chosen = "resident"
    elif 1.1 * sizes.get("checkpoint", 0) > free:
        chosen = "streamed"
    logger.info(
        "%.1f GB of weights, %.1f GB free on %s: %s, %s", needed / 1e9, free / 1e9, device, chosen, MEANING[chosen]
    )
    return chosen
