"""Weights written tensor by tensor: digests, resuming, GGUF blocks, and how little memory that takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader.gguf import GgufFile
from ltx_core.loader.gguf_blocks import DEQUANTIZE, QUANTIZE
from ltx_core.loader.safetensors_file import SafetensorsFile, save_checkpoint
from ltx_core.loader.writing import Kind, Piece, save_gguf, save_safetensors


def pieces(tensors: dict[str, Tensor], read: list[str] | None = None, stop: str = "") -> list[Piece]:
    """A piece for each tensor, which notes that it is made and breaks off at one of them."""

    def make(name: str) -> dict[str, Tensor]:
        if name == stop:
            raise KeyboardInterrupt
        if read is not None:
            read.append(name)
        return {name: tensors[name]}

    kinds = {torch.float32: "F32", torch.bfloat16: "BF16"}
    return [
        Piece({name: Kind(kinds[tensor.dtype], tuple(tensor.shape))}, lambda name=name: make(name))
        for name, tensor in tensors.items()
    ]


TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(2.0),
    "c": torch.ones(0, 3),
    "d": torch.ones(5, dtype=torch.bfloat16),
}


def test_what_is_written_is_what_save_checkpoint_writes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", TENSORS, {"license": "ours"})
    save_safetensors(tmp_path / "b.safetensors", pieces(TENSORS), {"license": "ours"})
    one, other = (SafetensorsFile(tmp_path / f"{name}.safetensors", verify=True) for name in "ab")
    other.verify()
    assert json.loads(one.metadata["tensor_blake2b"]) == json.loads(other.metadata["tensor_blake2b"])
    assert all(torch.equal(other.read(name), tensor) for name, tensor in TENSORS.items())
    assert other.metadata["license"] == "ours"
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


@pytest.mark.parametrize("save", [save_safetensors, save_gguf])
def test_a_broken_run_goes_on_where_it_stopped(tmp_path: Path, save: object) -> None:
    tensors = {f"t{index}": torch.full((4, 32), float(index)) for index in range(6)}
    whole, path = tmp_path / "whole", tmp_path / "path"
    save(whole, pieces(tensors), {})  # type: ignore[operator]
    with pytest.raises(KeyboardInterrupt):
        save(path, pieces(tensors, stop="t4"), {})  # type: ignore[operator]
    assert not path.exists()
    read: list[str] = []
    save(path, pieces(tensors, read), {})  # type: ignore[operator]
    assert read == ["t3", "t4", "t5"]
    assert path.read_bytes() == whole.read_bytes()


def test_another_file_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        save_safetensors(tmp_path / "x", pieces(TENSORS, stop="d"), {"version": "1"})
    read: list[str] = []
    save_safetensors(tmp_path / "x", pieces(TENSORS, read), {"version": "2"})
    assert read == list(TENSORS)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*run the same command again to go on"):
        save_safetensors(tmp_path / "file" / "x", pieces(TENSORS), {})


@pytest.mark.parametrize(("kind", "most"), [("Q8_0", 0.006), ("Q4_K", 0.09)])
def test_blocks_hold_what_their_bits_can(kind: str, most: float) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    elements = 32 if kind == "Q8_0" else 256
    y = DEQUANTIZE[kind](QUANTIZE[kind](x.view(-1, elements))).view(64, 256)
    assert 0 < (x - y).norm() / x.norm() < most
    zero = torch.zeros(2, elements)
    assert torch.equal(DEQUANTIZE[kind](QUANTIZE[kind](zero)), zero)


def test_gguf_files_are_read_back(tmp_path: Path) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    blocks = QUANTIZE["Q8_0"](x.view(-1, 32))
    kinds = {"w": Kind("Q8_0", (8, 64)), "b": Kind("F32", (8,))}
    made = [Piece({name: kind}, lambda name=name: {"w": blocks, "b": x[:, 0]}) for name, kind in kinds.items()]
    save_gguf(tmp_path / "x.gguf", made, {"config": '{"transformer": {}}'})
    file = GgufFile(tmp_path / "x.gguf")
    assert file.architecture == "ltxv" and file.metadata["config"] == '{"transformer": {}}'
    assert torch.equal(file.read("b"), x[:, 0]) and (file.read("w") - x).abs().max() < 0.02


PEAK = """
import resource, sys
from pathlib import Path
import torch
from ltx_core.loader import fp8
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.sources import Source
from ltx_core.loader.writing import Kind, Piece, save_safetensors
file = SafetensorsFile(sys.argv[1])
torch.ones(2).bfloat16().float(), fp8.quantize_per_tensor(torch.ones(2, 2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def piece(name):
    def make():
        weight, scale = fp8.quantize_per_tensor(Source(file, name).read())
        return {name: weight, name + "_scale": scale}
    shape = file.tensors[name].shape
    return Piece({name: Kind("F8_E4M3", shape), name + "_scale": Kind("F32", ())}, make)
save_safetensors(Path(sys.argv[2]), [piece(name) for name in file.tensors], {})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_holds_one_layer(tmp_path: Path) -> None:
    """A file of 24 layers, one of which takes 4 MiB and, widened and quantised, less than 40 MiB."""
    header: dict[str, object] = {}
    side, layers = 1448, 24  # a hole of 96 MiB
    for index in range(layers):
        size = side * side * 2
        header[f"l{index}.weight"] = {
            "dtype": "BF16",
            "shape": [side, side],
            "data_offsets": [index * size, index * size + size],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + layers * side * side * 2)
    line = [sys.executable, "-c", PEAK, str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert int(done.stdout) < 60 * 1024  # KiB; the file alone has 96 MiB
    SafetensorsFile(tmp_path / "y.safetensors", verify=True).verify()
