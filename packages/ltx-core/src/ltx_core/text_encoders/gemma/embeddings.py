"""``EmbeddingsProcessor``: states of the language model to the contexts that the diffusion transformer attends to.

Tensors: ``feature_extractor.*``, ``video_connector.*``, ``audio_connector.*``; in files they are
``text_embedding_projection.*`` and ``model.diffusion_model.{video,audio}_embeddings_connector.*``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.text_encoders.gemma.config import EmbeddingsConfig
from ltx_core.text_encoders.gemma.connector import Embeddings1DConnector
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractor, PromptFeatures


class AVGemmaEncoderOutput(NamedTuple):
    """Contexts of the audio-video model, one row per prompt."""

    video_context: Tensor  # [B, T, Cv]
    audio_context: Tensor  # [B, T, Ca]
    attention_mask: Tensor  # [B, T] int64, all ones


class VideoGemmaEncoderOutput(NamedTuple):
    """Contexts of a video-only model, one row per prompt."""

    video_context: Tensor  # [B, T, Cv]
    attention_mask: Tensor  # [B, T] int64, all ones


class EmbeddingsProcessor(nn.Module):
    """Feature extractor and connectors.

    A config without ``features`` leaves the extractor out, one without ``audio`` the audio connector.
    """

    def __init__(self, config: EmbeddingsConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = None if config.features is None else FeatureExtractor(config.features)
        self.video_connector = Embeddings1DConnector(config.video)
        self.audio_connector = None if config.audio is None else Embeddings1DConnector(config.audio)

    def forward(self, features: PromptFeatures) -> AVGemmaEncoderOutput | VideoGemmaEncoderOutput:
        """Contexts from features with padding anywhere: valid tokens move to the front, connectors do the rest.

        Raises ``ConfigError`` when there are audio features without an audio connector or the reverse.
        """
        if (features.audio is None) != (self.audio_connector is None):
            given = "no audio features" if features.audio is None else "audio features"
            raise ConfigError(f"embeddings processor got {given}, expected what its connectors take")
        valid = features.attention_mask.to(features.video.device, torch.bool)
        order = sort_valid_first(valid)
        valid = valid.gather(1, order)
        video, _ = self.video_connector(_reorder(features.video, order), valid)
        mask = torch.ones(valid.shape, dtype=torch.int64, device=valid.device)
        if self.audio_connector is None or features.audio is None:
            return VideoGemmaEncoderOutput(video, mask)
        audio, _ = self.audio_connector(_reorder(features.audio, order), valid)
        return AVGemmaEncoderOutput(video, audio, mask)


def sort_valid_first(valid: Tensor) -> Tensor:
    """Indices ``[B, T]`` that put valid tokens first and padding last, each in their order."""
    return torch.argsort(valid.to(torch.int8), dim=1, descending=True, stable=True)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
