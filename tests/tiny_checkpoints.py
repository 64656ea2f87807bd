"""Tiny random checkpoints for the loader's tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.model.transformer.audio_adapter import add_audio
from ltx_core.model.transformer.config import TransformerConfig, is_adapter_tensor
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.upsampler.model import LatentUpsampler

TRANSFORMER: dict[str, Any] = {
    "_class_name": "AVTransformer3DModel",
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "cross_attention_dim": 16,
    "audio_cross_attention_dim": 8,
    "in_channels": 6,
    "out_channels": 6,
    "audio_in_channels": 5,
    "audio_out_channels": 5,
    "caption_proj_before_connector": True,
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "num_embeds_ada_norm": 1000,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": False,
    "use_linear_projection": False,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
    "frequencies_precision": "float64",
    "av_ca_timestep_scale_multiplier": 1000.0,
}
UPSAMPLER = {
    "_class_name": "LatentUpsampler",
    "in_channels": 4,
    "mid_channels": 32,
    "num_blocks_per_stage": 1,
    "dims": 2,
}
PREFIX = "model.diffusion_model."


def transformer_tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """A random transformer under its module names."""
    with torch.device("meta"):
        network = LTXModel(TransformerConfig.from_metadata({"transformer": TRANSFORMER}))
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return {name: (torch.randn(shape, generator=generator) * 0.2).to(dtype) for name, shape in shapes.items()}


def prefixed(tensors: Mapping[str, Tensor], prefix: str = PREFIX) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def metadata(config: Mapping[str, Any], **others: str) -> dict[str, str]:
    return {"config": json.dumps(config), **others}


def write_audio_adapter(path: Path, model: Path, settings: Mapping[str, Any], gate: float = 0.5) -> Path:
    """A random audio adapter for a tiny LTX-Video model, its gates open."""
    config = Checkpoint.open(model).config | {"audio_adapter": settings}
    video = Checkpoint.open(model).build("transformer", torch.float32)
    assert isinstance(video, LTXModel)
    network = add_audio(video, TransformerConfig.from_metadata(config))
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items() if is_adapter_tensor(name)}
    for name, tensor in tensors.items():
        if "scale_shift_table_a2v" in name:
            tensor[4] = gate
    save_file(prefixed(tensors, "audio_adapter."), path, metadata({"audio_adapter": settings}))
    return path


def upsampler_tensors(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return LatentUpsampler(LatentUpsamplerConfig.from_metadata(UPSAMPLER)).state_dict()


def assert_same(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    state = network.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor), name


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Modality, Modality]:
    generator = torch.Generator().manual_seed(1)

    def modality(tokens: int, channels: int, axes: int, width: int) -> Modality:
        return Modality(
            latent=torch.randn(1, tokens, channels, generator=generator).to(dtype),
            sigma=torch.tensor([0.5]),
            timesteps=torch.full((1, tokens, 1), 0.5),
            positions=torch.rand(1, axes, tokens, 2, generator=generator),
            context=torch.randn(1, 3, width, generator=generator).to(dtype),
        )

    return modality(6, 6, 3, 16), modality(4, 5, 1, 8)
