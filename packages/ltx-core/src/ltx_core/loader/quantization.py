"""Quantised weight formats as data: the layers they cover, how those are loaded, the module that computes with them.

A layer is a module that owns a ``weight``; the tensors a file stores for it are keyed by their last name part
(``weight``, ``bias``, ``weight_scale``, ``input_scale``, ...). Loading a layer and fusing adapters into it are one
function, because a quantised weight must be widened, added to and quantised again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError, check_known
from ltx_core.loader import nvfp4
from ltx_core.loader.fp8 import (
    FP8,
    CastLinear,
    RowwiseLinear,
    ScaledLinear,
    quantize_per_row,
    quantize_per_tensor,
    to_fp8,
)
from ltx_core.loader.safetensors_file import TensorInfo
from ltx_core.loader.sources import Derived, Source, by_rows

LayerTensors = dict[str, Tensor]
LayerInfos = Mapping[str, TensorInfo]
COMPANIONS = frozenset({"weight_scale", "weight_scale_2", "bias_scale", "input_scale"})
CASTABLE = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
FP8_DTYPES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})


@dataclass(frozen=True)
class LayerLoad:
    """Treatment of a layer on its way into the model."""

    dtype: torch.dtype | None = None  # None keeps the file's dtypes
    weight_delta: Tensor | None = None  # (out, in), from adapters
    bias_delta: Tensor | None = None
    weight_dtype: torch.dtype | None = None  # of the weight of a layer no policy covers, where not ``dtype``


def widen_plain(tensors: LayerTensors) -> Tensor:
    """A layer's weight in float32, scales multiplied in."""
    return _plain(tensors["weight"], tensors.get("weight_scale"), None, torch.float32)


@dataclass(frozen=True)
class QuantizationPolicy:
    """A format for linears of the transformer; ``covers`` sees a layer's path and what the file stores for it."""

    name: str
    covers: Callable[[str, LayerInfos], bool]
    load: Callable[[LayerTensors, LayerLoad], LayerTensors]
    module: Callable[[nn.Linear, LayerInfos], nn.Module]
    file_shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape  # packed -> logical weight shape
    widen: Callable[[LayerTensors], Tensor] = widen_plain  # what the file stores -> the weight in float32
    delta_dtype: torch.dtype = torch.bfloat16  # adapters are summed in this before they meet the weight
    scalar_scales: bool = True  # one scale per tensor, others are refused
    folds_scales: bool = False  # scales are multiplied into weights, so all must be known
    prequantized: bool = False  # the file must hold layers in this format
    streamable: bool = False
    spares_ends: bool = False  # the first and the last block keep their precision

    def keep_stored(self, sources: Mapping[str, Source]) -> dict[str, Source]:
        """The tensors of a component, those of layers this covers as the file stores them."""
        result = dict(sources)
        for name, source in sources.items() if self.prequantized else ():
            if isinstance(source, Derived) and name.endswith(".weight"):
                path = name.removesuffix(".weight")
                raw = {part.key.rpartition(".")[2]: part for part in source.parts}
                if f"{path}.input_scale" in sources:
                    raw["input_scale"] = sources[f"{path}.input_scale"]
                if self.covers(path, {leaf: part.info for leaf, part in raw.items()}):
                    result |= {f"{path}.{leaf}": part for leaf, part in raw.items()}
        return result


def load_plain(tensors: LayerTensors, load: LayerLoad) -> LayerTensors:
    """A layer no policy covers: scales are multiplied in, adapters added in float32, one rounding at the end.

    8-bit weights become ``load.dtype``, or bfloat16, since a plain module cannot compute with them.
    """
    result: LayerTensors = {}
    for name, tensor in tensors.items():
        if name in COMPANIONS and "weight" in tensors:
            continue
        delta = {"weight": load.weight_delta, "bias": load.bias_delta}.get(name)
        dtype = load.weight_dtype or load.dtype if name == "weight" else load.dtype
        result[name] = _plain(tensor, tensors.get(f"{name}_scale"), delta, dtype)
    return result


