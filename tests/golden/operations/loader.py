"""Golden operations of the loader: key maps, metadata, adapters, quantised weights, block layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import KEY_MAPS
from ltx_core.loader.diffusers_names import from_diffusers_name, to_diffusers_name
from ltx_core.loader.fp8 import FP8, ScaledLinear, quantize_input, quantize_per_tensor, to_fp8
from ltx_core.loader.gemma_keys import GEMMA_KEY_MAPS
from ltx_core.loader.lora import Lora
from ltx_core.loader.metadata import detect_version, parse_metadata, parse_version, version_defaults
from ltx_core.loader.quantization import policy_named
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.sd_ops import SDOps
from ltx_core.loader.streaming import block_layout
from tests.golden.case import Case
from tests.golden.operations import Operation

Results = Mapping[str, Tensor]


def count(number: int) -> Results:
    """Cases whose expectations are in their args store how many there were."""
    return {"out.n": torch.tensor(number)}


def metadata(case: Case) -> Results:
    parsed = parse_metadata(SafetensorsFile(case.weights_path).metadata)
    assert parsed == case.args["parsed"]
    assert {key: type(value).__name__ for key, value in parsed.items()} == case.args["parsed_types"]
    return count(len(parsed))


def model_versions(case: Case) -> Results:
    for run in case.args["runs"]:
        text = run["model_version"]
        defaults = version_defaults(detect_version(text))
        assert list(parse_version(text)) == run["parsed"], run
        assert list(detect_version(text)) == run["detected"], run
        assert defaults.num_inference_steps == run["steps"], run
        assert list(defaults.stg_blocks) == run["stg_blocks"], run
        assert defaults.image_crf == run["image_crf"], run
        assert defaults.ancestral_stage_1 == run["ancestral_stage_1"], run
    return count(len(case.args["runs"]))


def sd_ops(case: Case) -> Results:
    described = {entry["name"]: entry for entry in case.args["ops"]}
    operations = [build_ops(entry, described) for entry in case.args["ops"]]
    for key in case.args["keys"]:
        assert [operation(key) for operation in operations] == case.args["results"][key], key
    return count(len(case.args["keys"]))


def build_ops(entry: Mapping[str, Any], described: Mapping[str, Any]) -> SDOps:
    mapping = entry["mapping"]
    if isinstance(mapping, str):
        mapping = described[mapping.removeprefix("same as ")]["mapping"]
    ops = SDOps(entry["name"])
    for kind, *values in mapping:
        ops = ops.with_matching(*values) if kind == "match" else ops.with_replacement(*values)
    return ops.with_additional_allowed_keys(entry["allowed"]) if entry.get("allowed") is not None else ops


def key_maps(case: Case) -> Results:
    sizes = []
    for run in case.args["runs"]:
        key_map = {**KEY_MAPS, **GEMMA_KEY_MAPS}[run["ops"]]
        got = {key: as_list(key_map(key)) for key in case.args["keys"]}
        loaded = {key: names for key, names in got.items() if names}
        assert loaded == run["map"], run["ops"]
        sizes.append(len(loaded))
    return {"out.count": torch.tensor(sizes)}


def as_list(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def diffusers_names(case: Case) -> Results:
    for ours, theirs in case.args["map"].items():
        name = ours.removeprefix("diffusion_model.")
        assert f"transformer.{to_diffusers_name(name)}" == theirs
        assert from_diffusers_name(theirs.removeprefix("transformer.")) == name
    return count(len(case.args["map"]))


def stream_layout(case: Case) -> Results:
    sizes = []
    for run in case.args["runs"]:
        kinds = {name: (tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in run["layout"].items()}
        layout = block_layout(kinds)
        assert dict(layout.offsets) == run["offsets"]
        assert layout.nbytes == run["nbytes"]
        sizes.append(layout.nbytes)
    return {"out.nbytes": torch.tensor(sizes)}


def transformer_state(
    case: Case, policy: str | None = None, use_alpha: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The transformer's tensors without and with the case's adapters."""
    weights = Checkpoint.open(case.weights_path).weights("transformer", quantization=policy)
    loras = [
        Lora.open(case.directory / entry["file"], entry["strength"], use_alpha) for entry in case.args.get("loras", ())
    ]
    return weights.state_dict(), weights.state_dict(loras)


