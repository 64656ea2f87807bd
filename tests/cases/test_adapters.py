"""The cases of adapters: files as every tool writes them, merged or refused as each case says.

``LTX_CASES_DIR`` points the same runner at other cases of the same kinds (a folder with ``adapters/`` in it).
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader.lora import Lora, bias_delta, fit_loras, weight_delta

ROOT = Path(os.environ.get("LTX_CASES_DIR") or Path(__file__).parent / "data") / "adapters"
CASES = sorted(found.parent for found in ROOT.glob("*/case.json"))


def merged(base: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Every weight and bias of the base with the adapter in it."""
    result = {}
    for name, tensor in base.items():
        path, _, leaf = name.rpartition(".")
        delta = bias_delta([lora], path) if leaf == "bias" else weight_delta([lora], path, base=lambda t=tensor: t)
        result[name] = tensor if delta is None else tensor + delta
    return result


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = json.loads((folder / "case.json").read_text())
    base = load_file(folder / "base.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    if case["expected"] == "refused":
        with pytest.raises(CheckpointError) as refused:
            fit_loras([Lora.open(folder / "adapter.safetensors")], shapes)
        assert "\n" not in str(refused.value)
        return
    with caplog.at_level(logging.WARNING):
        (lora,) = fit_loras([Lora.open(folder / "adapter.safetensors")], shapes)
    for module in case.get("unmatched", ()):
        assert module in caplog.text, f"{module} is not reported"
    expected = load_file(folder / "merged.safetensors")
    for strength in case["strengths"]:
        check(case, base, merged(base, lora.at(strength)), expected, f"@{strength}")
    assert all(tensor.equal(base[name]) for name, tensor in merged(base, lora.at(0.0)).items())


def check(
    case: dict[str, Any], base: dict[str, Tensor], got: dict[str, Tensor], want: dict[str, Tensor], at: str
) -> None:
    atol, rtol = case["tolerance"]["atol"], case["tolerance"]["rtol"]
    for name, tensor in got.items():
        if name not in case["changed"]:
            assert tensor.equal(base[name]), f"{case['name']}: {name} was changed"
            continue
        target = want[f"{name}{at}"]
        assert not tensor.equal(base[name]), f"{case['name']}: {name} is as before"
        torch.testing.assert_close(tensor, target, atol=atol, rtol=rtol, msg=lambda text, n=name: f"{n}{at}: {text}")


REASONS = {
    "v18_refused_other_width": r"attn1.to_q: the weight is 24x24, the adapter makes 32x32",
    "v19_refused_no_match": r"names no module of this model",
    "v25_refused_kind": r"GLoRA",
}


@pytest.mark.parametrize("name", REASONS)
def test_refusals_say_why(name: str) -> None:
    folder = Path(__file__).parent / "data" / "adapters" / name
    shapes = {key: tuple(tensor.shape) for key, tensor in load_file(folder / "base.safetensors").items()}
    with pytest.raises(CheckpointError, match=REASONS[name]):
        fit_loras([Lora.open(folder / "adapter.safetensors")], shapes)


def test_there_are_cases() -> None:
    assert len(CASES) >= 20
