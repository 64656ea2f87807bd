"""A transformer with random weights as a checkpoint file, for benchmarks that read one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.models import random_model
from ltx_core.loader.safetensors_file import save_checkpoint

PREFIX = "model.diffusion_model."


def write_transformer(path: Path, section: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    model = random_model(section, torch.device("cpu"), dtype)
    tensors = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(path, tensors, {"config": {"transformer": section}, "model_version": "2.3.0"})
    return path
