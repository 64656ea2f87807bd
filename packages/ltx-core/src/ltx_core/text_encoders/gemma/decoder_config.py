"""Configuration of the language models, the decoders of Gemma 3 and of Gemma 4 "unified": their ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltx_core.errors import ConfigError
from ltx_core.text_encoders.gemma.config import gemma_text_config

if TYPE_CHECKING:
    from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"
FULL_EVERY = 6  # layers, where the config does not list them
SUPPORTED: dict[str, tuple[Any, ...]] = {  # what the networks are written for, the default first
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None, "vision"),
    "num_kv_shared_layers": (0,),
    "hidden_size_per_layer_input": (0,),
    "use_double_wide_mlp": (False,),
    "enable_moe_block": (False,),
}


def check_positive(config: object, *names: str) -> None:
    """Refuse fields that are no positive numbers, whatever the file says they are. Raises ``ConfigError``."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigError(f"{name} of the language model is {value!r:.60}, expected a positive number")


@dataclass(frozen=True)
class Rope:
    """Half-split rotation: the first ``share`` of the pairs of channels turns, the rest does not."""

    head_dim: int
    theta: float
    factor: float = 1.0  # frequencies are divided by it
    share: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "head_dim", "theta", "factor", "share")

    @classmethod
    def from_json(cls, given: Mapping[str, Any], head_dim: int, theta: float) -> Rope:
        """Raises ``ConfigError`` for another kind than default, linear and proportional."""
        kind = given.get("rope_type", given.get("type", "default"))
        if kind not in ("default", "linear", "proportional"):
            raise ConfigError(f"rope_type is {kind!r}, expected default, linear or proportional")
        factor = given.get("factor", 1.0) if kind == "linear" else 1.0
        share = given.get("partial_rotary_factor", 1.0) if kind == "proportional" else 1.0
        return cls(head_dim, given.get("rope_theta", theta), factor, share)

    def frequencies(self) -> Tensor:
        """Of each pair of channels, float32 ``[h / 2]``."""
        import torch

        exponents = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        frequencies = 1.0 / self.theta**exponents / self.factor
        frequencies[int(self.share * self.head_dim // 2) :] = 0
        return frequencies


@dataclass(frozen=True)
class LayerConfig:
    """Attention of one kind of layer."""

    heads: int
    kv_heads: int
    score_scale: float
    rope: Rope
    window: int | None = None  # tokens that a query sees, itself included; None: all before it
    keys_are_values: bool = False  # values are the keys' projection

    def __post_init__(self) -> None:
        check_positive(self, "heads", "kv_heads", "score_scale", *(() if self.window is None else ("window",)))

    @property
    def head_dim(self) -> int:
        return self.rope.head_dim


@dataclass(frozen=True)
class GemmaConfig:
    """A decoder; ``kinds`` names the kind of each layer, ``layers`` describes the kinds.

    ``is_gemma4``: norms multiply by their weight and not by one more, values are normalised, scores are not scaled, and
    every layer ends with a scalar.
    """

    vocab_size: int
    width: int
    inner_width: int
    kinds: tuple[str, ...]
    layers: Mapping[str, LayerConfig]
    eps: float
    is_gemma4: bool

    def __post_init__(self) -> None:
        check_positive(self, "vocab_size", "width", "inner_width", "eps")

    @classmethod
    def from_json(cls, gemma: Mapping[str, Any]) -> GemmaConfig:
        """From the parsed ``config.json``, of either style. Raises ``ConfigError`` for what is not built here."""
        text, is_gemma4 = gemma_text_config(gemma), gemma.get("model_type") == "gemma4_unified"
        if not is_gemma4 and gemma.get("model_type") not in ("gemma3", "gemma3_text"):
            raise ConfigError(f"model_type is {gemma.get('model_type')!r}, expected gemma3 or gemma4_unified to encode")
        for key, allowed in SUPPORTED.items():
            if text.get(key, allowed[0]) not in allowed:
                raise ConfigError(f"{key} is {text[key]!r}, expected {allowed[0]!r}")
        count, every = text["num_hidden_layers"], text.get("sliding_window_pattern", FULL_EVERY)
        kinds = text.get("layer_types") or [SLIDING if (index + 1) % every else FULL for index in range(count)]
        if len(kinds) != count or not set(kinds) <= {FULL, SLIDING}:
            raise ConfigError(f"layer_types are {kinds!r:.80}, expected {count} of {FULL} and {SLIDING}")
        layers = _gemma4_layers(text) if is_gemma4 else _gemma3_layers(text)
        return cls(
            vocab_size=text.get("vocab_size", 262144 if is_gemma4 else 262208),
            width=text["hidden_size"],
            inner_width=text.get("intermediate_size", 9216),
            kinds=(*kinds[:-1], FULL) if is_gemma4 else tuple(kinds),
            layers=layers,
            eps=text.get("rms_norm_eps", 1e-6),
            is_gemma4=is_gemma4,
        )


def _gemma3_layers(text: Mapping[str, Any]) -> dict[str, LayerConfig]:
    heads, kv_heads, head_dim = (text.get(*item) for item in HEADS)
    new = text.get("rope_parameters") or {FULL: text.get("rope_scaling") or {}}
    full = Rope.from_json(new.get(FULL) or {}, head_dim, text.get("rope_theta", 1e6))
    sliding = Rope.from_json(new.get(SLIDING) or {}, head_dim, text.get("rope_local_base_freq", 1e4))
    scale, window = text.get("query_pre_attn_scalar", 256) ** -0.5, text.get("sliding_window", 4096)
    return {
        FULL: LayerConfig(heads, kv_heads, scale, full),
        SLIDING: LayerConfig(heads, kv_heads, scale, sliding, window),
    }


def _gemma4_layers(text: Mapping[str, Any]) -> dict[str, LayerConfig]:
    heads, kv_heads, head_dim = (text.get(*item) for item in HEADS)
    shared = bool(text.get("attention_k_eq_v"))
    own: Mapping[str, Any] = next(
        iter((text.get("per_layer_config") or {}).values()), {}
    )  # of full layers, as newer files say it
    wide = own.get("head_dim", text.get("global_head_dim", 512))
    few = own.get("num_key_value_heads", text.get("num_global_key_value_heads") if shared else None) or kv_heads
    ropes = text.get("rope_parameters") or {}
    proportional = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
    full = Rope.from_json(ropes.get(FULL) or proportional, wide, 1e6)
    sliding = Rope.from_json(ropes.get(SLIDING) or {}, head_dim, 1e4)
    return {
        FULL: LayerConfig(heads, few, 1.0, full, keys_are_values=shared),
        SLIDING: LayerConfig(heads, kv_heads, 1.0, sliding, text.get("sliding_window", 1024)),
    }


HEADS = (("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256))  # with their defaults
