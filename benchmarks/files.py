"""Transformers as checkpoint files, for benchmarks that read one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Size, random_model
from ltx_core.loader.safetensors_file import save_checkpoint

PREFIX = "model.diffusion_model."


def transformer_file(size: Size, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The size's own checkpoint, or one with random weights in ``folder``."""
    return size.checkpoint or write_transformer(folder / "model.safetensors", size.section, dtype)


def write_transformer(path: Path, section: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """Random weights."""
    model = random_model(section, torch.device("cpu"), dtype)
    tensors = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(path, tensors, {"config": {"transformer": section}, "model_version": "2.3.0"})
    return path
