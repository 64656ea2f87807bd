"""The T5 encoder of LTX-Video 0.9.x: prompts to embeddings ``[B, T, d_model]`` with their padding mask.

The network is ``T5EncoderModel`` of ``transformers``. Tensors, with D = d_model and I = num_heads * d_kv, and no bias::

    shared [vocab_size, D]    encoder.final_layer_norm [D]
    encoder.block.N.layer.0.SelfAttention.{q, k, v} [I, D], .o [D, I]    .layer.0.layer_norm [D]
    encoder.block.0.layer.0.SelfAttention.relative_attention_bias [buckets, heads]   (used by every block)
    encoder.block.N.layer.1.DenseReluDense.{wi_0, wi_1} [d_ff, D], .wo [D, d_ff]     .layer.1.layer_norm [D]
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.precision import Precision
from ltx_core.text_encoders.gemma.tokenizer import TokenBatch
from ltx_core.text_encoders.pretrained import build_pretrained
from ltx_core.textfiles import read_json

if TYPE_CHECKING:
    from transformers import T5Config, T5EncoderModel

MAX_TOKENS = 256  # per prompt in the LTX-Video pipelines
PUBLISHED = "PixArt-alpha/PixArt-XL-2-1024-MS (folders text_encoder and tokenizer)"
TIED = "encoder.embed_tokens.weight"  # a second name of shared.weight that some files store


class T5EncoderOutput(NamedTuple):
    """One row per prompt, padded on the right."""

    video_context: Tensor  # [B, T, d_model]; rows of padding are not zeroed
    attention_mask: Tensor  # [B, T] int64


def tokenize(tokenizer: Any, prompts: str | Sequence[str], max_tokens: int) -> TokenBatch:
    """``max_tokens`` tokens per prompt, the last of them EOS; a longer prompt keeps its head."""
    texts = [text.strip() for text in ([prompts] if isinstance(prompts, str) else prompts)]
    tokens = tokenizer(texts, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt")
    return TokenBatch(tokens.input_ids, tokens.attention_mask)


class T5TextEncoder(nn.Module):
    """Prompts to embeddings: a SentencePiece tokenizer of ``transformers`` and the encoder."""

    def __init__(self, tokenizer: Any, encoder: T5EncoderModel, max_tokens: int = MAX_TOKENS) -> None:
        super().__init__()
        self.tokenizer, self.encoder, self.max_tokens = tokenizer, encoder, max_tokens

    @torch.no_grad()
    def forward(self, prompts: str | Sequence[str], dtype: torch.dtype | None = None) -> T5EncoderOutput:
        """``max_tokens`` tokens per prompt, the last of them EOS; a longer prompt keeps its head."""
        tokens = tokenize(self.tokenizer, prompts, self.max_tokens)
        device = self.encoder.shared.weight.device
        mask = tokens.attention_mask.to(device)
        embeddings = self.encoder(tokens.input_ids.to(device), mask).last_hidden_state
        return T5EncoderOutput(embeddings if dtype is None else embeddings.to(dtype), mask)


def load_t5(
    folder: str | os.PathLike[str],
    dtype: torch.dtype | Precision = torch.bfloat16,
    device: torch.device | str = "cpu",
    max_tokens: int = MAX_TOKENS,
) -> T5TextEncoder:
    """The encoder of a folder with ``text_encoder/`` (config and safetensors) and ``tokenizer/``.

    Raises ``CheckpointError`` that names what is missing.
    """
    config, tokenizer, files = open_t5(folder)
    return T5TextEncoder(tokenizer, load_t5_encoder(config, files, dtype, device), max_tokens)


def open_t5(folder: str | os.PathLike[str]) -> tuple[T5Config, Any, list[Path]]:
    """Config, tokenizer and weight files of a folder as ``load_t5`` takes it; ``CheckpointError`` as there."""
    from transformers import AutoTokenizer

    root = Path(folder)
    for part in ("text_encoder/config.json", "tokenizer"):
        if not (root / part).exists():
            raise CheckpointError(f"T5 folder {root} has no {part}; download {PUBLISHED}")
    try:
        config = t5_config(read_json(root / "text_encoder/config.json"))
        tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise CheckpointError(f"T5 folder {root} cannot be read: {' '.join(str(error).split())}") from error
    return config, tokenizer, sorted((root / "text_encoder").glob("*.safetensors"))


def t5_config(fields: Mapping[str, Any]) -> T5Config:
    """A Hugging Face ``config.json``; ``ConfigError`` for a feed-forward other than ``gated-gelu``."""
    from transformers import T5Config

    if (kind := fields.get("feed_forward_proj", "gated-gelu")) != "gated-gelu":
        raise ConfigError(f"T5 feed_forward_proj is {kind!r}, expected 'gated-gelu' (T5 v1.1)")
    return T5Config(**{**fields, "feed_forward_proj": kind})


def load_t5_encoder(
    config: T5Config,
    files: Sequence[Path],
    dtype: torch.dtype | Precision = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> T5EncoderModel:
    """The encoder with the weights of these safetensors files; ``CheckpointError`` where they do not fit exactly."""
    from transformers import T5EncoderModel

    tensors = {name: file.read(name) for name, file in t5_sources(files).items()}
    return build_pretrained(T5EncoderModel, config, tensors, ", ".join(map(str, files)), dtype, device)


def t5_sources(files: Sequence[Path]) -> dict[str, SafetensorsFile]:
    """The file of each tensor; ``CheckpointError`` where there is no file."""
    if not files:
        raise CheckpointError(f"T5 encoder has no safetensors file; download {PUBLISHED}")
    return {name: file for file in map(SafetensorsFile, files) for name in file.tensors if name != TIED}
