"""Names in adapter files, in every tool's spelling: which part of which module a tensor is. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from ltx_core.errors import CheckpointError
from ltx_core.model.transformer.foreign import from_diffusers_name, to_diffusers_name

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
