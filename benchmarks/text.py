"""Prompts: only their valid tokens go through the language model; contexts seen before come from a cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import COMPARISON, Options, Table, alternate, comparison

PADDED = 1024


@dataclass(frozen=True)
class Prompt:
    name: str
    tokens: int


PROMPTS = (Prompt("empty negative prompt", 2), Prompt("a sentence", 24), Prompt("a paragraph", 200))


def language_model(options: Options) -> Any:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    width, layers = (64, 2) if options.quick else (512, 6)
    config = Gemma3TextConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=width // 8,
    )
    torch.manual_seed(0)
    return Gemma3TextModel(config).eval().to(options.device)


def run(options: Options) -> list[Table]:
    model = language_model(options)
    table = Table(f"Backbone on {PADDED} padded tokens (plain) and on valid tokens (improved)", COMPARISON)
    for prompt in PROMPTS:
        ids = torch.randint(3, 1000, (1, prompt.tokens), device=options.device, generator=None)
        padded = torch.nn.functional.pad(ids, (PADDED - prompt.tokens, 0))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (PADDED - prompt.tokens, 0))

        def plain(padded: Any = padded, mask: Any = mask, tokens: int = prompt.tokens) -> Any:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            hidden = model(padded, attention_mask=mask, position_ids=positions).last_hidden_state
            return hidden[:, -tokens:]

        def improved(ids: Any = ids) -> Any:
            return model(ids).last_hidden_state

        timing = alternate({"plain": plain, "improved": improved}, options)
        table.rows.append(comparison(f"{prompt.name}, {prompt.tokens} tokens", timing))
    return [table, cached(options)]


def cached(options: Options) -> Table:
    """The ledger's cache, on the random checkpoint of the tests."""
    from tests.golden.case import TINY_CHECKPOINT

    from ltx_pipelines.running.model_files import find_model
    from ltx_pipelines.utils.model_ledger import ModelLedger

    table = Table("Contexts of a prompt and of the empty negative prompt", ("call", "seconds"))
    ledger = ModelLedger(find_model(str(TINY_CHECKPOINT)).files, torch.float32, "cpu", "resident")
    for name in ("first (loads the language model)", "again"):
        start = time.perf_counter()
        ledger.texts.contexts(["a bell rings", ""])
        table.rows.append([name, f"{time.perf_counter() - start:.5f}"])
    return table
