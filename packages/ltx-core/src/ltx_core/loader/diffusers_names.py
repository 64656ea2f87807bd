"""Names the diffusers library gives to parts of the transformer, and back. All other names are the same in both."""

from __future__ import annotations

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
