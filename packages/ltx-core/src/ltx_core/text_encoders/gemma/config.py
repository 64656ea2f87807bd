"""Configurations of the feature extractor, the connectors and the language models.

The first two are read from the checkpoint's ``transformer`` section, but for the width of the language model. That
comes from its own ``config.json``, as does the rest of it: the decoders of Gemma 3 and of Gemma 4 "unified".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.config import TEXT_IS_READY
from ltx_core.sections import check_choices, section

if TYPE_CHECKING:
    from torch import Tensor

    from ltx_core.model.transformer.rope import RotaryEmbedding

GEMMA_12B = {"hidden_size": 3840, "num_hidden_layers": 48}
#: Sizes of a connector: their keys and what they are where those are absent.
SIZES = {"heads": ("num_attention_heads", 30), "head_dim": ("attention_head_dim", 128), "num_layers": ("num_layers", 2)}


@dataclass(frozen=True)
class FeatureExtractorConfig:
    """From all states of the language model to features.

    LTX-2 19B normalises per prompt and layer and has one projection for both modalities; 2.3 and 2.5 normalise per
    token and project to each modality's width.
    """

    hidden_size: int
    num_states: int  # decoder layers + 1
    per_token: bool = False
    video_width: int = 0  # without per_token both are hidden_size
    audio_width: int | None = None  # None: no audio projection

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any], gemma: Mapping[str, Any] | None = None) -> FeatureExtractorConfig:
        """``gemma`` is the language model's config; without it the config's ``gemma`` section, then Gemma 12B."""
        transformer = section(config, "transformer")
        text = gemma_text_config(gemma or config.get("gemma") or GEMMA_12B)
        hidden, states = text["hidden_size"], text["num_hidden_layers"] + 1
        given = {key: transformer[key] for key in TEXT_IS_READY if key in transformer}
        if not given:
            return cls(hidden, states, False, hidden, hidden)
        if given != TEXT_IS_READY:
            raise ConfigError(f"text projection is {given}, expected none of these keys or exactly {TEXT_IS_READY}")
        has_audio = {"audio_num_attention_heads", "audio_attention_head_dim"} & transformer.keys()
        video, audio = (
            _positive(transformer, f"{prefix}num_attention_heads")
            * _positive(transformer, f"{prefix}attention_head_dim")
            for prefix in ("", "audio_" if has_audio else "")
        )
        return cls(hidden, states, True, video, audio if has_audio else None)


@dataclass(frozen=True)
class ConnectorConfig:
    """One connector: a bidirectional transformer of width ``heads * head_dim`` over the tokens of a prompt."""

    heads: int
    head_dim: int
    num_layers: int
    num_registers: int | None = 128  # learned tokens that stand in for padding; None: padding is masked
    gated: bool = False
    ff_bias: bool = True
    max_pos: int = 1  # the position that rotates like 1
    rope_type: Literal["split", "interleaved"] = "split"
    double_precision_rope: bool = False

    def __post_init__(self) -> None:
        check_choices(self, "connector")
        if self.rope_type == "split" and self.head_dim % 2:
            raise ConfigError(f"connector: head_dim is {self.head_dim}, expected an even number for split rotation")

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def rope(self) -> RotaryEmbedding:
        from ltx_core.model.transformer.rope import RotaryEmbedding

        return RotaryEmbedding(
            self.width,
            self.heads,
            (self.max_pos,),
            rope_type=self.rope_type,
            double_precision=self.double_precision_rope,
        )

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any], modality: str = "video") -> ConnectorConfig:
        """``modality`` is ``video`` or ``audio``; what audio does not state is as in video."""
        transformer = section(config, "transformer")
        sizes = {}
        for field, (key, usual) in SIZES.items():
            sizes[field] = _positive(transformer, f"connector_{key}", usual)
            if modality == "audio":
                sizes[field] = _positive(transformer, f"audio_connector_{key}", sizes[field])
        registers = "connector_num_learnable_registers"
        has_registers = transformer.get(registers, 128) is not None
        return cls(
            **sizes,
            num_registers=_positive(transformer, registers, 128) if has_registers else None,
            gated=bool(transformer.get("connector_apply_gated_attention", False)),
            ff_bias=bool(transformer.get("connector_ff_bias", True)),
            max_pos=(transformer.get("connector_positional_embedding_max_pos") or [1])[0],
            rope_type=transformer.get("rope_type", "split"),
            double_precision_rope=transformer.get("frequencies_precision") == "float64",
        )


@dataclass(frozen=True)
class EmbeddingsConfig:
    """Feature extractor and connectors; a missing audio connector makes a video-only processor."""

    features: FeatureExtractorConfig | None  # None: features come from elsewhere
    video: ConnectorConfig
    audio: ConnectorConfig | None

    def __post_init__(self) -> None:
        if self.features is None:
            return
        pairs = [("video", self.features.video_width, self.video)]
        if self.audio is not None:
            pairs.append(("audio", self.features.audio_width or 0, self.audio))
        for name, width, connector in pairs:
            if width != connector.width:
                raise ConfigError(f"{name} features are {width} wide, their connector expects {connector.width}")

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any], gemma: Mapping[str, Any] | None = None) -> EmbeddingsConfig:
        """Audio and video, or what there is; ``gemma`` as in ``FeatureExtractorConfig.from_metadata``."""
        features = FeatureExtractorConfig.from_metadata(config, gemma)
        return cls(
            features,
            ConnectorConfig.from_metadata(config, "video"),
            None if features.audio_width is None else ConnectorConfig.from_metadata(config, "audio"),
        )

    @classmethod
    def connectors_from_metadata(cls, config: Mapping[str, Any]) -> EmbeddingsConfig:
        """Connectors only, for features computed beforehand."""
        video, audio = (ConnectorConfig.from_metadata(config, modality) for modality in ("video", "audio"))
        return cls(None, video, audio)

    def video_only(self) -> EmbeddingsConfig:
        features = None if self.features is None else replace(self.features, audio_width=None)
        return replace(self, features=features, audio=None)


def infer_connectors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The connectors' keys of a ``transformer`` section, for their tensors ``{video,audio}_connector.*``."""
    section: dict[str, Any] = {"connector_positional_embedding_max_pos": [4096]}
    for name, prefix in (("video", ""), ("audio", "audio_")):
        start = f"{name}_connector.transformer_1d_blocks."
        if (query := shapes.get(f"{start}0.attn1.to_q.weight")) is None:
            continue
        gates = shapes.get(f"{start}0.attn1.to_gate_logits.weight")
        heads = gates[0] if gates else query[0] // 128
        section[f"{prefix}connector_num_attention_heads"] = heads
        section[f"{prefix}connector_attention_head_dim"] = query[0] // heads
        blocks = {key.split(".")[2] for key in shapes if key.startswith(start)}
        section[f"{prefix}connector_num_layers"] = len(blocks)
        section["connector_apply_gated_attention"] = gates is not None
        registers = shapes.get(f"{name}_connector.learnable_registers")
        section["connector_num_learnable_registers"] = registers[0] if registers else None
    return section


def gemma_text_config(gemma: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's section of a Gemma config, or the config itself where it has no sections."""
    text = gemma.get("text_config", gemma)
    if not isinstance(text, Mapping):
        raise ConfigError(f"text_config is {text!r:.60}, expected an object")
    for name in ("hidden_size", "num_hidden_layers"):
        _positive(text, name)
    return text


def _positive(given: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}, expected a positive integer")
    return value


# Language models ------------------------------------------------------------------------------------------------------


FULL, SLIDING = "full_attention", "sliding_attention"
HEADS = (("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256))  # with their defaults
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
    # Of full layers, as newer files say it.
    own: Mapping[str, Any] = next(iter((text.get("per_layer_config") or {}).values()), {})
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
