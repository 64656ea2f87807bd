"""Prompt enhancement: a chat model rewrites a short request, with or without a first frame, into a full prompt."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.precision import Precision, computed_and_stored
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.pretrained import quiet_transformers, widen_pretrained

DEFAULT_SEED = 42
IMAGE_LONG_SIDE = 896  # pixels
PAD_MULTIPLE = 8  # tokens
# Quotes, dashes and a space.
PLAIN = str.maketrans("\u2018\u2019\u2032\u201c\u201d\u2014\u2013\u2212\u00a0", "'''\"\"--- ")


@dataclass(frozen=True)
class Decoding:
    """Sampling of a rewritten prompt; ``temperature`` None is greedy."""

    max_new_tokens: int
    temperature: float | None = None
    no_repeat_ngram_size: int = 0

    def options(self) -> dict[str, Any]:
        """Arguments of ``generate``."""
        common = {"max_new_tokens": self.max_new_tokens, "no_repeat_ngram_size": self.no_repeat_ngram_size}
        if self.temperature is None:
            return {**common, "do_sample": False}
        return {**common, "do_sample": True, "temperature": self.temperature, "top_k": 50, "top_p": 1.0}


DECODING = {"gemma3": Decoding(512, temperature=0.7), "gemma4": Decoding(600, no_repeat_ngram_size=5)}


class PromptEnhancer:
    """A Gemma chat model with its processor. Build it with ``load_enhancer``."""

    def __init__(
        self, model: Any, processor: Any, chat_template: str, model_type: str, decoding: Decoding | None = None
    ) -> None:
        self.model, self.processor, self.chat_template, self.model_type = model, processor, chat_template, model_type
        self.decoding = decoding or DECODING[model_type]

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def enhance_t2v(self, prompt: str, system_prompt: str | None = None, seed: int = DEFAULT_SEED) -> str:
        """The prompt rewritten for text to video."""
        system = system_prompt or read_system_prompt(self.model_type, "t2v")
        return self.respond(self.prepare(prompt, system), seed)

    def enhance_i2v(
        self, prompt: str, image: Tensor, system_prompt: str | None = None, seed: int = DEFAULT_SEED
    ) -> str:
        """The prompt rewritten for a clip that starts with ``image``, uint8 ``[H, W, 3]`` in sRGB."""
        system = system_prompt or read_system_prompt(self.model_type, "i2v")
        return self.respond(self.prepare(prompt, system, shrink_image(image)), seed)

    def prepare(self, prompt: str, system_prompt: str, image: Tensor | None = None) -> dict[str, Tensor]:
        """Model inputs: the rendered chat, tokenised with special tokens, padded on the left to a multiple of 8."""
        content: Any = f"user prompt: {prompt}"
        if image is not None:
            content = [{"type": "image"}, {"type": "text", "text": f"User Raw Input Prompt: {prompt}."}]
        messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, chat_template=self.chat_template
        )
        if image is None:
            return pad_left(dict(self.tokenizer(text, return_tensors="pt")), self.tokenizer.pad_token_id)
        if self.processor is self.tokenizer:
            raise ConfigError(
                f"{self.model_type} enhancer was loaded without images, expected load_enhancer(images=True)"
            )
        return pad_left(dict(self.processor(text=text, images=image, return_tensors="pt")), self.tokenizer.pad_token_id)

    def respond(self, inputs: Mapping[str, Tensor], seed: int) -> str:
        """The cleaned text of what the model generates."""
        ids = self.generate(inputs, seed)
        return clean_response(self.tokenizer.decode(ids[0], skip_special_tokens=True))

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Tensor], seed: int) -> Tensor:
        """New token ids ``[1, n]``; the global random state is left as it was."""
        device = self.model.device
        moved = {name: tensor.to(device) for name, tensor in inputs.items()}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            ids = self.model.generate(**moved, **self.decoding.options())
        return ids[:, inputs["input_ids"].shape[1] :]


def read_system_prompt(model_type: str, task: str) -> str:
    """The system prompt of a family for ``t2v`` or ``i2v``: package data such as ``gemma_t2v_system_prompt.txt``."""
    family = "gemma" if model_type == "gemma3" else model_type
    file = files("ltx_core.text_encoders.gemma") / "prompts" / f"{family}_{task}_system_prompt.txt"
    return file.read_text(encoding="utf-8").rstrip("\n")


def load_enhancer(
    path: str | os.PathLike[str],
    dtype: torch.dtype | Precision = torch.bfloat16,
    device: torch.device | str = "cpu",
    *,
    images: bool = False,
    decoding: Decoding | None = None,
) -> PromptEnhancer:
    """A chat model from a Gemma 3 or Gemma 4 folder; ``images`` loads its image processor too.

    Raises ``CheckpointError`` for models that only encode and for folders without a chat template.
    """
    import transformers

    computed, stored = computed_and_stored(dtype)
    assets = GemmaAssets.open(path)
    if assets.model_type not in DECODING or assets.is_packed:
        kinds = ", ".join(DECODING)
        raise CheckpointError(f"{path} is {assets.model_type} and only encodes; enhance with a folder of {kinds}")
    folder, template = assets.weights[0].path.parent, _chat_template(assets)
    with quiet_transformers():
        try:
            if images:
                processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
            else:
                processor = transformers.AutoTokenizer.from_pretrained(folder)
            model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=stored or computed)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise CheckpointError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    # The checkpoint's own sampling settings are not used, its end tokens are.
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.generation_config.pad_token_id
    )
    if stored is not None:
        widen_pretrained(model, computed)
    model = model.to(device).eval().requires_grad_(False)
    return PromptEnhancer(model, processor, template, assets.model_type, decoding)


def _chat_template(assets: GemmaAssets) -> str:
    if "chat_template.jinja" in assets.side_cars:
        return assets.side_cars["chat_template.jinja"]
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = assets.side_car(name).get("chat_template") if name in assets.side_cars else None
        if isinstance(template, str):
            return template
    raise CheckpointError(f"{assets.path} has no chat template and writes no prompts; name an instruction-tuned Gemma")


def pad_left(inputs: Mapping[str, Tensor], pad_id: int) -> dict[str, Tensor]:
    """Every sequence input ``[1, T]`` with padding in front, up to a multiple of 8."""
    missing = -inputs["input_ids"].shape[1] % PAD_MULTIPLE
    values = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
    return {
        name: F.pad(tensor, (missing, 0), value=values[name]) if name in values else tensor
        for name, tensor in inputs.items()
    }


def shrink_image(image: Tensor, long_side: int = IMAGE_LONG_SIDE) -> Tensor:
    """An image uint8 ``[H, W, 3]`` whose long side is ``long_side``; the short side is rounded down.

    Scaled bilinearly to cover that size, then cropped at the centre.
    """
    height, width = image.shape[:2]
    target = [int(side * long_side / max(height, width)) for side in (height, width)]
    scale = max(target[0] / height, target[1] / width)
    cover = (math.ceil(height * scale), math.ceil(width * scale))
    pixels = F.interpolate(image.permute(2, 0, 1)[None], size=cover, mode="bilinear", align_corners=False)
    top, left = (cover[0] - target[0]) // 2, (cover[1] - target[1]) // 2
    return pixels[0, :, top : top + target[0], left : left + target[1]].permute(1, 2, 0).contiguous()


def clean_response(text: str) -> str:
    """Typographic quotes, dashes and spaces made plain, and everything before the first letter dropped.

    A text without a letter is kept whole.
    """
    plain = text.translate(PLAIN)
    return next((plain[index:] for index, character in enumerate(plain) if character.isalpha()), plain)
