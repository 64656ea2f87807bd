"""A small Gemma 3 language model with a tokenizer of its own, learned from the captions of a data set.

It is written as one packed file (weights, config, tokenizer) while it is trained, and unpacked into the folder that
`transformers` reads: ``config.json``, ``tokenizer.json``, ``tokenizer_config.json``, ``model.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.loader.safetensors_file import save_checkpoint
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_trainer.draws import Draws
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.task import PretrainTask, holding, prefixed

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3, as in Gemma
TOKENIZER_CONFIG = {
    "tokenizer_class": "GemmaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 64,
}
LANGUAGE_MODEL = "language_model."


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """The text of a ``tokenizer.json``: byte-level pairs over lower-case words, one BOS in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )
    return tokenizer.to_str()


class CaptionModel(nn.Module):
    """A Gemma 3 decoder and its loss; the head is the embedding table."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        super().__init__()
        self.language_model = Gemma3ForCausalLM(Gemma3TextConfig(**config))

    def forward(self, batch: Mapping[str, Tensor], draws: Draws | None) -> dict[str, Tensor]:
        """``batch["input_ids"]`` ``[B, T]``, padded on the right with 0, to the loss per token in nats."""
        ids = batch["input_ids"].to(self.language_model.device)
        logits = self.language_model(input_ids=ids, attention_mask=(ids != 0).long(), use_cache=False).logits
        targets = ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100)
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=-100)
        return {"loss": loss}


class GemmaTask(PretrainTask):
    """Train a `CaptionModel` on token rows; ``held_out`` are such rows ``[B, T]``."""

    name = "gemma"
    module: CaptionModel

    def __init__(
        self, text_config: Mapping[str, Any], tokenizer_json: str, examples: Examples, held_out: Tensor | None = None
    ) -> None:
        super().__init__(CaptionModel(text_config), examples)
        self.text_config, self.tokenizer_json, self.held_out = dict(text_config), tokenizer_json, held_out

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        if self.held_out is None:
            return {}
        return {"held_out_loss": float(self.module({"input_ids": self.held_out}, None)["loss"])}

    def export(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        """One packed file."""
        path = folder / f"{self.name}_step_{step:05d}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": {"model_type": "gemma3_text", **self.text_config},
        }
        metadata = {"gemma_config": config, "tokenizer_config.json": TOKENIZER_CONFIG}
        with holding(self.module, weights):
            save_checkpoint(path, self.tensors(), metadata)
        return [path]

    def tensors(self) -> dict[str, Tensor]:
        body = prefixed(f"{LANGUAGE_MODEL}model.", self.module.language_model.model.state_dict())
        text = torch.frombuffer(bytearray(self.tokenizer_json.encode()), dtype=torch.uint8)
        return {**body, "tokenizer_json": text}


def unpack(packed: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> list[Path]:
    """Write a packed file as a Hugging Face folder and return its files."""
    assets = GemmaAssets.open(packed)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "config.json": json.dumps({**assets.config, "torch_dtype": str(dtype).removeprefix("torch.")}, indent=1),
        "tokenizer.json": assets.tokenizer_json.decode(),
        **assets.side_cars,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    tensors = {name: tensor.to(dtype) for name, tensor in assets.language_model_tensors().items()}
    weights = folder / "model.safetensors"
    save_checkpoint(weights, prefixed(f"{LANGUAGE_MODEL}model.", tensors), {"format": "pt"})
    return [*(folder / name for name in texts), weights]
