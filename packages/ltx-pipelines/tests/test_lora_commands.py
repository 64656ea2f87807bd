"""`ltx lora`: what an adapter is, adapters merged into a model, the adapter between two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.golden.case import TINY_CHECKPOINT

from ltx_core.loader import Checkpoint, Lora
from ltx_core.loader.writing import low_rank
from ltx_pipelines.cli.app import run
from ltx_pipelines.running.hub import bundled_model
from ltx_pipelines.running.model_files import find_model

FOLDER = bundled_model("tiny")
assert FOLDER is not None
MODEL, ADAPTER = FOLDER / "ltx-tiny.safetensors", FOLDER / "ltx-tiny-distilled-lora.safetensors"


def test_inspect_says_what_an_adapter_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lora", "inspect", str(ADAPTER), "--model", "tiny", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["modules"] == len(Lora.open(ADAPTER).layers)
    assert list(facts["kinds"]) == ["low rank"] and facts["scale"] == "1"
    assert facts["fits"] == "tiny, all of it"
    assert run(["lora", "inspect", str(MODEL)]) == 1
    assert "is not a LoRA adapter" in capsys.readouterr().err
    assert (
        run(["lora", "inspect", str(ADAPTER), "--model", str(find_model(str(TINY_CHECKPOINT)).files.checkpoint)]) == 1
    )
    assert "it was made for another model" in capsys.readouterr().err


def test_merging_is_what_loading_with_adapters_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "merged.safetensors"
    line = ["lora", "merge", "tiny", str(target), "--lora", str(ADAPTER), "0.75", "--lora", str(ADAPTER), "0.25"]
    assert run(line) == 0
    assert f"{len(load_file(MODEL))} tensors" in capsys.readouterr().out
    loras = [Lora.open(ADAPTER, strength) for strength in (0.75, 0.25)]
    fused = Checkpoint.open(MODEL).build("transformer", loras=loras).state_dict()
    merged = Checkpoint.open(target)
    assert all(torch.equal(tensor, fused[name]) for name, tensor in merged.build("transformer").state_dict().items())
    assert json.loads(merged.metadata["merged_loras"])[0] == {"file": ADAPTER.name, "strength": 0.75}
    assert merged.metadata["prompt_world"] == Checkpoint.open(MODEL).metadata["prompt_world"]
    assert run(line) == 1
    assert "exists, expected a file that is not there yet" in capsys.readouterr().err


def test_what_was_merged_is_extracted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the rounding of the merged weights."""
    merged, adapter = tmp_path / "merged.safetensors", tmp_path / "extracted.safetensors"
    assert run(["lora", "merge", "tiny", str(merged), "--lora", str(ADAPTER)]) == 0
    assert run(["lora", "extract", "tiny", str(merged), str(adapter), "--rank", "32"]) == 0
    assert "rank 32" in capsys.readouterr().out
    tensors = load_file(adapter)
    assert all(name.startswith("diffusion_model.") for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    base, tuned = (Checkpoint.open(path).build("transformer", torch.float32).state_dict() for path in (MODEL, merged))
    again = Checkpoint.open(MODEL).build("transformer", torch.float32, loras=[Lora.open(adapter)]).state_dict()
    left = sum(float((again[name] - tuned[name]).square().sum()) for name in base)
    changed = sum(float((base[name] - tuned[name]).square().sum()) for name in base)
    assert 0 < left < 0.05 * changed
    assert run(["lora", "extract", "tiny", "tiny", str(tmp_path / "none.safetensors")]) == 1
    assert "have the same weights" in capsys.readouterr().err
    other = str(find_model(str(TINY_CHECKPOINT)).files.checkpoint)
    assert run(["lora", "extract", "tiny", other, str(tmp_path / "none.safetensors")]) == 1
    assert "are no two of one model" in capsys.readouterr().err


def test_low_rank_is_exact_where_the_rank_suffices() -> None:
    draw = torch.Generator().manual_seed(0)
    change = torch.randn(40, 5, generator=draw) @ torch.randn(5, 30, generator=draw)
    a, b, share = low_rank(change, 5)
    assert a.shape == (5, 30) and b.shape == (40, 5) and share > 0.9999
    assert torch.allclose(b @ a, change, atol=1e-4)
    assert low_rank(change, 2)[2] < 0.95


def test_bfloat16_is_the_official_sum() -> None:
    """B times strength is rounded, the product and the sum too; float32 rounds once, at the end."""
    loras = [Lora.open(ADAPTER, 0.7)]
    official = [Lora(**{**vars(loras[0]), "in_bfloat16": True})]
    checkpoint = Checkpoint.open(MODEL)
    path = next(iter(loras[0].layers))
    layer = loras[0].layers[path]
    base = checkpoint.weights("transformer").load_layer(path)["weight"]
    ours, theirs = (checkpoint.weights("transformer").load_layer(path, one)["weight"] for one in (loras, official))
    assert layer.a is not None and layer.b is not None
    expected = (layer.b.bfloat16() * 0.7) @ layer.a.bfloat16() + base
    assert torch.equal(theirs, expected) and not torch.equal(ours, theirs)
    exact = base.double() + 0.7 * layer.b.double() @ layer.a.double()
    assert (ours.double() - exact).abs().mean() < (theirs.double() - exact).abs().mean()


@pytest.mark.parametrize("line", [["lora"], ["lora", "shrink"], ["lora", "merge", "tiny"]])
def test_wrong_lines_are_told(line: list[str], capsys: Any) -> None:
    assert run(line) == 2
    assert "lora" in capsys.readouterr().err
