"""Small random transformers with both streams."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from ltx_core.model.transformer.config import AUDIO_VIDEO_CONSTANTS, LTX2_CONSTANTS, TransformerConfig
from ltx_core.model.transformer.model import LTXModel

Model = TypeVar("Model", bound=LTXModel)
V23 = {"caption_proj_before_connector": True, "cross_attention_adaln": True, "apply_gated_attention": True}
SECTION: dict[str, Any] = {
    **LTX2_CONSTANTS,
    **AUDIO_VIDEO_CONSTANTS,
    "_class_name": "AVTransformer3DModel",
    "num_layers": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "in_channels": 6,
    "out_channels": 6,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "audio_in_channels": 5,
    "audio_out_channels": 5,
    "frequencies_precision": "float64",
    "av_ca_timestep_scale_multiplier": 1000.0,
    **V23,
}


def random_transformer(kind: type[Model], std: float = 0.2) -> Model:
    """Of the 2.3 style, with weights large enough that every branch moves the result."""
    torch.manual_seed(0)
    network = kind(TransformerConfig.from_metadata({"transformer": SECTION})).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=std)
    return network
