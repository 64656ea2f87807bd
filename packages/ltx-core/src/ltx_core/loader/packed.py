"""Quantised layers of ComfyUI's and similar files: which formats a file declares, and the plain weight of each.

A layer says its format in a tensor ``X.comfy_quant`` (UTF-8 bytes of a JSON object), in the header's
``_quantization_metadata``, or, in older files, by ``X.scale_weight`` beside one tensor ``scaled_fp8``. 8-bit floats
with a scale stay as they are, since every format of `quantization` reads them; all others become sources of the plain
float32 weight. What this does not know is refused from the header.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ltx_core.errors import CheckpointError
from ltx_core.loader.sources import Derived, Source, by_rows
from ltx_core.textfiles import parse_object

if TYPE_CHECKING:
    from torch import Tensor

HEADER = "_quantization_metadata"
RENAMED = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
PLAIN = ("float8_e4m3fn", "float8_e5m2")
#: Tensors of schemes that are not read -> what they are.
FOREIGN = {
    r"\.(absmax|quant_map|nested_absmax|SCB)$|\.quant_state\.": "bitsandbytes",
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(wscales|smooth_factor|proj_down)$": "SVDQuant (Nunchaku)",
    r"\.(zero_point|svd_up|svd_down)$": "SDNQ",
    r"\.weight_packed$": "compressed-tensors",
}
OPTIONAL = ("weight_codebook", "weight_correction")


def plain_layers(path: Path, tensors: Mapping[str, Source], metadata: Mapping[str, str]) -> dict[str, Source]:
    """A file's tensors with the weights of quantised layers plain and their markers gone.

    Reads no more than the markers. Raises ``CheckpointError`` for formats that are not known.
    """
    _refuse_foreign(path, tensors)
    formats = _formats(path, tensors, metadata)
    named = {_rename(name): source for name, source in tensors.items() if not _is_marker(name)}
    for layer, settings in formats.items():
        if settings["format"] not in PLAIN and f"{layer}.weight" in named:
            _widen_layer(path, named, layer, settings)
    for name in [name for name in named if name.endswith(".pre_quant_scale")]:
        _scale_columns(named, name)
    return named


def _refuse_foreign(path: Path, tensors: Mapping[str, Source]) -> None:
    for name in tensors:
        for pattern, scheme in FOREIGN.items():
            if re.search(pattern, name):
                raise CheckpointError(f"{path} is quantised by {scheme}, which is not supported: {name}")


def _is_marker(name: str) -> bool:
    return name.rpartition(".")[2] in ("scaled_fp8", "comfy_quant")


def _rename(name: str) -> str:
    layer, dot, leaf = name.rpartition(".")
    return layer + dot + RENAMED.get(leaf, leaf)


def _formats(path: Path, tensors: Mapping[str, Source], metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Settings of each layer that declares a format, or shows it by its tensors as NVFP4 does."""
    declared = parse_object(metadata.get(HEADER, "{}"), f"{path}: {HEADER}").get("layers", {})
    if not isinstance(declared, dict):
        raise CheckpointError(f"{path}: {HEADER} has layers {declared!r:.60}, expected an object")
    formats = {name: _settings(path, name, given) for name, given in declared.items()}
    for name, source in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "comfy_quant":
            text = source.read().numpy().tobytes().decode("utf-8", "replace")
            formats[layer] = _settings(path, layer, parse_object(text, f"{path}: {name}"))
        elif leaf == "weight" and layer not in formats:
            stored = source.info.stored_as
            if stored == "U8" and {f"{layer}.weight_scale", f"{layer}.weight_scale_2"} <= tensors.keys():
                formats.setdefault(layer, {"format": "nvfp4"})
            elif stored == "I8" and f"{layer}.comfy_quant" not in tensors:
                lacks = "a comfy_quant marker, which says how it is rotated"
                raise CheckpointError(f"{path}: {name} is I8 without {lacks}")
    return formats


def _settings(path: Path, layer: str, given: Any) -> dict[str, Any]:
    settings = {**given, **(given.get("params") or {})} if isinstance(given, dict) else {"format": given}
    if (name := settings.get("format")) not in (*PLAIN, *FORMATS):
        raise CheckpointError(f"{path}: {layer} has format {name!r}, expected one of {', '.join((*PLAIN, *FORMATS))}")
    return settings


def _widen_layer(path: Path, named: dict[str, Source], layer: str, settings: Mapping[str, Any]) -> None:
    """Put the plain weight in the place of a layer's stored tensors."""
    kind = settings["format"]
    form, weight = FORMATS[kind], named[f"{layer}.weight"]
    if weight.info.stored_as not in (form.stored_as, "U8") or len(weight.info.shape) != 2:
        found = f"{weight.info.stored_as} {list(weight.info.shape)}"
        raise CheckpointError(f"{path}: {layer}.weight is {found}, expected a matrix of {form.stored_as} for {kind}")
    if missing := [leaf for leaf in form.leaves if f"{layer}.{leaf}" not in named]:
        raise CheckpointError(f"{path}: {layer} has no {missing[0]}, which {kind} needs")
    rows, columns = weight.info.shape[0], weight.info.shape[1] * form.per_byte
    groups = _rotation(path, layer, columns, settings)
    leaves = (*form.leaves, *(leaf for leaf in OPTIONAL if f"{layer}.{leaf}" in named))
    parts = tuple(named.pop(f"{layer}.{leaf}") for leaf in leaves)
    widen = partial(_widen, form, leaves, groups)
    named[f"{layer}.weight"] = Derived.of((weight, *parts), widen, (rows, columns), "F32")


