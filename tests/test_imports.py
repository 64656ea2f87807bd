"""Imports stay light: transformers only when a text encoder is built, torch only when a network is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


TINY = Path(__file__).parent / "data" / "tiny-checkpoint" / "ltx-2-tiny.safetensors"
READ_HEADERS = f"""
from ltx_core.loader import Checkpoint, Lora
from ltx_core.loader.gguf import GgufFile
from ltx_core.types import VideoPixelShape
checkpoint = Checkpoint.open({str(TINY)!r})
configs = [checkpoint.network_config(name) for name in checkpoint.components if name != "embeddings"]
sizes = [source.info.nbytes for source in checkpoint.sources("transformer").values()]
"""


@pytest.mark.parametrize("statement", ["import ltx_core", READ_HEADERS], ids=["package", "headers"])
def test_what_needs_no_tensor_takes_no_torch(statement: str) -> None:
    assert not modules_after(statement) & {"torch", "transformers", "numpy"}


@pytest.mark.parametrize(
    "module",
    [
        "ltx_core.loader",
        "ltx_core.model.transformer.model",
        "ltx_core.sampling.loop",
        "ltx_core.text_encoders.gemma.encoder",
        "ltx_core.conditioning",
    ],
)
def test_no_transformers_at_import(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert not loaded & {"transformers", "av", "accelerate", "scipy", "torchaudio"}
