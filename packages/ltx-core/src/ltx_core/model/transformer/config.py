"""The transformer's configuration: one frozen value that covers every published model and each of its streams.

LTX-2 19B, 2.3 and 2.5, and LTX-Video 0.9.x with and without an audio adapter, differ in these values only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ltx_core.errors import ConfigError, check_known
from ltx_core.sections import check_choices, read_fields, section

LTX2_CLASS = "AVTransformer3DModel"
LTX_VIDEO_CLASS = "Transformer3DModel"
AUDIO_ADAPTER = "audio_adapter"  # section of the config of what adds sound to LTX-Video
STREAMS = ("video", "audio")
ADAPTER_MARKS = ("audio_", "av_ca_", "video_to_audio_", "scale_shift_table_a2v_")

#: Parameters whose names contain one of these keep their precision when the rest is quantised.
SENSITIVE = (
    "patchify_proj",
    "proj_out",
    "adaln",
    "caption_projection",
    "scale_shift_table",
    "keyframes_abs_pos_embedding",
    "to_gate_logits",
    "q_norm",
    "k_norm",
)

#: What the networks are written for; a checkpoint that says otherwise is refused.
COMMON_CONSTANTS: Mapping[str, Any] = {
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
}
LTX2_CONSTANTS: Mapping[str, Any] = {**COMMON_CONSTANTS, "cross_attention_norm": True, "use_middle_indices_grid": True}
AUDIO_VIDEO_CONSTANTS: Mapping[str, Any] = {
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
}
#: What sections say of models whose text is projected by the text encoder (2.3 and later).
TEXT_IS_READY = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}


def is_adapter_tensor(name: str) -> bool:
    """Whether a tensor of an LTX-Video transformer with sound, by its name there, belongs to the audio adapter."""
    return any(part.startswith(ADAPTER_MARKS) for part in name.split("."))


@dataclass(frozen=True)
class StreamConfig:
    """One stream: its width is ``heads * head_dim``."""

    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    max_pos: tuple[int, ...]  # rotary range per axis: seconds, then pixels for video
    ff_bias: bool = True

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


STREAM_PREFIXES = {"video": "", "audio": "audio_"}  # of a stream's keys
STREAM_KEYS = {
    "heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "max_pos": "positional_embedding_max_pos",
}
PUBLISHED_STREAMS = {
    "video": StreamConfig(32, 128, 128, 128, (20, 2048, 2048)),
    "audio": StreamConfig(32, 64, 128, 128, (20,)),
}


@dataclass(frozen=True)
class TransformerConfig:
    """A transformer with a video stream, an audio stream, or both joined by cross-modal attention."""

    num_layers: int
    video: StreamConfig | None
    audio: StreamConfig | None
    caption_channels: int | None  # width of the text before its projection; None: text arrives as wide as the stream
    norm_eps: float = 1e-6
    qk_norm_eps: float = 1e-6
    out_norm_eps: float = 1e-6
    rope_type: Literal["split", "interleaved"] = "split"
    positional_embedding_theta: float = 10000.0
    double_precision_rope: bool = True  # the frequency grid is computed in float64
    use_middle_indices_grid: bool = True  # tokens sit at the middle of their bounds, not at the start
    timestep_scale_multiplier: float = 1000
    av_ca_timestep_scale_multiplier: float = 1
    apply_gated_attention: bool = False  # a gate per head and query token in every attention
    cross_attention_adaln: bool = False  # the text attention is modulated and gated too: nine rows instead of six
    use_prompt_adaln_single: bool = False  # the text itself is modulated by the sample's noise level
    use_keyframes_abs_pos_embedding: bool = False  # tokens of single pixel frames are marked
    cross_attention_norm: bool = True  # the text attention's query is normalised
    context_mask_penalty: float | None = None  # added to dropped text tokens as -penalty; None: the largest number
    audio_blocks: tuple[int, ...] | None = None  # the blocks with an audio stream, where there is one; None: all

    def __post_init__(self) -> None:
        check_choices(self, "transformer")
        if not self.streams:
            raise ConfigError("the transformer has no stream, expected video, audio or both")
        for name, stream in self.streams.items():
            rotated = stream.head_dim if self.rope_type == "split" else stream.width
            if rotated % 2:
                raise ConfigError(f"{name} attention_head_dim is {stream.head_dim}, expected an even number")
        heads = [stream.heads for stream in self.streams.values()]
        if heads[0] != heads[-1]:
            raise ConfigError(f"audio_num_attention_heads is {heads[1]}, expected num_attention_heads, {heads[0]}")
        blocks, last = list(self.audio_blocks or ()), self.num_layers - 1
        if not set(blocks) <= set(range(self.num_layers)):
            raise ConfigError(f"audio blocks are {blocks}, expected some of 0 to {last}")

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any], streams: Sequence[str] | None = None) -> TransformerConfig:
        """Read the ``transformer`` section of a checkpoint's ``config``.

        ``streams`` names the streams to build, ``"video"``, ``"audio"`` or both; None: those the section describes.
        What the section says of the joined model only counts for both. Raises ``ConfigError`` when the section is
        missing, incomplete, or describes a network that is not built here.
        """
        given = section(config, "transformer")
        name = given.get("_class_name", LTX2_CLASS)
        if name == LTX2_CLASS:
            return _ltx2(given, _streams_of(given) if streams is None else streams)
        if name == LTX_VIDEO_CLASS:
            found = _ltx_video(given, config.get(AUDIO_ADAPTER))
            return found.with_streams(*(streams or found.streams))
        raise ConfigError(f"transformer _class_name is {name!r}, expected {LTX2_CLASS!r} or {LTX_VIDEO_CLASS!r}")

    @property
    def streams(self) -> dict[str, StreamConfig]:
        """The streams there are, video first."""
        pairs = (("video", self.video), ("audio", self.audio))
        return {name: stream for name, stream in pairs if stream is not None}

    def with_streams(self, *names: str) -> TransformerConfig:
        """The same model with only the named streams: ``"video"``, ``"audio"`` or both."""
        for name in names:
            check_known("stream", name, self.streams)
        return replace(
            self, video=self.video if "video" in names else None, audio=self.audio if "audio" in names else None
        )

    def of_block(self, index: int) -> TransformerConfig:
        """The configuration of one block."""
        has_audio = self.audio_blocks is None or index in self.audio_blocks
        return self if has_audio else self.with_streams("video")

    @property
    def modulation_rows(self) -> int:
        """Rows of a block's table: shift, scale and gate of two or three branches."""
        return 9 if self.cross_attention_adaln else 6

    @property
    def has_static_text(self) -> bool:
        """Whether text keys and values are the same at every step of a sampling loop."""
        return not self.use_prompt_adaln_single


