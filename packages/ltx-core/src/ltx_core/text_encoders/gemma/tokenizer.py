"""Prompts to token ids: the head of each prompt behind one BOS, padded on the left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import CheckpointError, check_least

MAX_LENGTH = 1024  # tokens per prompt in every LTX-2 pipeline


@dataclass(frozen=True)
class TokenBatch:
    """One row per prompt."""

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64; 1 = token of the prompt, 0 = padding

    def check_vocabulary(self, size: int) -> None:
        """Raises ``CheckpointError`` for a token of a prompt that a model of ``size`` tokens lacks."""
        largest = int((self.input_ids * self.attention_mask).max())
        if largest >= size:
            raise CheckpointError(f"tokenizer.json gives a prompt token {largest}, expected below {size} of the model")


def prompt_length(config: Mapping[str, Any], max_length: int = MAX_LENGTH) -> int:
    """Tokens that prompts are padded to: ``max_length``, or the ``model_max_length`` of the config where that is less.

    Raises ``CheckpointError`` for one without room.
    """
    own_limit = config.get("model_max_length")  # published Gemmas hold 10^30, for none
    if not isinstance(own_limit, int | float) or own_limit >= max_length:
        return max_length
    if own_limit < 1:
        raise CheckpointError(f"tokenizer has model_max_length {own_limit}, expected at least 1")
    return int(own_limit)


class GemmaTokenizer:
    """The tokenizer of a Gemma model, from the text of ``tokenizer.json`` and the parsed ``tokenizer_config.json``.

    Prompts are padded to ``max_length``, or to the config's ``model_max_length`` where that is less. Neither a chat
    template nor an end token is added. Raises ``CheckpointError`` where the files do not describe a tokenizer with a
    BOS token and room for it.
    """

    def __init__(self, tokenizer_json: bytes | str, config: Mapping[str, Any], max_length: int = MAX_LENGTH) -> None:
        from tokenizers import Tokenizer

        check_least("max_length", max_length, 1)
        try:
            text = tokenizer_json.decode() if isinstance(tokenizer_json, bytes) else tokenizer_json
            self.tokenizer = Tokenizer.from_str(text)
        except Exception as error:
            raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
        bos = self._special_id(config, "bos_token")
        if bos is None:
            raise CheckpointError(f"tokenizer has bos_token {config.get('bos_token')!r}, expected one of its tokens")
        pad = self._special_id(config, "pad_token")
        pad = self._special_id(config, "eos_token") if pad is None else pad
        if pad is None:
            raise CheckpointError("tokenizer has neither a pad_token nor an eos_token, expected one to pad with")
        self.max_length = prompt_length(config, max_length)
        self.bos_id, self.pad_id = bos, pad
        self.tokenizer.no_padding()

    def __call__(self, prompts: str | Sequence[str], max_length: int | None = None) -> TokenBatch:
        """Tokens ``[B, max_length]`` on the CPU; of a prompt that is too long the head is kept."""
        length = self.max_length if max_length is None else max_length
        self.tokenizer.enable_truncation(length)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = [self._encode(text.strip(), length) for text in texts]
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, length - len(row) :] = torch.tensor(row)
            mask[index, length - len(row) :] = 1
        return TokenBatch(ids, mask)

    def count(self, prompt: str) -> int:
        """The tokens of a prompt before anything is cut, its BOS among them."""
        self.tokenizer.no_truncation()
        ids = self._ids(prompt.strip())
        return len(ids) + (ids[:1] != [self.bos_id])

    def _ids(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.tokenizer.encode(text).ids
            return ids
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of a table that its own rules do not fit
                raise
            raise CheckpointError(f"tokenizer.json contradicts itself: {error}") from error

    def _encode(self, text: str, length: int) -> list[int]:
        ids = self._ids(text)
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids][:length]

    def _special_id(self, config: Mapping[str, Any], name: str) -> int | None:
        token = config.get(name)
        token = token.get("content") if isinstance(token, Mapping) else token
        return self.tokenizer.token_to_id(token) if isinstance(token, str) else None
