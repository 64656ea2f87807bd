"""Imports stay light: transformers only when a text encoder is built, torch only when a network is touched."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_core_package_alone_takes_no_torch() -> None:
    assert "torch" not in modules_after("import ltx_core")


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
