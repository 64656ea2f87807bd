"""Transformers of other layouts: diffusers' names, and the config of files that carry none.

A file without a config shows sizes and switches in its tensors; the rest is taken as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltx_core.model.transformer.config import AUDIO_VIDEO_CONSTANTS, COMMON_CONSTANTS, LTX2_CONSTANTS, TEXT_IS_READY

#: Names the diffusers library gives to parts of the transformer. All others are the same in both.
NAMES = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
NATIVE_NAMES = {theirs: ours for ours, theirs in NAMES.items()}


def to_diffusers_name(name: str) -> str:
    """A dotted native name, without prefix, as diffusers writes it."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def from_diffusers_name(name: str) -> str:
    """A dotted diffusers name, without prefix, as the checkpoint writes it; native names stay as they are."""
    return ".".join(NATIVE_NAMES.get(part, part) for part in name.split("."))


Shapes = Mapping[str, tuple[int, ...]]

PUBLISHED_HEADS = 32  # not visible in the tensors of ungated attention
PUBLISHED: dict[str, Any] = {
    **COMMON_CONSTANTS,
    "norm_eps": 1e-6,
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000,
    "causal_temporal_positioning": True,
}
PUBLISHED_LTX2: dict[str, Any] = {
    **LTX2_CONSTANTS,
    **AUDIO_VIDEO_CONSTANTS,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "audio_positional_embedding_max_pos": [20],
    "rope_type": "split",
    "frequencies_precision": "float64",
}
HINTS = ("num_attention_heads", "audio_num_attention_heads", "norm_eps", "rope_type", "timestep_scale_multiplier")


def infer_transformer_config(shapes: Shapes, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``transformer`` section for tensors named natively, without prefix.

    ``given`` is a foreign config (diffusers); only what tensors cannot show is taken from it. Files with audio
    tensors are LTX-2, others LTX-Video.
    """
    given = given or {}
    hints = {key: given[key] for key in HINTS if key in given}
    is_ltx2 = "audio_patchify_proj.weight" in shapes
    section = {
        **PUBLISHED,
        "_class_name": "AVTransformer3DModel" if is_ltx2 else "Transformer3DModel",
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}),
        **_stream(shapes, "", hints.get("num_attention_heads", PUBLISHED_HEADS)),
    }
    if is_ltx2:
        heads = hints.get("audio_num_attention_heads", section["num_attention_heads"])
        section |= PUBLISHED_LTX2 | _stream(shapes, "audio_", heads) | _switches(shapes)
    return section | {key: value for key, value in hints.items() if not key.endswith("num_attention_heads")}


def _stream(shapes: Shapes, stream: str, heads: int) -> dict[str, Any]:
    """Widths of the video (``""``) or audio (``"audio_"``) stream."""
    block = f"transformer_blocks.0.{stream}attn"
    width, in_channels = _shape(shapes, f"{stream}patchify_proj.weight")
    heads = _shape(shapes, f"{block}1.to_gate_logits.weight", (heads, 0))[0]
    sizes = {
        f"{stream}num_attention_heads": heads,
        f"{stream}attention_head_dim": width // heads,
        f"{stream}in_channels": in_channels,
        f"{stream}out_channels": _shape(shapes, f"{stream}proj_out.weight")[0],
        f"{stream}cross_attention_dim": _shape(shapes, f"{block}2.to_k.weight")[1],
    }
    caption = shapes.get("caption_projection.linear_1.weight")
    return sizes | ({"caption_channels": caption[1]} if caption and not stream else {})


def _shape(shapes: Shapes, name: str, default: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """The shape of a matrix; a stand-in when it is missing, so that the strict check can say so."""
    shape = shapes.get(name, default)
    return (shape[0], shape[1]) if len(shape) == 2 else default


def infer_metadata(section: Mapping[str, Any]) -> dict[str, str]:
    """The metadata, besides the config, of published files whose transformer has this section."""
    if section.get("use_keyframes_abs_pos_embedding") or not section.get("ff_bias", True):
        return {"model_version": "2.5.0", "gemma_source_checkpoint": '{"gemma_version": "gemma4-12b-ltx-v1"}'}
    return {"model_version": "2.3.0"} if section.get("cross_attention_adaln") else {}


def _switches(shapes: Shapes) -> dict[str, bool]:
    """LTX-2's optional parts, on where their tensors are."""
    block = "transformer_blocks.0"
    return ({} if "caption_projection.linear_1.weight" in shapes else TEXT_IS_READY) | {
        "apply_gated_attention": f"{block}.attn1.to_gate_logits.weight" in shapes,
        "cross_attention_adaln": f"{block}.prompt_scale_shift_table" in shapes,
        "use_prompt_adaln_single": "prompt_adaln_single.linear.weight" in shapes,
        "ff_bias": f"{block}.ff.net.2.bias" in shapes,
        "audio_ff_bias": f"{block}.audio_ff.net.2.bias" in shapes,
        "use_keyframes_abs_pos_embedding": "keyframes_abs_pos_embedding" in shapes,
    }
