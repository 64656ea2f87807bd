"""Quantised layers as ComfyUI and others write them: published numbers, dialects, what is refused from the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_checkpoints import TRANSFORMER, metadata, prefixed, transformer_tensors
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader import Checkpoint
from ltx_core.loader.fp8 import quantize_per_tensor
from ltx_core.loader.nvfp4 import quantize_layer, to_tiles
from ltx_core.loader.packed import plain_layers, unrotate
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.sources import Source

LAYER = "transformer_blocks.0.attn1.to_q"


def marker(**settings: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8).clone()


def u8(text: str) -> Tensor:
    return torch.frombuffer(bytearray(bytes.fromhex(text)), dtype=torch.uint8).clone()


def widened(folder: Path, settings: Mapping[str, Any], **tensors: Tensor) -> list[list[float]]:
    """The plain weight of a layer X stored as these tensors."""
    named = {f"X.{name}": tensor for name, tensor in tensors.items()} | {"X.comfy_quant": marker(**settings)}
    save_file(named, folder / "x.safetensors")
    file = SafetensorsFile(folder / "x.safetensors")
    plain = plain_layers(file.path, {name: Source(file, name) for name in file.tensors}, file.metadata)
    assert list(plain) == ["X.weight"]
    weight = plain["X.weight"].read()
    assert plain["X.weight"].info.shape == tuple(weight.shape)
    return weight.tolist()


def test_published_numbers_of_nvfp4(tmp_path: Path) -> None:
    packed = torch.zeros(16, 16, dtype=torch.uint8)
    packed[0, :4], packed[9, 8] = u8("2F7108A5"), 0x3C
    scales = torch.zeros(128, 4)
    scales[0, 0], scales[9, 1] = 0.5, 2.0
    tiles = to_tiles(scales.to(torch.float8_e4m3fn)).view(torch.float8_e4m3fn)
    rows = widened(tmp_path, {"format": "nvfp4"}, weight=packed, weight_scale=tiles, weight_scale_2=torch.tensor(0.25))
    assert rows[0][:8] == [0.125, -0.75, 0.75, 0.0625, 0, -0.0, -0.125, 0.375]
    assert rows[9][16:18] == [0.75, -1.0]


def test_published_numbers_of_mxfp8(tmp_path: Path) -> None:
    weight = torch.zeros(32, 32)
    weight[0, 0], weight[1, 0], weight[2, 0] = 1.75, -3.0, 1.0
    exponents = torch.zeros(128, 4, dtype=torch.uint8)
    exponents[0, 0], exponents[1, 0] = 129, 120
    stored = {"weight": weight.to(torch.float8_e4m3fn), "weight_scale": to_tiles(exponents)}
    rows = widened(tmp_path, {"format": "mxfp8"}, **stored)
    assert [row[0] for row in rows[:3]] == [7.0, -0.0234375, 0.0]


def test_published_numbers_of_int8(tmp_path: Path) -> None:
    weight = torch.tensor([[10, -20, 30, 40], [127, 0, 0, 0]], dtype=torch.int8)
    stored = {"weight": weight, "weight_scale": torch.tensor([[0.1], [0.02]])}
    rows = widened(tmp_path, {"format": "int8_tensorwise"}, **stored)
    assert torch.allclose(torch.tensor(rows), torch.tensor([[1.0, -2, 3, 4], [2.54, 0, 0, 0]]))
    rotated = {"format": "int8_tensorwise", "convrot": True, "params": {"convrot_groupsize": 4}}
    expected = torch.tensor([[-1.0, 0, 5, 2], [1.27, 1.27, 1.27, -1.27]])
    assert torch.allclose(torch.tensor(widened(tmp_path, rotated, **stored)), expected, atol=1e-6)


def test_published_numbers_of_four_bit_integers(tmp_path: Path) -> None:
    given = {"format": "convrot_w4a4", "convrot_groupsize": 4}
    rows = widened(tmp_path, given, weight=u8("7F21").view(torch.int8)[None], weight_scale=torch.tensor([0.5]))
    assert rows == [[1.25, 1.75, -1.25, 2.75]]
    given = {"format": "asym_w4a8_int8", "convrot": True, "convrot_groupsize": 4, "group_size": 16}
    stored = {
        "weight": u8("0F9888C821848888").view(torch.int8)[None],
        "weight_s_rel": torch.tensor([[8.0]]).to(torch.float8_e4m3fn),
        "weight_s_channel": torch.tensor([0.01]),
    }
    expected = [-0.08, 0, 0.64, -0.56, -0.16, 0.16, 0.16, 0.16, -0.68, -0.36, -0.2, -0.12, 0, 0, 0, 0]
    assert torch.allclose(torch.tensor(widened(tmp_path, given, **stored)[0]), torch.tensor(expected), atol=1e-6)


def test_a_rotation_undoes_itself() -> None:
    weight = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(unrotate(unrotate(weight, 64), 64), weight, atol=1e-5)
    assert not torch.allclose(unrotate(weight, 64), weight, atol=0.1)


def dialects() -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
    """Dialect -> tensors of a layer, and what else the file holds."""
    weight, scale = quantize_per_tensor(transformer_tensors()[f"{LAYER}.weight"])
    e4m3, one = {"format": "float8_e4m3fn"}, torch.ones(())
    header = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {f"P.{LAYER}": e4m3}})}
    return {
        "scaled_fp8": ({"weight": weight, "scale_weight": scale, "scale_input": one}, {}),
        "comfy_quant": ({"weight": weight, "weight_scale": scale.view(1), "comfy_quant": marker(**e4m3)}, {}),
        "header": ({"weight": weight, "weight_scale": scale}, header),
        "modelopt": ({"weight": weight, "weight_scale": scale, "input_scale": one}, {}),
    }


def written(path: Path, layer: Mapping[str, Tensor], more: Mapping[str, str], marked: bool = False) -> Path:
    """A tiny transformer whose first query is stored as ``layer``."""
    tensors = transformer_tensors()
    del tensors[f"{LAYER}.weight"]
    tensors |= {f"{LAYER}.{leaf}": tensor for leaf, tensor in layer.items()}
    if marked:
        tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    more = {key: text.replace("P.", "model.diffusion_model.") for key, text in more.items()}
    save_file(prefixed(tensors), path, metadata({"transformer": TRANSFORMER}, **more))
    return path


@pytest.mark.parametrize("dialect", dialects())
def test_every_fp8_dialect_is_the_same_weight(tmp_path: Path, dialect: str) -> None:
    layer, more = dialects()[dialect]
    checkpoint = Checkpoint.open(written(tmp_path / "x.safetensors", layer, more, dialect == "scaled_fp8"))
    weight, scale = quantize_per_tensor(transformer_tensors()[f"{LAYER}.weight"])
    built = checkpoint.build("transformer", torch.float32).get_parameter(f"{LAYER}.weight")
    assert torch.equal(built, weight.float() * scale)


def test_nvfp4_needs_no_name_and_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    layer = quantize_layer(transformer_tensors()[f"{LAYER}.weight"])
    layer["weight_scale"] = layer["weight_scale"].view(torch.float8_e4m3fn)
    path = written(tmp_path / "x.safetensors", {**layer, "input_scale": torch.ones(())}, {})
    plain = Checkpoint.open(path).build("transformer", torch.float32)
    kept = Checkpoint.open(path).build("transformer", torch.float32, quantization="nvfp4-prequant")
    assert plain.get_parameter(f"{LAYER}.weight").shape == (16, 16)
    assert kept.get_buffer(f"{LAYER}.weight").shape == (16, 8)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"comfy_quant": marker(format="float6")}, "to_q has format 'float6', expected one of float8_e4m3fn"),
        ({"comfy_quant": torch.zeros(3, dtype=torch.uint8)}, "comfy_quant: it is no JSON"),
        ({"comfy_quant": marker(format="mxfp8")}, "to_q.weight is BF16 .* expected a matrix of F8_E4M3 for mxfp8"),
        ({"weight": torch.zeros(16, 16, dtype=torch.int8)}, "is I8 without a comfy_quant marker"),
        ({"weight.absmax": torch.zeros(4)}, "is quantised by bitsandbytes"),
        ({"qweight": torch.zeros(4, 4, dtype=torch.int32)}, "is quantised by GPTQ or AWQ"),
    ],
)
def test_unknown_formats_are_refused_from_the_header(tmp_path: Path, layer: dict[str, Tensor], said: str) -> None:
    layer = {"weight": transformer_tensors()[f"{LAYER}.weight"], **layer}
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(written(tmp_path / "x.safetensors", layer, {}))
