"""Golden operations of the loader: metadata, adapters, quantised weights, block layouts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ltx_core.loader import nvfp4
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.fp8 import FP8, ScaledLinear, quantize_input, quantize_per_tensor, to_fp8
from ltx_core.loader.gguf import GgufFile
from ltx_core.loader.lora import Lora
from ltx_core.loader.metadata import detect_version, parse_metadata, parse_version, version_defaults
from ltx_core.loader.quantization import find_policy, nvfp4_prequant
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.streaming import block_layout
from ltx_core.model.transformer.foreign import from_diffusers_name, to_diffusers_name
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
        module = find_policy(policy).module(nn.Linear(in_features, out_features, "bias" in tensors), {})
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


def nvfp4_quantize(case: Case) -> Results:
    results: dict[str, Tensor] = {}
    for run in case.args["runs"]:
        name, x = run["name"], case.inputs[f"{run['name']}.x"]
        given = run["per_tensor"]
        scale = torch.tensor(float(given)) if isinstance(given, int | float) else nvfp4.per_tensor_scale(x)
        packed, scales = nvfp4.quantize(x, scale)
        wide = nvfp4.dequantize(packed, nvfp4.from_tiles(nvfp4.to_tiles(scales), *scales.shape), scale)
        results |= {
            f"out.{name}.per_tensor_scale": scale,
            f"out.{name}.packed": packed,
            f"out.{name}.packed_low_first": nvfp4.swap_nibbles(packed),
            f"out.{name}.block_scales": nvfp4.to_tiles(scales),
            f"out.{name}.dequantized": wide,
            f"out.{name}.dequantized_bf16": wide.to(torch.bfloat16),
        }
    return results


def nvfp4_linear(case: Case) -> Results:
    weight, x, bias = case.inputs["weight"], case.inputs["x"], case.inputs.get("bias")
    state = nvfp4.quantize_layer(weight)
    results = {"out.weight_packed" if name == "weight" else f"out.{name}": t for name, t in state.items()}
    for mode in nvfp4.ActivationScale:
        module = nvfp4.Nvfp4Linear(weight.shape[1], weight.shape[0], bias is not None, mode)
        tensors = dict(state) if bias is None else {**state, "bias": bias}
        if mode is nvfp4.ActivationScale.STATIC:
            tensors["input_scale"] = torch.tensor(case.args["static_input_scale"])
        module.load_state_dict(tensors, assign=True)
        results |= {
            f"mid.{mode.value}.act_scale": module.activation_scale(x),
            f"mid.{mode.value}.x_dequantized": module.rounded_input(x),
            f"out.{mode.value}.y": module(x),
        }
    return results


def nvfp4_prequant_load(case: Case) -> Results:
    checkpoint = Checkpoint.open(case.weights_path)
    for mode, expected in case.args["loaded"].items():
        policy = nvfp4_prequant(nvfp4.ActivationScale(mode))
        weights = checkpoint.weights("transformer", quantization=policy)
        layers = {path: weights.infos(path)["weight_scale"].shape[0] for path in weights.quantized}
        assert layers == case.args["layers"]
        kinds = {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in weights.state_dict().items()
        }
        assert kinds == expected, mode
    return count(len(case.args["layers"]))


def gguf_load(case: Case) -> Results:
    file = GgufFile(case.directory / case.args["file"])
    assert file.architecture == case.args["architecture"]
    described = {name: {"type": file.types[name], "shape": list(info.shape)} for name, info in file.tensors.items()}
    assert described == case.args["tensors"]
    return {f"out.{name}": file.read(name).float() for name in file.tensors}


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("loader", "metadata"): metadata,
    ("loader", "model_versions"): model_versions,
    ("loader", "stream_layout"): stream_layout,
    ("loader", "lora.diffusers_names"): diffusers_names,
    ("loader", "lora.fuse"): lora_fuse,
    ("loader", "lora.fuse_community"): lora_fuse_community,
    ("loader", "lora.fuse_fp8_cast"): lora_fuse,
    ("loader", "lora.fuse_fp8_scaled"): lora_fuse_scaled,
    ("loader", "gguf.load"): gguf_load,
    ("quantization", "nvfp4.quantize"): nvfp4_quantize,
    ("quantization", "nvfp4.linear"): nvfp4_linear,
    ("quantization", "nvfp4.prequant_load"): nvfp4_prequant_load,
    ("quantization", "fp8.cast_values"): fp8_cast_values,
    ("quantization", "fp8.cast_policy"): fp8_cast_policy,
    ("quantization", "fp8.prequant_fold"): fp8_prequant_fold,
    ("quantization", "fp8.scaled_linear"): fp8_scaled_linear,
}