def _streams_of(given: Mapping[str, Any]) -> Sequence[str]:
    """Both streams, or video alone where the section has no sizes of audio heads."""
    return STREAMS if {"audio_num_attention_heads", "audio_attention_head_dim"} & given.keys() else ("video",)


def _ltx2(given: Mapping[str, Any], streams: Sequence[str]) -> TransformerConfig:
    _check_constants(given, LTX2_CONSTANTS)
    for name in streams:
        check_known("stream", name, STREAMS)
    if len(set(streams)) == 2:
        _check_constants(given, AUDIO_VIDEO_CONSTANTS)
        for key in ("num_attention_heads", "audio_num_attention_heads"):
            _require(given, key)
    eps = given.get("norm_eps", 1e-6)
    text_is_ready = given.get("caption_proj_before_connector", False)
    own = {
        **{name: _stream(given, name) if name in streams else None for name in STREAMS},
        "caption_channels": None if text_is_ready else _require(given, "caption_channels"),
        "qk_norm_eps": eps,
        "out_norm_eps": eps,
        "use_prompt_adaln_single": given.get("cross_attention_adaln", False)
        and given.get("use_prompt_adaln_single", True),
    }
    return TransformerConfig(**{"num_layers": 48} | _common(given) | own)


def _ltx_video(given: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> TransformerConfig:
    _check_constants(given, {key: value for key, value in COMMON_CONSTANTS.items() if key in given})
    if given.get("adaptive_norm", "single_scale_shift") != "single_scale_shift":
        raise ConfigError(f"adaptive_norm is {given['adaptive_norm']!r}, expected 'single_scale_shift'")
    for key in ("num_attention_heads", "attention_head_dim", "num_layers", "caption_channels"):
        _require(given, key)
    video = _stream(
        {"cross_attention_dim": given["num_attention_heads"] * given["attention_head_dim"], **given}, "video"
    )
    absent: dict[str, Any] = {
        "rope_type": "interleaved",
        "use_middle_indices_grid": False,
        "cross_attention_norm": False,
    }
    own: dict[str, Any] = {"video": video, "audio": None, "qk_norm_eps": 1e-5, "context_mask_penalty": 10000.0}
    if adapter is not None:
        blocks = adapter.get("blocks")
        own |= {"audio": _adapter_audio(adapter, video), "audio_blocks": None if blocks is None else tuple(blocks)}
    return TransformerConfig(**absent | _common(given) | own)


def _common(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a section states by their names, and the precision of the rotary frequencies."""
    double = given.get("frequencies_precision") == "float64"
    return {**read_fields(TransformerConfig, given), "double_precision_rope": double}


def _stream(given: Mapping[str, Any], name: str) -> StreamConfig:
    """The sizes of a stream: those of the published models where the section does not say. Its text is as wide."""
    prefix, published = STREAM_PREFIXES[name], PUBLISHED_STREAMS[name]
    stream = replace(published, **read_fields(StreamConfig, given, prefix, **STREAM_KEYS))
    if (width := given.get(f"{prefix}cross_attention_dim", published.width)) != stream.width:
        found = f"{prefix}cross_attention_dim is {width}"
        raise ConfigError(f"transformer config {found}, expected the stream's width, {stream.width}")
    return stream


def _adapter_audio(adapter: Mapping[str, Any], video: StreamConfig) -> StreamConfig:
    """The audio stream of an adapter: as many heads as the video has."""
    _require(adapter, "attention_head_dim")
    seconds = adapter.get("positional_embedding_max_pos", video.max_pos[0])
    given = {**adapter, "num_attention_heads": video.heads, "positional_embedding_max_pos": [seconds]}
    return replace(PUBLISHED_STREAMS["audio"], **read_fields(StreamConfig, given, **STREAM_KEYS))


def _require(given: Mapping[str, Any], key: str) -> Any:
    if given.get(key) is None:
        raise ConfigError(f"transformer config has no {key!r}, expected a number")
    return given[key]


def _check_constants(given: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
    for key, expected in constants.items():
        if key not in given:
            raise ConfigError(f"transformer config has no {key!r}, expected {expected!r}")
        if given[key] != expected:
            raise ConfigError(f"transformer config {key} is {given[key]!r}, expected {expected!r}")
