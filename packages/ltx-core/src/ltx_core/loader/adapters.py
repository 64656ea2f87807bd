"""Adapters as tensors: what their names mean in every tool's spelling, and the change they make in one module.

======================  ====================================================================
low rank                ``W + s * scale * B @ A``, bias ``+ s * scale * b``
LoKr                    ``W + s * scale * kron(w1, w2)``
LoHa                    ``W + s * scale * (w1_a @ w1_b) * (w2_a @ w2_b)``
difference              ``W + s * diff``, bias ``+ s * diff_b``
DoRA, magnitude vector  ``g * V / |V|`` by rows with ``V = W + s * D``: the strength is inside the norm
DoRA, ``dora_scale``    ``W + s * (g * V / |N| - W)`` with ``V = W + D`` and N = V, or W for ComfyUI's exports
======================  ====================================================================

``scale`` is alpha / rank. Everything but DoRA is linear in the strength and adds up in any order. Torch-free until
tensors are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from ltx_core.errors import CheckpointError
from ltx_core.model.transformer.foreign import from_diffusers_name, to_diffusers_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor


EPSILON = 2.0**-23  # of float32, added to the norms of ``dora_scale``
Pair: TypeAlias = "tuple[Tensor, Tensor]"


@dataclass(frozen=True)
class LoraLayer:
    """The change of one adapter in one module. Tensors are as stored; they are widened before they are multiplied."""

    a: Tensor | None = None  # (r, in)
    b: Tensor | None = None  # (out, r)
    scale: float = 1.0
    kron: tuple[Pair | Tensor, Pair | Tensor] | None = None  # each factor whole, or as a product of two
    hadamard: tuple[Pair, Pair] | None = None
    diff: Tensor | None = None  # shape of the weight
    diff_b: Tensor | None = None  # shape of the bias
    bias: Tensor | None = None  # bias factor of a low-rank pair, scaled like it
    magnitude: Tensor | None = None  # (out,), (out, 1) or (1, in): makes it a DoRA
    dora: Literal["inside", "merged", "base"] = "inside"  # strength inside the norm; or interpolated, with that norm

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """Shape of the weight difference, None when there is none."""
        if self.a is not None and self.b is not None:
            return self.b.shape[0], self.a.shape[1]
        if self.kron is not None:
            (o1, i1), (o2, i2) = (_product_shape(factor) for factor in self.kron)
            return o1 * o2, i1 * i2
        if self.hadamard is not None:
            return _product_shape(self.hadamard[0])
        return None if self.diff is None else tuple(self.diff.shape)

    @property
    def bias_shape(self) -> tuple[int, ...] | None:
        """Shape of the bias difference, None when there is none."""
        change = self.diff_b if self.diff_b is not None else self.bias
        return None if change is None else tuple(change.shape)

    def terms(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[tuple[Tensor, float]]:
        """Differences of the weight but for a low-rank pair, each with its factor at strength 1."""
        if self.kron is not None:
            w1, w2 = (_product(factor, device, dtype) for factor in self.kron)
            yield w1.kron(w2), self.scale
        if self.hadamard is not None:
            w1, w2 = (_product(factor, device, dtype) for factor in self.hadamard)
            yield w1 * w2, self.scale
        if self.diff is not None:
            yield self.diff.to(device).to(dtype), 1.0

    def add_to(self, total: Tensor | None, strength: float, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """``total`` (None is nothing yet) with this layer's difference of the weight, DoRA's magnitude left out."""
        if self.a is not None and self.b is not None:
            factor = strength * self.scale
            a, b = self.a.to(device).to(dtype), self.b.to(device).to(dtype)  # (r, in), (out, r)
            total = (b * factor) @ a if total is None else total.addmm(b, a, alpha=factor)
        for term, factor in self.terms(device, dtype):
            change = term * (strength * factor)
            total = change if total is None else total + change
        assert total is not None, "a layer without a weight difference"
        return total

    def normalise(self, weight: Tensor, strength: float) -> Tensor:
        """The weight ``(out, in)`` float32 that a DoRA layer makes of ``weight``."""
        assert self.magnitude is not None
        g = self.magnitude.to(weight.device).float()
        g = g[:, None] if g.ndim == 1 else g
        axis = 1 if g.shape[1] == 1 else 0  # what the norm runs over
        if self.dora == "inside":
            changed = self.add_to(weight, strength, weight.device, weight.dtype)
            return g * changed / changed.norm(dim=axis, keepdim=True)
        changed = self.add_to(weight, 1.0, weight.device, weight.dtype)
        measured = weight if self.dora == "base" and axis == 1 else changed
        whole = changed * g / (measured.norm(dim=axis, keepdim=True) + EPSILON)
        return weight + strength * (whole - weight)

    def bias_change(self, strength: float, device: torch.device | str) -> Tensor | None:
        """The change of the bias, float32 ``(out,)``."""
        if self.diff_b is not None:
            return self.diff_b.to(device).float() * strength
        return None if self.bias is None else self.bias.to(device).float() * (strength * self.scale)


def _product(factor: Pair | Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    if not isinstance(factor, tuple):
        return factor.to(device).to(dtype)
    first, second = (part.to(device).to(dtype) for part in factor)
    return first @ second


def _product_shape(factor: Pair | Tensor) -> tuple[int, int]:
    first, second = factor if isinstance(factor, tuple) else (factor, factor)
    return first.shape[0], second.shape[1]


# Names ----------------------------------------------------------------------------------------------------------------


DOTTED_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "module.",
    "_orig_mod.",
)
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lora_prior_unet_", "lycoris_", "unet_")

#: What follows the module in a key -> the part it is; the adapter's name may stand inside (``lora_A.default.weight``).
PARTS = {
    r"\.lora_A(\.(?!weight$|bias$)[^.]+)?(\.weight)?": "a",
    r"\.lora_B(\.(?!weight$|bias$)[^.]+)?(\.weight)?": "b",
    r"\.lora_B(\.(?!weight$|bias$)[^.]+)?\.bias": "bias",
    r"(\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)(\.weight)?": "a",
    r"(\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)(\.weight)?": "b",
    r"\.alpha": "alpha",
    r"\.lora_magnitude_vector(\.(?!weight$)[^.]+)?(\.weight)?": "magnitude",
    r"\.dora_scale": "dora_scale",
    r"\.(lokr_w[12](_[ab])?)": "{1}",
    r"\.(hada_w[12]_[ab])": "{1}",
    r"\.(diff|w_norm)": "diff",
    r"\.(diff_b|b_norm)": "diff_b",
    r"\.reshape_weight": "reshape_weight",
}
#: Kinds that are refused by name.
FOREIGN = {
    r"\.lora_mid\.weight": "Tucker convolution (lora_mid)",
    r"\.(lokr_t2|hada_t[12])": "Tucker convolution (lokr_t2, hada_t)",
    r"\.[ab][12]\.weight": "GLoRA (a1/a2/b1/b2)",
    r"\.(oft_\w+)(\.weight)?|\.rescale": "OFT or BOFT (oft_)",
    r"\.on_input": "(IA)3 (on_input)",
    r"\.set_weight": "weight replacement (set_weight)",
    r"\.magnitude": "DoRA of ai-toolkit (magnitude)",
}
_PARTS = [(re.compile(rf"(?P<module>.+?){suffix}"), part) for suffix, part in PARTS.items()]
_FOREIGN = [(re.compile(rf".+?{suffix}"), kind) for suffix, kind in FOREIGN.items()]
TEXT_ENCODER = re.compile(r"(^|\.)(language_model\.|model\.layers\.\d+\.(self_attn|mlp)\.)")


class Part(NamedTuple):
    """One tensor of an adapter: of which module, as the file writes it, and which part of its change."""

    module: str
    part: str


def parse_key(key: str) -> Part | None:
    """The module and part that a tensor's name stands for; None for a tensor that is no part of any known kind."""
    for pattern, part in _PARTS:
        if match := pattern.fullmatch(key):
            return Part(match["module"], match[2] if part == "{1}" else part)
    return None


