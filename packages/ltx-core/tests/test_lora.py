"""Adapters: every dialect reads alike, fusing adds what it says, removing gives the base back bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.tiny_checkpoints import TRANSFORMER, assert_same, metadata, prefixed, transformer_tensors, upsampler_tensors
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader import Checkpoint, Lora
from ltx_core.loader.fp8 import FP8, quantize_per_tensor, to_fp8
from ltx_core.loader.lora import module_path
from ltx_core.model.transformer.foreign import to_diffusers_name

Base = tuple[Checkpoint, dict[str, Tensor]]

LAYERS = (
    "patchify_proj",
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.1.attn1.to_out.0",
    "transformer_blocks.2.ff.net.2",
    "transformer_blocks.2.audio_ff.net.0.proj",
    "adaln_single.linear",
)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    tensors = transformer_tensors(request.param)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file(prefixed(tensors), path, metadata({"transformer": TRANSFORMER}))
    return Checkpoint.open(path), tensors


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as path:
        yield Path(path)


def pairs(tensors: Mapping[str, Tensor], rank: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) per layer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {layer: tensors[f"{layer}.weight"].shape for layer in LAYERS}
    return {
        layer: (torch.randn(rank, ins, generator=generator), torch.randn(outs, rank, generator=generator))
        for layer, (outs, ins) in shapes.items()
    }


def write(path: Path, named: Mapping[str, tuple[Tensor, Tensor]], a: str, b: str, prefix: str) -> Path:
    tensors = {f"{prefix}{layer}.{a}": pair[0] for layer, pair in named.items()}
    save_file(tensors | {f"{prefix}{layer}.{b}": pair[1] for layer, pair in named.items()}, path)
    return path


def official(path: Path, named: Mapping[str, tuple[Tensor, Tensor]]) -> Path:
    return write(path, named, "lora_A.weight", "lora_B.weight", "diffusion_model.")


DIALECTS = {
    "official": ("lora_A.weight", "lora_B.weight", "diffusion_model."),
    "checkpoint prefix": ("lora_A.weight", "lora_B.weight", "model.diffusion_model."),
    "down up": ("lora_down.weight", "lora_up.weight", "diffusion_model."),
    "dotted": ("lora.down.weight", "lora.up.weight", ""),
    "peft": ("lora_A.default.weight", "lora_B.default.weight", "base_model.model."),
    "bare suffix": ("lora_A", "lora_B", "transformer."),
    "none": ("lora_A.weight", "lora_B.weight", ""),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(folder: Path, base: Base, dialect: str) -> None:
    named = pairs(base[1], 3)
    lora = Lora.open(write(folder / "x.safetensors", named, *DIALECTS[dialect]))
    assert set(lora.layers) == set(LAYERS)
    assert lora.unused == ()
    for layer, (a, b) in named.items():
        torch.testing.assert_close((lora.layers[layer].a, lora.layers[layer].b), (a, b), rtol=0, atol=0)


def test_diffusers_names(folder: Path, base: Base) -> None:
    named = {to_diffusers_name(layer): pair for layer, pair in pairs(base[1], 2).items()}
    assert "proj_in" in named
    lora = Lora.open(write(folder / "x.safetensors", named, "lora_A.weight", "lora_B.weight", "transformer."))
    assert set(lora.layers) == set(LAYERS)
    assert module_path("transformer.transformer_blocks.3.attn1.norm_q") == "transformer_blocks.3.attn1.q_norm"


def test_alpha_and_differences(folder: Path, base: Base) -> None:
    checkpoint, tensors = base
    layer = LAYERS[1]
    a, b = pairs(tensors, 4)[layer]
    diff, diff_b = (
        torch.randn_like(tensors[f"{layer}.weight"]).float(),
        torch.randn_like(tensors[f"{layer}.bias"]).float(),
    )
    file = {"lora_A.weight": a, "lora_B.weight": b, "alpha": torch.tensor(2.0), "diff": diff, "diff_b": diff_b}
    save_file({f"diffusion_model.{layer}.{name}": tensor for name, tensor in file.items()}, folder / "x.safetensors")
    lora = Lora.open(folder / "x.safetensors", 0.5)
    state = checkpoint.build("transformer", loras=[lora]).state_dict()
    weight = tensors[f"{layer}.weight"].float() + 0.5 * (0.5 * b @ a + diff)
    expect_near(state[f"{layer}.weight"], weight)
    expect_near(state[f"{layer}.bias"], tensors[f"{layer}.bias"].float() + 0.5 * diff_b)
    assert Lora.open(folder / "x.safetensors", use_alpha=False).layers[layer].scale == 1.0
    assert lora.layers[layer].scale == 0.5


def expect_near(got: Tensor, want: Tensor) -> None:
    """Equal up to one rounding to the dtype of ``got``."""
    rtol = torch.finfo(got.dtype).eps if got.dtype != torch.float32 else 1e-5
    torch.testing.assert_close(got.float(), want, rtol=rtol, atol=1e-5)


adapters = st.lists(
    st.tuples(st.integers(1, 5), st.floats(-2, 2, allow_subnormal=False).map(lambda x: round(x, 2))), max_size=3
)
relaxed = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@relaxed
@given(specs=adapters, swap=adapters)
def test_fuse_swap_and_remove(base: Base, specs: list[tuple[int, float]], swap: list[tuple[int, float]]) -> None:
    checkpoint, tensors = base
    with TemporaryDirectory() as folder:
        named = [pairs(tensors, rank, seed) for seed, (rank, _) in enumerate([*specs, *swap])]
        loras = [
            Lora.open(official(Path(folder) / f"{i}.safetensors", pair), strength)
            for i, (pair, (_, strength)) in enumerate(zip(named, [*specs, *swap], strict=True))
        ]
        first, second = loras[: len(specs)], loras[len(specs) :]
        network = checkpoint.build("transformer", loras=first)
        for layer in LAYERS:
            delta = sum(
                (s * b @ a for (a, b), s in zip((n[layer] for n in named), (s for _, s in specs), strict=False)), 0
            )
            expect_near(network.state_dict()[f"{layer}.weight"], tensors[f"{layer}.weight"].float() + delta)
        weights = checkpoint.weights("transformer")
        weights.swap_loras(network, first, second)
        assert_same(network, checkpoint.build("transformer", loras=second).state_dict())
        weights.swap_loras(network, second, ())
        assert_same(network, tensors)


@pytest.mark.parametrize("policy", ["fp8-cast", "fp8-scaled-mm", "nvfp4-cast"])
def test_quantised_bases_come_back_exactly(folder: Path, policy: str) -> None:
    tensors = transformer_tensors()
    stored = prefixed(tensors)
    if policy == "fp8-scaled-mm":
        for name in [f"{layer}.weight" for layer in LAYERS[1:4]]:
            stored[f"model.diffusion_model.{name}"], scale = quantize_per_tensor(tensors[name])
            stored[f"model.diffusion_model.{name}_scale"] = scale
            stored[f"model.diffusion_model.{name.removesuffix('weight')}input_scale"] = torch.tensor(0.1)
    save_file(stored, folder / "base.safetensors", metadata({"transformer": TRANSFORMER}))
    lora = Lora.open(official(folder / "lora.safetensors", pairs(tensors, 3)), 0.3)
    checkpoint = Checkpoint.open(folder / "base.safetensors")
    base = checkpoint.build("transformer", quantization=policy).state_dict()
    network = checkpoint.build("transformer", quantization=policy, loras=[lora])
    fused = network.state_dict()
    changed = {name for name in base if not torch.equal(base[name].float(), fused[name].float())}
    assert {f"{layer}.weight" for layer in LAYERS} <= changed
    checkpoint.weights("transformer", quantization=policy).swap_loras(network, [lora], ())
    assert_same(network, base)


def test_fp8_cast_keeps_scale_free_weights_and_computes(folder: Path) -> None:
    tensors = transformer_tensors()
    save_file(prefixed(tensors), folder / "base.safetensors", metadata({"transformer": TRANSFORMER}))
    network = Checkpoint.open(folder / "base.safetensors").build("transformer", quantization="fp8-cast")
    layer = network.get_submodule("transformer_blocks.0.attn1.to_q")
    assert layer.weight.dtype == layer.bias.dtype == FP8
    assert network.get_submodule("patchify_proj").weight.dtype == torch.bfloat16
    x = torch.randn(2, 16)
    rounded = {name: to_fp8(tensors[f"transformer_blocks.0.attn1.to_q.{name}"]).float() for name in ("weight", "bias")}
    torch.testing.assert_close(layer(x), x @ rounded["weight"].t() + rounded["bias"])


def test_scaled_files_without_a_policy_are_widened(folder: Path) -> None:
    tensors = transformer_tensors()
    stored, name = prefixed(tensors), f"{LAYERS[1]}.weight"
    quantized, scale = quantize_per_tensor(tensors[name])
    stored |= {f"model.diffusion_model.{name}": quantized, f"model.diffusion_model.{name}_scale": scale}
    save_file(stored, folder / "base.safetensors", metadata({"transformer": TRANSFORMER}))
    checkpoint = Checkpoint.open(folder / "base.safetensors")
    wide = checkpoint.build("transformer", dtype=torch.float32).state_dict()[name]
    assert torch.equal(wide, quantized.float() * scale)
    assert checkpoint.build("transformer").state_dict()[name].dtype == torch.bfloat16


def test_strength_zero_changes_no_bit(folder: Path, base: Base) -> None:
    lora = Lora.open(official(folder / "x.safetensors", pairs(base[1], 2)), 0.0)
    assert_same(base[0].build("transformer", loras=[lora]), base[1])


def test_what_matches_nothing_is_reported(folder: Path, base: Base, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint, tensors = base
    named = pairs(tensors, 2)
    file = {f"diffusion_model.{LAYERS[0]}.lora_A.weight": named[LAYERS[0]][0]}
    file |= {f"diffusion_model.{LAYERS[0]}.lora_B.weight": named[LAYERS[0]][1]}
    file |= {
        "diffusion_model.nowhere.lora_A.weight": torch.ones(2, 3),
        "diffusion_model.nowhere.lora_B.weight": torch.ones(3, 2),
    }
    file |= {f"diffusion_model.{LAYERS[1]}.lora_A.weight": torch.ones(2, 3), "odd": torch.ones(1)}
    save_file(file, folder / "x.safetensors")
    lora = Lora.open(folder / "x.safetensors")
    assert set(lora.unmatched(tensors)) == {"nowhere", f"diffusion_model.{LAYERS[1]}.lora_A.weight", "odd"}
    with caplog.at_level(logging.WARNING):
        checkpoint.build("transformer", loras=[lora])
    assert "3 entries fit nothing" in caplog.text


def test_adapters_that_cannot_be_used(folder: Path, base: Base) -> None:
    checkpoint, _ = base
    stranger = official(folder / "s.safetensors", {"foo.bar": (torch.ones(2, 3), torch.ones(3, 2))})
    with pytest.raises(CheckpointError, match="names no module of this model"):
        checkpoint.build("transformer", loras=[Lora.open(stranger)])
    misshapen = official(folder / "m.safetensors", {LAYERS[0]: (torch.ones(2, 3), torch.ones(16, 2))})
    with pytest.raises(CheckpointError, match="patchify_proj: the weight is 16x6, the adapter makes 16x3"):
        checkpoint.build("transformer", loras=[Lora.open(misshapen)])
    ranks = official(folder / "r.safetensors", {LAYERS[0]: (torch.ones(2, 6), torch.ones(16, 3))})
    with pytest.raises(CheckpointError, match="ranks must agree"):
        Lora.open(ranks)
    save_file(upsampler_tensors(), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a LoRA adapter"):
        Lora.open(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a LoRA adapter, not a model"):
        Checkpoint.open(stranger)


def test_adapter_metadata(folder: Path) -> None:
    tensors = {"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)}
    save_file(tensors, folder / "plain.safetensors")
    plain = Lora.open(folder / "plain.safetensors")
    assert (plain.reference_downscale_factor, plain.reference_temporal_scale_factor, plain.hdr_transform) == (
        1,
        1,
        None,
    )
    declared = {"reference_downscale_factor": "2", "reference_temporal_scale_factor": "4", "hdr_transform": "true"}
    save_file(tensors, folder / "ic.safetensors", declared)
    lora = Lora.open(folder / "ic.safetensors")
    assert (lora.reference_downscale_factor, lora.reference_temporal_scale_factor, lora.hdr_transform) == (
        2,
        4,
        "logc3",
    )
    save_file(tensors, folder / "new.safetensors", {"reference_spatial_scale_factor": "3", "use_hdr_transform": "1"})
    new = Lora.open(folder / "new.safetensors")
    assert (new.reference_downscale_factor, new.hdr_transform) == (3, "logc3")
    save_file(tensors, folder / "bad.safetensors", {"reference_downscale_factor": "two"})
    with pytest.raises(CheckpointError, match="'two', expected a positive integer"):
        _ = Lora.open(folder / "bad.safetensors").reference_downscale_factor
