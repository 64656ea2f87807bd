"""Tiny random text encoders: Gemma folders and packed files, the projections and connectors that go with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ltx_core.text_encoders.gemma.config import EmbeddingsConfig
from ltx_core.text_encoders.gemma.embeddings import EmbeddingsProcessor

WORDS = (
    "a red boat drifts past the harbour wall while two children run along wet beach and gulls cry rain taps on tin roof"
)
WINDOW = 4  # of sliding attention: shorter than the prompts of the tests
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "vocab_size": 64,
}
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        **TEXT,
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 12,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window_pattern": 3,
    },
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 8, "num_attention_heads": 2},
}
GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_unified",
    "gemma_version": "tiny-v1",
    "text_config": {
        **TEXT,
        "model_type": "gemma4_unified_text",
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
    },
}
CONFIGS: dict[str, dict[str, Any]] = {"gemma3": GEMMA3, "gemma4_unified": GEMMA4}
PREFIXES = {"gemma3": "language_model.model.", "gemma4_unified": "model.language_model."}
TOKENIZER_CONFIG = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}

PER_PROMPT = {"transformer": {"connector_num_attention_heads": 2, "connector_attention_head_dim": 8}}
PER_TOKEN = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "connector_num_attention_heads": 2,
        "connector_attention_head_dim": 12,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": 4,
        "connector_apply_gated_attention": True,
        "connector_positional_embedding_max_pos": [4096],
        "frequencies_precision": "float64",
        "caption_proj_before_connector": True,
        "caption_projection_first_linear": False,
        "caption_projection_second_linear": False,
        "caption_proj_input_norm": False,
    }
}
FILE_PREFIXES = {
    "feature_extractor.": "text_embedding_projection.",
    "video_connector.": "model.diffusion_model.video_embeddings_connector.",
    "audio_connector.": "model.diffusion_model.audio_embeddings_connector.",
}


def tokenizer_json(with_bos: bool = True) -> str:
    """A word tokenizer; ``with_bos`` as in Gemma 3, without as in Gemma 4."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {
        word: index for index, word in enumerate(dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", *WORDS.split()]))
    }
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer.to_str()


def language_model(family: str, seed: int = 0) -> Any:
    """A random language model of ``transformers`` with weights large enough that mistakes show."""
    import transformers

    options = {name: value for name, value in CONFIGS[family].items() if name != "model_type"}
    config = transformers.AutoConfig.for_model(family, **options).get_text_config()
    torch.manual_seed(seed)
    model = transformers.MODEL_MAPPING[type(config)](config).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("scalar") else torch.randn_like(tensor) * 0.3)
    return model


def write_gemma(folder: Path, family: str = "gemma3") -> Path:
    """A Hugging Face folder."""
    folder.mkdir(parents=True)
    tensors = {PREFIXES[family] + name: tensor for name, tensor in language_model(family).state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
    (folder / "tokenizer.json").write_text(tokenizer_json(with_bos=family == "gemma3"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return folder


def write_t5(folder: Path, width: int) -> None:
    """A T5 encoder of LTX-Video in the folder of its published layout, whose tokens are words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": width, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).save_pretrained(folder / "text_encoder")
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(("<pad>", "</s>", "<unk>", *WORDS.split())))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")


def embeddings_tensors(config: dict[str, Any], seed: int = 1) -> dict[str, Tensor]:
    """Projections and connectors under their published names."""
    torch.manual_seed(seed)
    state = EmbeddingsProcessor(EmbeddingsConfig.from_metadata(config, TEXT)).state_dict()
    return {FILE_PREFIXES[name.split(".")[0] + "."] + name.split(".", 1)[1]: state[name] for name in state}


def write_checkpoint(path: Path, config: dict[str, Any], **metadata: Any) -> Path:
    """A single file with projections and connectors."""
    strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    save_file(embeddings_tensors(config), path, {"config": json.dumps(config), **strings})
    return path


def write_split_pack(folder: Path) -> tuple[Path, Path]:
    """(transformer file, packed text-encoder file) of a split pack."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = embeddings_tensors(PER_TOKEN)
    connectors = {name: tensor for name, tensor in tensors.items() if name.startswith("model.diffusion_model.")}
    source = {"gemma_version": GEMMA4["gemma_version"]}
    header = {
        "config": json.dumps(PER_TOKEN),
        "model_version": "2.5.0",
        "gemma_source_checkpoint": json.dumps(source),
    }
    save_file(connectors, folder / "transformer.safetensors", header)
    packed = {f"model.{name}": tensor for name, tensor in language_model("gemma4_unified").state_dict().items()}
    packed |= {name: tensor for name, tensor in tensors.items() if name not in connectors}
    packed["tokenizer_json"] = _as_tensor(tokenizer_json(with_bos=False))
    packed["hf_asset__tokenizer_config.json"] = _as_tensor(json.dumps(TOKENIZER_CONFIG))
    save_file(packed, folder / "text_encoder.safetensors", {"format": "pt", "gemma_config": json.dumps(GEMMA4)})
    return folder / "transformer.safetensors", folder / "text_encoder.safetensors"


def _as_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