def _rotation(path: Path, layer: str, columns: int, settings: Mapping[str, Any]) -> int | None:
    """Size of the groups whose rotation is undone, None for a weight that is not rotated."""
    if not (settings.get("convrot") or settings["format"].startswith("convrot")):
        return None
    size = settings.get("convrot_groupsize", 256)
    power = round(math.log(size, 4)) if isinstance(size, int) and size > 1 else 0
    if power < 1 or 4**power != size or columns % size:
        expected = f"a power of 4 that divides {columns}"
        raise CheckpointError(f"{path}: {layer} is rotated in groups of {size!r}, expected {expected}")
    return size


def _scale_columns(named: dict[str, Source], name: str) -> None:
    """Multiply what belongs to a layer's input into its weight, scales too."""
    layer = name.removesuffix(".pre_quant_scale")
    weight = named[f"{layer}.weight"]
    parts = [weight, named.pop(name)]
    if f"{layer}.weight_scale" in named:
        parts.append(named.pop(f"{layer}.weight_scale"))
    named[f"{layer}.weight"] = Derived.of(parts, _columns_scaled, stored_as="F32")


def _columns_scaled(weight: Tensor, columns: Tensor, scale: Tensor | None = None) -> Tensor:
    wide = weight.float() * columns.float()
    return wide if scale is None else wide * by_rows(scale)


class Format(NamedTuple):
    """A weight's storage."""

    stored_as: str  # its type, where it is not raw bytes
    leaves: tuple[str, ...]  # tensors it is multiplied out by
    per_byte: int  # values in a byte
    dequantize: Callable[[Tensor, Mapping[str, Tensor]], Tensor]  # it and those tensors -> float32


def _widen(form: Format, leaves: tuple[str, ...], groups: int | None, weight: Tensor, *parts: Tensor) -> Tensor:
    """The float32 weight of a layer's stored tensors."""
    wide = form.dequantize(weight, dict(zip(leaves, parts, strict=True)))
    return unrotate(wide, groups) if groups else wide


def _nvfp4(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    from ltx_core.loader import nvfp4

    return nvfp4.dequantize_layer(weight, _bytes(parts["weight_scale"]), parts["weight_scale_2"].float())


def _mxfp8(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    import torch

    from ltx_core.loader import nvfp4

    rows, columns = weight.shape
    exponents = _bytes(nvfp4.from_tiles(_bytes(parts["weight_scale"]), rows, columns // 32)).int()
    factors = torch.where(exponents == 0, 0.0, torch.exp2((exponents - 127).float()))
    return (weight.view(torch.float8_e4m3fn).float().view(rows, -1, 32) * factors.unsqueeze(-1)).view(rows, columns)


def _int8(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    return weight.float() * by_rows(parts["weight_scale"])


def _w4a4(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    signed = (_nibbles(weight) ^ 8) - 8  # two's complement
    return signed.float() * by_rows(parts["weight_scale"])


def _w4a8(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    import torch

    codes = _nibbles(weight)
    table = parts["weight_codebook"].float() if "weight_codebook" in parts else torch.arange(-8, 8).float()
    relative = _bytes(parts["weight_s_rel"]).view(torch.float8_e4m3fn).float()
    rows, groups = relative.shape
    steps = (table[codes.long()].view(rows, groups, -1) * relative.unsqueeze(-1)).round().clamp(-127, 127)
    wide = steps * parts["weight_s_channel"].float().reshape(-1, 1, 1)
    if "weight_correction" in parts:  # [groups, rows]
        wide = wide + parts["weight_correction"].float().t().unsqueeze(-1)
    return wide.view(rows, -1)


FORMATS = {
    "nvfp4": Format("U8", ("weight_scale", "weight_scale_2"), 2, _nvfp4),
    "mxfp8": Format("F8_E4M3", ("weight_scale",), 1, _mxfp8),
    "int8_tensorwise": Format("I8", ("weight_scale",), 1, _int8),
    "convrot_w4a4": Format("I8", ("weight_scale",), 2, _w4a4),
    "asym_w4a8_int8": Format("I8", ("weight_s_rel", "weight_s_channel"), 2, _w4a8),
}


def _bytes(tensor: Tensor) -> Tensor:
    import torch

    return tensor.view(torch.uint8)


def _nibbles(packed: Tensor) -> Tensor:
    """int32 values 0 to 15, the even column in the low nibble."""
    import torch

    raw = _bytes(packed).int()
    return torch.stack([raw & 15, raw >> 4], dim=-1).flatten(-2)


def unrotate(weight: Tensor, size: int) -> Tensor:
    """A float32 weight whose groups of ``size`` inputs were multiplied by a Hadamard matrix, without that."""
    import torch

    seed = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, seed)
    return (weight.unflatten(-1, (-1, size)) @ (matrix / math.sqrt(size))).flatten(-2)
