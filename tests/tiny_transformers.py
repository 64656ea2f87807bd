"""Small random transformers: their config sections, and networks whose every branch moves the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ltx_core.model.transformer.config import AUDIO_VIDEO_CONSTANTS, LTX2_CONSTANTS, TransformerConfig
from ltx_core.model.transformer.model import LTXModel

Model = TypeVar("Model", bound=LTXModel)
SIZES: dict[str, Any] = {
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
}
LTX2: dict[str, Any] = {
    **LTX2_CONSTANTS,
    **AUDIO_VIDEO_CONSTANTS,
    "_class_name": "AVTransformer3DModel",
    "frequencies_precision": "float64",
    "av_ca_timestep_scale_multiplier": 1000.0,
    "num_layers": 4,
    **SIZES,
}
OF_19B = {"caption_channels": 14}
OF_23 = {"caption_proj_before_connector": True, "cross_attention_adaln": True, "apply_gated_attention": True}
V19B, V23 = LTX2 | OF_19B, LTX2 | OF_23
LTX_VIDEO: dict[str, Any] = {
    "_class_name": "Transformer3DModel",
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "in_channels": 6,
    "out_channels": 6,
    "caption_channels": 14,
}


def random_model(section: Mapping[str, Any], std: float = 0.3, kind: type[Model] = LTXModel) -> Model:
    """A network of a config section, with weights large enough that every branch moves the result."""
    torch.manual_seed(0)
    network = kind(TransformerConfig.from_metadata({"transformer": section})).eval()
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=std)
    return network.requires_grad_(False)
