"""Transformers and inputs for them: two that a CPU can run, and the published ones with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.loader import Checkpoint
from ltx_core.model.transformer.config import AUDIO_VIDEO_CONSTANTS, LTX2_CONSTANTS, TransformerConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.sampling.denoisers import GuidedDenoiser
from ltx_core.types import LatentState
from ltx_tiny.bundle import CHECKPOINT, WEIGHTS
from ltx_tiny.recipe import read_recipe

MANIFESTS = Path(__file__).resolve().parents[1] / "tests" / "manifests"
TEXT_TOKENS = 1024
TINY_TEXT_TOKENS = 64
AUDIO_TOKENS = 126  # 121 frames at 24 fps
LTX_23 = {"caption_proj_before_connector": True, "cross_attention_adaln": True, "apply_gated_attention": True}
LTX_19B = {"caption_channels": 3840}


@dataclass(frozen=True)
class Size:
    """A model and how much it is given. Weights are random unless a checkpoint is named."""

    name: str
    section: dict[str, Any]
    video_tokens: int
    audio_tokens: int = AUDIO_TOKENS
    text_tokens: int = TEXT_TOKENS
    checkpoint: Path | None = None


def tiny_config() -> dict[str, Any]:
    """The whole config of the bundled model."""
    return read_recipe()["config"]


def tiny_checkpoint() -> Path | None:
    """The bundled weights, where the package has them."""
    path = WEIGHTS / CHECKPOINT
    return path if path.is_file() else None


def tiny_size(quick: bool) -> Size:
    """The bundled model and what it is asked for by default: 49 frames of 256 x 256 at 25 a second."""
    tokens = (192, 13) if quick else (7 * 8 * 8, 49)
    weights = "random weights" if tiny_checkpoint() is None else "bundled weights"
    return Size(f"tiny, {weights}", tiny_config()["transformer"], *tokens, TINY_TEXT_TOKENS, tiny_checkpoint())


def section_of(layers: int, heads: int, head_dim: int, version: dict[str, Any]) -> dict[str, Any]:
    """A transformer whose audio stream is half as wide as its video stream."""
    return {
        **LTX2_CONSTANTS,
        **AUDIO_VIDEO_CONSTANTS,
        "_class_name": "AVTransformer3DModel",
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "cross_attention_dim": heads * head_dim,
        "in_channels": 128,
        "out_channels": 128,
        "audio_num_attention_heads": heads,
        "audio_attention_head_dim": head_dim // 2,
        "audio_cross_attention_dim": heads * head_dim // 2,
        "audio_in_channels": 128,
        "audio_out_channels": 128,
        "frequencies_precision": "float64",
        "av_ca_timestep_scale_multiplier": 1000.0,
        **version,
    }


def cpu_sizes(quick: bool, version: dict[str, Any] | None = None) -> list[Size]:
    """The tiny model (one like it for another version), and one of width 512 with six blocks at two token counts."""
    small = tiny_size(quick)
    if version is None:
        version = LTX_23
    elif version != LTX_23:
        small = replace(small, name="192 wide, 8 blocks", section=section_of(8, 4, 48, version), checkpoint=None)
    if quick:
        return [small]
    wide = section_of(6, 8, 64, version)
    return [
        small,
        Size("512 wide, 6 blocks, 1536 tokens", wide, 1536),
        Size("512 wide, 6 blocks, 4096 tokens", wide, 4096),
    ]


def thin_size() -> Size:
    """A size with as many blocks as the published models have, on streams so thin that a CPU runs them."""
    return Size("128 wide, 48 blocks, 768 tokens", section_of(48, 4, 32, LTX_23), 768)


def published(name: str) -> dict[str, Any]:
    """The config section of a published transformer: ``ltx-2-19b`` or ``ltx-2.3-22b``."""
    manifest = json.loads((MANIFESTS / name / "transformer.json").read_text(encoding="utf-8"))
    return manifest["config"]["transformer"]


def model_of(size: Size, device: torch.device) -> LTXModel:
    """The network in float32."""
    if size.checkpoint is None:
        return random_model(size.section, device)
    network = Checkpoint.open(size.checkpoint).build("transformer", torch.float32, device)
    assert isinstance(network, LTXModel)
    return network


def random_model(section: dict[str, Any], device: torch.device, dtype: torch.dtype = torch.float32) -> LTXModel:
    """Weights of the usual spread, made on the device."""
    with torch.device("meta"):
        model = LTXModel(TransformerConfig.from_metadata({"transformer": section}))
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=0.02 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5, generator=generator)
    return model


def random_text(model: LTXModel, name: str, size: Size, device: torch.device, seed: int) -> Tensor:
    """``[1, S, c]``"""
    width = model.config.caption_channels or model.config.streams[name].width
    generator = torch.Generator(device).manual_seed(seed)
    dtype = next(model.parameters()).dtype
    return torch.randn(1, size.text_tokens, width, device=device, generator=generator).to(dtype)


def states_of(model: LTXModel, size: Size, device: torch.device, held: int = 0) -> dict[str, LatentState]:
    """Noise at positions in a clip; the first ``held`` video tokens are clean."""
    generator = torch.Generator(device).manual_seed(1)
    dtype = next(model.parameters()).dtype
    result = {}
    for name, tokens in (("video", size.video_tokens), ("audio", size.audio_tokens)):
        stream = model.config.streams[name]
        latent = torch.randn(1, tokens, stream.in_channels, device=device, generator=generator).to(dtype)
        starts = 5 * torch.rand(1, len(stream.max_pos), tokens, device=device, generator=generator)
        mask = torch.ones(1, tokens, 1, device=device)
        if name == "video":
            mask[:, :held] = 0
        positions = torch.stack((starts, starts + 0.3), dim=-1)
        result[name] = LatentState(latent=latent, denoise_mask=mask, positions=positions, clean_latent=latent)
    return result


def modalities_of(model: LTXModel, size: Size, device: torch.device) -> dict[str, Modality]:
    """Input of one pass: every token at one noise level."""
    return {
        name: Modality(
            latent=state.latent,
            timesteps=torch.full((1,), 0.7, device=device),
            positions=state.positions,
            context=random_text(model, name, size, device, 5),
        )
        for name, state in states_of(model, size, device).items()
    }


def guided_denoiser(model: LTXModel, size: Size, device: torch.device, stg_block: int, **params: Any) -> GuidedDenoiser:
    """All four passes: text, negative text, self-attention skipped in one block, modalities apart."""
    settings = {"cfg_scale": 3.0, "stg_scale": 1.0, "stg_blocks": [stg_block], "modality_scale": 3.0, **params}
    contexts = {name: random_text(model, name, size, device, 5) for name in ("video", "audio")}
    against = {name: random_text(model, name, size, device, 6) for name in ("video", "audio")}
    guiders = {name: MultiModalGuider(MultiModalGuiderParams(**settings), against[name]) for name in contexts}
    return GuidedDenoiser(contexts, guiders)
