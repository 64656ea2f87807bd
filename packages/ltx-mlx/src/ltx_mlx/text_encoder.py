"""Prompts to what the transformer reads, with MLX language models and the shared tokenizers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import torch

from ltx_core.errors import ConfigError, as_checkpoint_error
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.metadata import check_gemma_source, parse_metadata
from ltx_core.loader.weights import ComponentWeights
from ltx_core.text_encoders.gemma.assets import GemmaAssets, embeddings_parts
from ltx_core.text_encoders.gemma.config import GemmaConfig
from ltx_core.text_encoders.gemma.tokenizer import MAX_LENGTH, GemmaTokenizer, TokenBatch
from ltx_mlx.arrays import to_torch
from ltx_mlx.embeddings import EmbeddingsProcessor
from ltx_mlx.gemma import GemmaBackbone
from ltx_mlx.t5 import T5Encoder
from ltx_mlx.weights import Loader, fill

if TYPE_CHECKING:
    from transformers import T5Config

    from ltx_core.text_encoders.gemma.embeddings import AVGemmaEncoderOutput
    from ltx_core.text_encoders.t5 import T5EncoderOutput


class GemmaTextEncoder:
    """Tokenizer, language model, feature extractor and connectors."""

    def __init__(self, tokenizer: GemmaTokenizer, backbone: GemmaBackbone, processor: EmbeddingsProcessor) -> None:
        self.tokenizer, self.backbone, self.processor = tokenizer, backbone, processor

    def __call__(self, prompts: str | Sequence[str], dtype: torch.dtype | None = None) -> AVGemmaEncoderOutput:
        """Contexts of both streams, one row per prompt, in ``dtype`` if given."""
        from ltx_core.text_encoders.gemma.embeddings import AVGemmaEncoderOutput

        if not prompts and not isinstance(prompts, str):
            raise ConfigError("text encoder got no prompt, expected at least one")
        tokens = self.tokenizer(prompts)
        video, audio = self.processor(*self.features(tokens), tokens.attention_mask)
        if audio is None:
            raise ConfigError("text encoder has no audio connector, expected one")
        video_context, audio_context = to_torch(video), to_torch(audio)
        if dtype is not None:
            video_context, audio_context = video_context.to(dtype), audio_context.to(dtype)
        return AVGemmaEncoderOutput(video_context, audio_context, torch.ones_like(tokens.attention_mask))

    def features(self, tokens: TokenBatch) -> tuple[mx.array, mx.array | None]:
        """Features ``[B, T, C]`` before the connectors, in the left-padded layout."""
        extractor, states = self.processor.feature_extractor, []
        lengths = tokens.attention_mask.sum(1).tolist()

        def visit(state: mx.array) -> None:
            states.append(extractor.normalize(state, lengths))
            mx.eval(states[-1])

        self.backbone(tokens, visit)
        mx.clear_cache()
        return extractor(states, tokens.attention_mask)


def load_gemma(
    gemma: str | os.PathLike[str],
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.bfloat16,
    max_length: int = MAX_LENGTH,
) -> GemmaTextEncoder:
    """The text encoder of a checkpoint; ``gemma`` is a Hugging Face folder or the packed file of a split pack.

    Raises ``CheckpointError`` when files are missing, do not fit, or belong to another model.
    """
    assets = GemmaAssets.open(gemma)
    processor, loader = _prepare(assets, checkpoint, dtype)
    loader.fill(processor)
    tokenizer = GemmaTokenizer(assets.tokenizer_json, assets.side_car("tokenizer_config.json"), max_length)
    return GemmaTextEncoder(tokenizer, load_backbone(assets, dtype), processor)


def check_gemma(gemma: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Raises ``CheckpointError`` as ``load_gemma`` would; reads headers only."""
    assets = GemmaAssets.open(gemma)
    _prepare(assets, checkpoint, None)
    with as_checkpoint_error(f"{assets.path} describes no language model to encode with"):
        backbone = GemmaBackbone(GemmaConfig.from_json(assets.config))
    Loader.of(backbone, ComponentWeights(f"a {assets.model_type} decoder", assets.language_model()))
    GemmaTokenizer(assets.tokenizer_json, assets.side_car("tokenizer_config.json"))


def _prepare(
    assets: GemmaAssets, checkpoint: Checkpoint, dtype: torch.dtype | None
) -> tuple[EmbeddingsProcessor, Loader]:
    """Layers between the language model and the transformer, without data, and what fills them."""
    check_gemma_source(parse_metadata(checkpoint.metadata), checkpoint.model_version, assets.config)
    config, sources = embeddings_parts(assets, checkpoint)
    processor = EmbeddingsProcessor(config)
    return processor, Loader.of(processor, ComponentWeights("embeddings", sources, dtype))


def load_backbone(assets: GemmaAssets, dtype: torch.dtype = torch.bfloat16) -> GemmaBackbone:
    """The language model alone."""
    sources = assets.language_model()
    return fill(
        GemmaBackbone(GemmaConfig.from_json(assets.config)),
        ((name, source.read().to(dtype)) for name, source in sources.items()),
        where=str(assets.path),
    )


class T5TextEncoder:
    """Prompts to embeddings with their padding mask: a SentencePiece tokenizer of ``transformers`` and the encoder."""

    def __init__(self, tokenizer: Any, encoder: T5Encoder, max_tokens: int) -> None:
        self.tokenizer, self.encoder, self.max_tokens = tokenizer, encoder, max_tokens

    def __call__(self, prompts: str | Sequence[str], dtype: torch.dtype | None = None) -> T5EncoderOutput:
        """``max_tokens`` tokens per prompt, the last of them EOS; a longer prompt keeps its head, with a warning."""
        from ltx_core.text_encoders.t5 import T5EncoderOutput, tokenize

        tokens = tokenize(self.tokenizer, prompts, self.max_tokens)
        embeddings = self.encoder(tokens.input_ids, tokens.attention_mask)
        return T5EncoderOutput(embeddings if dtype is None else embeddings.to(dtype), tokens.attention_mask)


def load_t5(folder: str | os.PathLike[str], dtype: torch.dtype = torch.bfloat16) -> T5TextEncoder:
    """The encoder of a folder with ``text_encoder/`` and ``tokenizer/``; ``CheckpointError`` names what is missing."""
    from ltx_core.text_encoders.t5 import MAX_TOKENS, open_t5

    config, tokenizer, files = open_t5(folder)
    return T5TextEncoder(tokenizer, load_t5_encoder(config, files, dtype), MAX_TOKENS)


def load_t5_encoder(config: T5Config, files: Sequence[Path], dtype: torch.dtype = torch.bfloat16) -> T5Encoder:
    """The encoder with the weights of these safetensors files."""
    from ltx_core.text_encoders.t5 import t5_sources

    tensors = ((name, file.read(name).to(dtype)) for name, file in t5_sources(files).items())
    return fill(T5Encoder(config), tensors, where=", ".join(map(str, files)))