def lora_fuse(case: Case, use_alpha: bool = False) -> Results:
    """The official reading of adapters, which ignores alpha."""
    base, fused = transformer_state(case, case.args.get("policy"), use_alpha)
    changed = [name for name in fused if not torch.equal(fused[name].float(), base[name].float())]
    assert set(changed) == set(case.args["changed_keys"])
    return {f"out.{name}": fused[name] for name in changed}


def lora_fuse_community(case: Case) -> Results:
    return lora_fuse(case, use_alpha=True)


def lora_fuse_scaled(case: Case) -> Results:
    results = dict(lora_fuse(case))
    for name in [name for name in results if name.endswith(".weight_scale")]:
        layer = name.removeprefix("out.").removesuffix("_scale")
        results[f"out.dequantized.{layer}"] = results[f"out.{layer}"].float() * results[name]
    return results


def fp8_cast_values(case: Case) -> Results:
    results: dict[str, Tensor] = {}
    for name, x in case.inputs.items():
        cast = to_fp8(x)
        results |= {
            f"out.{name}.e4m3": cast,
            f"out.{name}.e4m3_bits": cast.view(torch.uint8),
            f"out.{name}.upcast_bf16": cast.to(torch.bfloat16),
            f"out.{name}.e5m2": x.to(torch.float8_e5m2),
        }
    return results


def fp8_cast_policy(case: Case) -> Results:
    _, state = transformer_state(case, "fp8-cast")
    check_dtypes(state, case.args["dtypes"])
    results = {f"out.{name}": tensor for name, tensor in state.items()}
    layer = case.args["forward_layer"]
    module = linear_of(state, layer, "fp8-cast")
    results["out.forward_bf16"] = module(case.inputs["x"])
    results["out.forward_f32"] = module(case.inputs["x_f32"])
    return results


def linear_of(state: Mapping[str, Tensor], layer: str, policy: str) -> nn.Module:
    tensors = {name.removeprefix(f"{layer}."): t for name, t in state.items() if name.startswith(f"{layer}.")}
    out_features, in_features = tensors["weight"].shape
    with torch.device("meta"):
        module = policy_named(policy).module(in_features, out_features, "bias" in tensors)
    module.load_state_dict(tensors, assign=True)
    return module


def check_dtypes(state: Mapping[str, Tensor], expected: Mapping[str, str]) -> None:
    assert {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()} == dict(expected)


def fp8_prequant_fold(case: Case) -> Results:
    _, state = transformer_state(case, "fp8-cast")
    check_dtypes(state, case.args["dtypes"])
    return {f"out.{name}": tensor for name, tensor in state.items()}


def fp8_scaled_linear(case: Case) -> Results:
    results: dict[str, Tensor] = {}
    for run in (entry["name"] for entry in case.args["runs"]):
        given = case.group(f"in.{run}.")
        weight, scale = quantize_per_tensor(given["weight"])
        module = ScaledLinear(weight.shape[1], weight.shape[0], "bias" in given)
        state = {
            "weight": weight,
            "weight_scale": scale,
            "input_scale": given["input_scale"],
            "bias": given.get("bias"),
        }
        module.load_state_dict({name: t for name, t in state.items() if t is not None}, assign=True)
        x_fp8 = quantize_input(given["x"], given["input_scale"])
        results |= {
            f"mid.{run}.x_fp8": x_fp8,
            f"out.{run}.weight_fp8": weight,
            f"out.{run}.weight_scale": scale,
            f"out.{run}.y": module(given["x"]),
        }
        assert weight.dtype == x_fp8.dtype == FP8
    return results


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("loader", "metadata"): metadata,
    ("loader", "model_versions"): model_versions,
    ("loader", "sd_ops"): sd_ops,
    ("loader", "key_maps"): key_maps,
    ("loader", "stream_layout"): stream_layout,
    ("loader", "lora.diffusers_names"): diffusers_names,
    ("loader", "lora.fuse"): lora_fuse,
    ("loader", "lora.fuse_community"): lora_fuse_community,
    ("loader", "lora.fuse_fp8_cast"): lora_fuse,
    ("loader", "lora.fuse_fp8_scaled"): lora_fuse_scaled,
    ("quantization", "fp8.cast_values"): fp8_cast_values,
    ("quantization", "fp8.cast_policy"): fp8_cast_policy,
    ("quantization", "fp8.prequant_fold"): fp8_prequant_fold,
    ("quantization", "fp8.scaled_linear"): fp8_scaled_linear,
}
