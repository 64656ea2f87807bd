"""``AVGemmaTextEncoderModel`` and ``VideoGemmaTextEncoderModel``: one call from prompts to contexts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from ltx_core.errors import ConfigError
from ltx_core.loader import Checkpoint
from ltx_core.loader.metadata import check_gemma_source, parse_metadata
from ltx_core.loader.streaming import Hold
from ltx_core.loader.weights import ComponentWeights, build, empty
from ltx_core.precision import Precision
from ltx_core.text_encoders.gemma.assets import GemmaAssets, embeddings_parts
from ltx_core.text_encoders.gemma.backbone import GemmaBackbone, check_backbone, load_backbone
from ltx_core.text_encoders.gemma.embeddings import AVGemmaEncoderOutput, EmbeddingsProcessor, VideoGemmaEncoderOutput
from ltx_core.text_encoders.gemma.feature_extractor import PromptFeatures
from ltx_core.text_encoders.gemma.tokenizer import MAX_LENGTH, GemmaTokenizer

Prompts = str | Sequence[str]


class GemmaTextEncoder(nn.Module):
    """Tokenizer, language model and embeddings processor."""

    def __init__(
        self, tokenizer: GemmaTokenizer, backbone: GemmaBackbone, embeddings_processor: EmbeddingsProcessor
    ) -> None:
        super().__init__()
        if embeddings_processor.feature_extractor is None:
            raise ConfigError("embeddings processor has no feature extractor, a text encoder needs one")
        self.tokenizer = tokenizer
        self.backbone = backbone
        self.embeddings_processor = embeddings_processor

    @torch.no_grad()
    def features(self, prompts: Prompts) -> PromptFeatures:
        """Features before the connectors ``[B, T, C]`` in the left-padded layout: what training stores per caption."""
        if not prompts and not isinstance(prompts, str):
            raise ConfigError("text encoder got no prompt, expected at least one")
        extractor = self.embeddings_processor.feature_extractor
        assert extractor is not None
        tokens = self.tokenizer(prompts)
        total = extractor.start(tokens.attention_mask)
        self.backbone(tokens, total.add)
        return total.features()

    @torch.no_grad()
    def _contexts(self, prompts: Prompts, dtype: torch.dtype | None) -> AVGemmaEncoderOutput | VideoGemmaEncoderOutput:
        output = self.embeddings_processor(self.features(prompts))
        if dtype is None:
            return output
        return type(output)(*(part.to(dtype) if part.is_floating_point() else part for part in output))


class AVGemmaTextEncoderModel(GemmaTextEncoder):
    """Prompts to video and audio contexts."""

    def forward(self, prompts: Prompts, dtype: torch.dtype | None = None) -> AVGemmaEncoderOutput:
        """``(video_context, audio_context, attention_mask)``, one row per prompt; contexts in ``dtype`` if given.

        All prompts go through the language model together. Raises ``ConfigError`` when there are none.
        """
        output = self._contexts(prompts, dtype)
        assert isinstance(output, AVGemmaEncoderOutput)
        return output


class VideoGemmaTextEncoderModel(GemmaTextEncoder):
    """Prompts to video contexts."""

    def forward(self, prompts: Prompts, dtype: torch.dtype | None = None) -> VideoGemmaEncoderOutput:
        """``(video_context, attention_mask)``; as the audio-video encoder without its audio half."""
        output = self._contexts(prompts, dtype)
        assert isinstance(output, VideoGemmaEncoderOutput)
        return output


def load_text_encoder(
    gemma: str | os.PathLike[str],
    checkpoint: Checkpoint,
    dtype: torch.dtype | Precision = torch.bfloat16,
    device: torch.device | str = "cpu",
    *,
    audio: bool = True,
    max_length: int = MAX_LENGTH,
    hold: Hold | None = None,
) -> AVGemmaTextEncoderModel | VideoGemmaTextEncoderModel:
    """The text encoder of ``checkpoint``; ``gemma`` is a Hugging Face folder or the packed file of a split pack.

    Weights are held in ``dtype`` on ``device``, by default bfloat16 on the CPU. ``audio`` False builds the video-only
    encoder. ``max_length`` is the number of tokens that prompts are cut and padded to, or the tokenizer's own limit
    where that is less. ``hold`` is where the language model's layers wait, ``"host"``, ``"file"`` or shards, two of
    which are then on the device at a time; None: all of them are there. Raises ``CheckpointError`` when files are
    missing, do not fit, or the checkpoint was trained with another text encoder, and ``ConfigError`` for a
    ``max_length`` below 1 and for a checkpoint without sound unless ``audio`` is False.
    """
    assets = _assets(gemma, checkpoint)
    processor = load_embeddings_processor(assets, checkpoint, dtype, device, audio=audio)
    tokenizer = load_tokenizer(assets, max_length)
    kind = AVGemmaTextEncoderModel if audio else VideoGemmaTextEncoderModel
    return kind(tokenizer, load_backbone(assets, dtype, device, hold), processor).eval()


def check_text_encoder(gemma: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Raises ``CheckpointError`` as ``load_text_encoder`` would; reads headers only."""
    assets = _assets(gemma, checkpoint)
    config, sources = embeddings_parts(assets, checkpoint)
    empty(partial(EmbeddingsProcessor, config), ComponentWeights("embeddings", sources))
    check_backbone(assets)
    load_tokenizer(assets)


def _assets(gemma: str | os.PathLike[str], checkpoint: Checkpoint) -> GemmaAssets:
    assets = GemmaAssets.open(gemma)
    check_gemma_source(parse_metadata(checkpoint.metadata), checkpoint.model_version, assets.config)
    return assets


def load_tokenizer(assets: GemmaAssets, max_length: int = MAX_LENGTH) -> GemmaTokenizer:
    """The tokenizer that lies with the weights."""
    return GemmaTokenizer(assets.tokenizer_json, assets.side_car("tokenizer_config.json"), max_length)


def load_embeddings_processor(
    assets: GemmaAssets,
    checkpoint: Checkpoint,
    dtype: torch.dtype | Precision | None = None,
    device: torch.device | str = "cpu",
    *,
    audio: bool = True,
) -> EmbeddingsProcessor:
    """Feature extractor and connectors for this language model, from the checkpoint and, if packed, its own file."""
    config, sources = embeddings_parts(assets, checkpoint, audio=audio)
    weights = ComponentWeights("embeddings", sources, dtype, device)
    network = build(partial(EmbeddingsProcessor, config), weights)
    assert isinstance(network, EmbeddingsProcessor)
    return network