def foreign_kind(key: str) -> str | None:
    """The kind of adapter a tensor belongs to that is not supported."""
    return next((kind for pattern, kind in _FOREIGN if pattern.fullmatch(key)), None)


def is_flat(module: str) -> bool:
    """Whether a module is named with underscores for dots."""
    return "." not in module and module.startswith(FLAT_PREFIXES)


def bare_name(module: str) -> str:
    """A dotted module name without prefixes, in the spelling of the tool that wrote it."""
    while prefix := next((prefix for prefix in DOTTED_PREFIXES if module.startswith(prefix)), None):
        module = module.removeprefix(prefix)
    return module


def module_path(module: str) -> str:
    """A dotted module name as the checkpoint writes it; names flattened with underscores stay as they are."""
    return module if is_flat(module) else from_diffusers_name(bare_name(module))


def flat_table(modules: Collection[str]) -> Mapping[str, str]:
    """Module names of a model by their flattened spellings, native and diffusers'.

    Raises ``CheckpointError`` where two modules flatten to one text.
    """
    table: dict[str, str] = {}
    for module in modules:
        for spelling in {module, to_diffusers_name(module)}:
            flat = spelling.replace(".", "_")
            if table.setdefault(flat, module) != module:
                raise CheckpointError(f"{module} and {table[flat]} are both written {flat} by flattened adapters")
    return table


def unflatten(module: str, table: Mapping[str, str]) -> str | None:
    """The model's module that a flattened name means: as it is, without ``model_``, or with ``video_`` before it."""
    prefix = next(prefix for prefix in FLAT_PREFIXES if module.startswith(prefix))
    rest = module.removeprefix(prefix)
    spellings = (rest, rest.removeprefix("model_"), f"video_{rest}")
    return next((table[spelling] for spelling in spellings if spelling in table), None)
