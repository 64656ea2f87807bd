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
from ltx_trainer.pretrain.task import PretrainTask, add_prefix, holding

TURN, TURN_END = "<start_of_turn>", "<end_of_turn>"
IMAGE = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", TURN, TURN_END, *IMAGE.values())  # the first four as in Gemma
END_IDS = [1, SPECIAL_TOKENS.index(TURN_END)]
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "processor_class": "Gemma3Processor",
    "add_bos_token": True,
    "add_eos_token": False,
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "extra_special_tokens": IMAGE,
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
    "model_max_length": 128,
}
# What a user wrote, then what a caption of it might be. The rest of a chat is left out: it is written for large models.
CHAT_TEMPLATE = f"""\
{{%- for message in messages if message['role'] == 'user' -%}}
{TURN}
{{%- if message['content'] is string -%}}
{{{{ message['content'].split('rompt: ')[-1] }}}}
{{%- else -%}}
{{%- for part in message['content'] -%}}
{{%- if part['type'] == 'image' -%}}{IMAGE["boi_token"]}
{{%- else -%}}{{{{ part['text'].split('rompt: ')[-1] }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}
{TURN_END}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{TURN}{{%- endif -%}}
"""
IMAGE_SIDE, PATCH, IMAGE_TOKENS = 32, 8, 4  # pixels, pixels, tokens
VISION = {  # the least tower that a Gemma can have; it is not trained
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIDE,
    "patch_size": PATCH,
    "vision_use_head": False,
}
IMAGE_PROCESSOR = {
    "image_processor_type": "Gemma3ImageProcessor",
    "processor_class": "Gemma3Processor",
    "do_resize": True,
    "size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_seq_length": IMAGE_TOKENS,
}
SIDE_CARS: dict[str, Any] = {
    "tokenizer_config.json": TOKENIZER_CONFIG,
    "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": IMAGE_TOKENS},
    "preprocessor_config.json": IMAGE_PROCESSOR,
    "generation_config.json": {
        "bos_token_id": 2,
        "eos_token_id": [1, SPECIAL_TOKENS.index(TURN_END)],
        "pad_token_id": 0,
    },
    "chat_template.jinja": CHAT_TEMPLATE,
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
        metadata = {"gemma_config": full_config(self.text_config), **SIDE_CARS}
        with holding(self.module, weights):
            save_checkpoint(path, self.tensors(), metadata)
        return [path]

    def tensors(self) -> dict[str, Tensor]:
        body = add_prefix(f"{LANGUAGE_MODEL}model.", self.module.language_model.model.state_dict())
        text = torch.frombuffer(bytearray(self.tokenizer_json.encode()), dtype=torch.uint8)
        return {**body, **vision_tensors(self.text_config), "tokenizer_json": text}


def full_config(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of a Gemma 3 with a language model and a vision tower."""
    special = {name.replace("_token", "_token_index"): SPECIAL_TOKENS.index(token) for name, token in IMAGE.items()}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", **text_config},
        "vision_config": VISION,
        "mm_tokens_per_image": IMAGE_TOKENS,
        "eos_token_id": END_IDS,
        **special,
    }


def vision_tensors(text_config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A vision tower that learned nothing, under the published names: a Gemma 3 cannot be opened without one."""
    from transformers import Gemma3Config
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
    from transformers.models.siglip import SiglipVisionModel

    config = Gemma3Config(**{k: v for k, v in full_config(text_config).items() if k != "model_type"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower, projector = SiglipVisionModel(config.vision_config), Gemma3MultiModalProjector(config)
        torch.nn.init.normal_(projector.mm_input_projection_weight, std=0.02)
    tensors = add_prefix("vision_tower.", tower.state_dict())
    tensors |= add_prefix("multi_modal_projector.", projector.state_dict())
    return {name: tensor.clone() for name, tensor in tensors.items()}


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
    (file,) = assets.weights
    tensors = {name: file.read(name).to(dtype) for name in file.tensors if name != "tokenizer_json"}
    weights = folder / "model.safetensors"
    save_checkpoint(weights, tensors, {"format": "pt"})
    return [*(folder / name for name in texts), weights]