def _plain(tensor: Tensor, scale: Tensor | None, delta: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    is_scalar = tensor.ndim == 0 and tensor.dtype == torch.float32
    castable = tensor.dtype in CASTABLE and not is_scalar
    if tensor.dtype in FP8_DTYPES:
        target = dtype or torch.bfloat16
    else:
        target = dtype if dtype is not None and castable else tensor.dtype
    if scale is not None:
        tensor = tensor.float() * by_rows(scale)
    if delta is not None:  # in bfloat16 where the adapters were summed in it
        tensor = (tensor.to(delta.dtype) if delta.dtype == torch.bfloat16 else tensor.float()) + delta
    return tensor.to(target)


FP8_CAST_SUFFIXES = (".to_q", ".to_k", ".to_v", ".to_out.0", "ff.net.0.proj", "ff.net.2")


def _fp8_cast_covers(path: str, infos: LayerInfos) -> bool:
    return (
        path.startswith("transformer_blocks.") and path.endswith(FP8_CAST_SUFFIXES) and len(infos["weight"].shape) == 2
    )


def _fp8_cast_load(tensors: LayerTensors, load: LayerLoad) -> LayerTensors:
    """Weight and bias as e4m3fn without scale; adapters are added to what was rounded, then rounded again."""
    plain = load_plain(tensors, LayerLoad(torch.bfloat16))
    cast = {name: to_fp8(tensor) for name, tensor in plain.items()}
    for name, delta in (("weight", load.weight_delta), ("bias", load.bias_delta)):
        if delta is not None and name in cast:
            cast[name] = to_fp8(cast[name].float() + delta)
    return cast


def _fp8_rowwise_load(tensors: LayerTensors, load: LayerLoad) -> LayerTensors:
    """Adapters are fused in full precision, then every row of the weight is quantised with a scale of its own."""
    plain = load_plain(tensors, LayerLoad(torch.float32, load.weight_delta, load.bias_delta))
    weight, scale = quantize_per_row(plain["weight"])
    result = {"weight": weight, "weight_scale": scale}
    if "bias" in plain:
        result["bias"] = plain["bias"].to(load.dtype or tensors["bias"].dtype)
    return result


def _fp8_scaled_covers(path: str, infos: LayerInfos) -> bool:
    return infos["weight"].dtype == FP8 and {"weight_scale", "input_scale"} <= infos.keys()


def _fp8_scaled_load(tensors: LayerTensors, load: LayerLoad) -> LayerTensors:
    """The file's e4m3fn weight and scale as they are; with adapters, quantised again with a new scale."""
    result = dict(tensors)
    if load.weight_delta is not None:
        wide = tensors["weight"].float() * by_rows(tensors["weight_scale"]) + load.weight_delta
        result["weight"], result["weight_scale"] = quantize_per_tensor(wide)
    if "bias" in tensors:
        result["bias"] = _plain(tensors["bias"], None, load.bias_delta, load.dtype)
    return result


def _replace_by(kind: Callable[[int, int, bool], nn.Module]) -> Callable[[nn.Linear, LayerInfos], nn.Module]:
    """A function that makes a module of this kind, empty, to stand in the place of a linear."""
    return lambda linear, infos: kind(linear.in_features, linear.out_features, linear.bias is not None)


NVFP4_LAYERS = re.compile(
    r"transformer_blocks\.\d+\.(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_q|to_out\.0)"
    r"|audio_to_video_attn\.(to_q|to_out\.0)|video_to_audio_attn\.(to_k|to_v)|ff\.net\.0\.proj|ff\.net\.2)"
)


def _nvfp4_cast_covers(path: str, infos: LayerInfos) -> bool:
    return NVFP4_LAYERS.fullmatch(path) is not None and infos["weight"].shape[-1] % nvfp4.BLOCK == 0


def _nvfp4_cast_load(tensors: LayerTensors, load: LayerLoad) -> LayerTensors:
    plain = load_plain(tensors, load)
    return {**plain, **nvfp4.quantize_layer(plain["weight"])}


def _nvfp4_stored(path: str, infos: LayerInfos) -> bool:
    """Whether a file stores this layer as NVFP4; ``CheckpointError`` when it stores only half of what that needs."""
    given = [name in infos for name in ("weight_scale", "weight_scale_2")]
    if any(given) and not all(given):
        raise CheckpointError(f"{path} has one of weight_scale and weight_scale_2, NVFP4 needs both")
    kinds = {"weight": torch.uint8, "weight_scale": FP8, "weight_scale_2": torch.float32}
    return all(given) and all(infos[name].dtype == dtype for name, dtype in kinds.items())


def nvfp4_prequant(activation: nvfp4.ActivationScale) -> QuantizationPolicy:
    """Layers the file stores as NVFP4, with this scale for their inputs."""
    static = activation is nvfp4.ActivationScale.STATIC

    def covers(path: str, infos: LayerInfos) -> bool:
        stored = _nvfp4_stored(path, infos)
        if stored and static and "input_scale" not in infos:
            raise CheckpointError(f"{path} has no input_scale, static NVFP4 activations need one")
        return stored

    def widen(tensors: LayerTensors) -> Tensor:
        scale = tensors["weight_scale"].view(torch.uint8)
        return nvfp4.dequantize_layer(tensors["weight"], scale, tensors["weight_scale_2"]).float()

    def load_layer(tensors: LayerTensors, load: LayerLoad) -> LayerTensors:
        result = {**tensors, "weight_scale": tensors["weight_scale"].view(torch.uint8)}
        if not static:
            result.pop("input_scale", None)
        if load.weight_delta is not None:
            result |= nvfp4.quantize_layer(widen(tensors).to(torch.bfloat16).float() + load.weight_delta.float())
        if "bias" in tensors:
            result["bias"] = _plain(tensors["bias"], None, load.bias_delta, load.dtype)
        return result

    def module(linear: nn.Linear, infos: LayerInfos) -> nn.Module:
        rows = infos["weight_scale"].shape[0]
        return nvfp4.Nvfp4Linear(linear.in_features, linear.out_features, linear.bias is not None, activation, rows)

    return QuantizationPolicy(
        "nvfp4-prequant",
        covers,
        load_layer,
        module,
        file_shape=lambda shape: (shape[0], shape[1] * 2),
        widen=widen,
        scalar_scales=False,
        prequantized=True,
    )


POLICIES: dict[str, QuantizationPolicy] = {
    policy.name: policy
    for policy in (
        QuantizationPolicy(
            "fp8-cast", _fp8_cast_covers, _fp8_cast_load, _replace_by(CastLinear), folds_scales=True, streamable=True
        ),
        QuantizationPolicy(
            "fp8-rowwise",
            _fp8_cast_covers,
            _fp8_rowwise_load,
            _replace_by(RowwiseLinear),
            delta_dtype=torch.float32,
            scalar_scales=False,
            streamable=True,
            spares_ends=True,
        ),
        QuantizationPolicy(
            "fp8-scaled-mm", _fp8_scaled_covers, _fp8_scaled_load, _replace_by(ScaledLinear), prequantized=True
        ),
        QuantizationPolicy("nvfp4-cast", _nvfp4_cast_covers, _nvfp4_cast_load, _replace_by(nvfp4.Nvfp4Linear)),
        nvfp4_prequant(nvfp4.ActivationScale.STATIC),
    )
}


def find_policy(name: str) -> QuantizationPolicy:
    """The policy a user names; ``ConfigError`` lists the known ones."""
    check_known("quantization", name, POLICIES)
    return POLICIES[name]


def check_scales(where: str, layers: Mapping[str, LayerInfos], policy: QuantizationPolicy) -> None:
    """Refuse scales of a shape the policy cannot honour."""
    for path, infos in layers.items():
        for name in ("weight_scale", "bias_scale"):
            info = infos.get(name)
            if policy.scalar_scales and info is not None and info.shape not in ((), (1,)):
                what = f"{where}: {path}.{name} has shape {list(info.shape)}"
                raise CheckpointError(f"{what}, expected a scalar for {policy.name}")
