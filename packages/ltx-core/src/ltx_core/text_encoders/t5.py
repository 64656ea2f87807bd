"""The T5 encoder of LTX-Video 0.9.x: prompts to embeddings ``[B, T, d_model]`` with their padding mask.

Tensors, with D = d_model and I = num_heads * d_kv; no layer has a bias::

    shared [vocab_size, D]    encoder.final_layer_norm [D]
    encoder.block.N.layer.0.SelfAttention.{q, k, v} [I, D], .o [D, I]    .layer.0.layer_norm [D]
    encoder.block.0.layer.0.SelfAttention.relative_attention_bias [buckets, heads]   (used by every block)
    encoder.block.N.layer.1.DenseReluDense.{wi_0, wi_1} [d_ff, D], .wo [D, d_ff]     .layer.1.layer_norm [D]
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import fill
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.loader.weights import Kind, check_fit, widen_loaded
from ltx_core.precision import Precision, computed_and_stored
from ltx_core.text_encoders.gemma.tokenizer import TokenBatch

logger = logging.getLogger(__name__)

MAX_TOKENS = 256  # per prompt in the LTX-Video pipelines
PUBLISHED = "PixArt-alpha/PixArt-XL-2-1024-MS (folders text_encoder and tokenizer)"
TIED = "encoder.embed_tokens.weight"  # a second name of shared.weight that some files store


@dataclass(frozen=True)
class T5Config:
    """The defaults are T5 v1.1 XXL."""

    d_model: int = 4096
    d_kv: int = 64
    num_heads: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    vocab_size: int = 32128
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> T5Config:
        """Read a Hugging Face ``config.json``; ``ConfigError`` for a feed-forward other than ``gated-gelu``."""
        if (kind := config.get("feed_forward_proj", "gated-gelu")) != "gated-gelu":
            raise ConfigError(f"T5 feed_forward_proj is {kind!r}, expected 'gated-gelu' (T5 v1.1)")
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})


class T5Encoder(nn.Module):
    """The encoder stack with relative positions."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings ``[B, T, d_model]`` of ids ``[B, T]``; keys with ``attention_mask`` 0 are not seen."""
        bias = self.encoder.position_bias(input_ids.shape[1])  # [1, H, T, T]
        if attention_mask is not None:
            hidden = attention_mask[:, None, None].to(bias.device) == 0
            bias = bias.masked_fill(hidden, torch.finfo(bias.dtype).min)
        return self.encoder(self.shared(input_ids), bias)


class T5Stack(nn.Module):
    """All blocks and the final norm."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.block = nn.ModuleList(T5Block(config, has_bias_table=index == 0) for index in range(config.num_layers))
        self.final_layer_norm = T5Norm(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)

    def position_bias(self, length: int) -> Tensor:
        """What is added to the scores of each query and key ``[1, H, T, T]``, from the table of the first block."""
        table: Any = self.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        positions = torch.arange(length, device=table.weight.device)
        distance = positions[None] - positions[:, None]  # key minus query
        config = self.config
        buckets = relative_buckets(
            distance, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        return table(buckets).permute(2, 0, 1)[None]


class T5Block(nn.Module):
    """Self-attention, then a gated feed-forward, each on the normalised stream."""

    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([T5AttentionLayer(config, has_bias_table), T5FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


class T5AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, has_bias_table)
        self.layer_norm = T5Norm(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class T5Attention(nn.Module):
    """Attention whose scores are not scaled."""

    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias_table:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # [B, H, T, d_kv]
        return self.o(out.transpose(1, 2).flatten(2))


class T5FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = T5GatedDense(config)
        self.layer_norm = T5Norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class T5GatedDense(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class T5Norm(nn.Module):
    """Root mean square norm in float32."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.eps = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.d_model))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        return self.weight * normed.to(self.weight.dtype)


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of each distance (key minus query): exact when near, logarithmic when far; later keys above.

    ``distance`` is of integers of any shape.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    far = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + far.to(torch.int64)).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(size < exact, size, far)


class T5EncoderOutput(NamedTuple):
    """One row per prompt, padded on the right."""

    video_context: Tensor  # [B, T, d_model]; rows of padding are not zeroed
    attention_mask: Tensor  # [B, T] int64


def tokenize(tokenizer: Any, prompts: str | Sequence[str], max_tokens: int) -> TokenBatch:
    """``max_tokens`` tokens per prompt, the last of them EOS; a longer prompt keeps its head, with a warning."""
    texts = [text.strip() for text in ([prompts] if isinstance(prompts, str) else prompts)]
    tokens = tokenizer(texts, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt")
    for text in texts:
        whole = tokenizer(text).input_ids
        if len(whole) > max_tokens:
            cut = tokenizer.decode(whole[max_tokens - 1 : -1])
            logger.warning("prompt is longer than %d tokens, ignored: %s", max_tokens, cut)
    return TokenBatch(tokens.input_ids, tokens.attention_mask)


class T5TextEncoder(nn.Module):
    """Prompts to embeddings: a SentencePiece tokenizer of ``transformers`` and the encoder."""

    def __init__(self, tokenizer: Any, encoder: T5Encoder, max_tokens: int = MAX_TOKENS) -> None:
        super().__init__()
        self.tokenizer, self.encoder, self.max_tokens = tokenizer, encoder, max_tokens

    @torch.no_grad()
    def forward(self, prompts: str | Sequence[str], dtype: torch.dtype | None = None) -> T5EncoderOutput:
        """``max_tokens`` tokens per prompt, the last of them EOS; a longer prompt keeps its head, with a warning."""
        tokens = tokenize(self.tokenizer, prompts, self.max_tokens)
        device = self.encoder.shared.weight.device
        mask = tokens.attention_mask.to(device)
        embeddings = self.encoder(tokens.input_ids.to(device), mask)
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
        config = T5Config.from_metadata(json.loads((root / "text_encoder/config.json").read_text(encoding="utf-8")))
        tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise CheckpointError(f"T5 folder {root} cannot be read: {' '.join(str(error).split())}") from error
    return config, tokenizer, sorted((root / "text_encoder").glob("*.safetensors"))


def load_t5_encoder(
    config: T5Config,
    files: Sequence[Path],
    dtype: torch.dtype | Precision = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> T5Encoder:
    """The encoder with the weights of these safetensors files; ``CheckpointError`` where they do not fit exactly."""
    sources = t5_sources(files)
    with torch.device("meta"):
        encoder = T5Encoder(config)
    expected = {name: Kind(tuple(tensor.shape), True) for name, tensor in encoder.state_dict().items()}
    given = {name: Kind(info.shape, info.dtype.is_floating_point) for name, info in _infos(sources)}
    check_fit(", ".join(map(str, files)), "T5 encoder", expected, given)
    computed, stored = computed_and_stored(dtype)
    fill(encoder, {name: file.read(name).to(device, stored or computed) for name, file in sources.items()})
    if stored is not None:
        widen_loaded(encoder, computed)
    return encoder


def t5_sources(files: Sequence[Path]) -> dict[str, SafetensorsFile]:
    """The file of each tensor; ``CheckpointError`` where there is no file."""
    if not files:
        raise CheckpointError(f"T5 encoder has no safetensors file; download {PUBLISHED}")
    return {name: file for file in map(SafetensorsFile, files) for name in file.tensors if name != TIED}


def _infos(sources: Mapping[str, SafetensorsFile]) -> list[tuple[str, Any]]:
    return [(name, file.tensors[name]) for name, file in sources.items()]
