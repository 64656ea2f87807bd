"""Building models of ``transformers`` from tensors that are read here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError
from ltx_core.loader.weights import widen_loaded
from ltx_core.precision import Precision, computed_and_stored

LOADING_REPORT = ("missing_keys", "unexpected_keys", "mismatched_keys")


def build_pretrained(
    model_class: Any,
    config: Any,
    tensors: Mapping[str, Tensor],
    where: str,
    dtype: torch.dtype | Precision = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """``model_class(config)`` with exactly these tensors, in evaluation mode and without gradients.

    Raises ``CheckpointError`` that lists what is missing, unexpected or misshapen; ``where`` names the files in it.
    """
    computed, stored = computed_and_stored(dtype)
    with quiet_transformers():
        try:
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=stored or computed,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{where} does not fit {model_class.__name__}: {reason}") from error
    misfits = [f"{kind} {sorted(map(str, info[kind]))[:10]}" for kind in LOADING_REPORT if info.get(kind)]
    if misfits:
        raise CheckpointError(f"{where} does not fit {model_class.__name__}: {'; '.join(misfits)}")
    if stored is not None:
        widen_pretrained(model, computed)
    return model.to(device).eval().requires_grad_(False)


def widen_pretrained(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Let a model of ``transformers`` compute in ``dtype`` with its matrices as they are loaded."""
    widen_loaded(model, dtype)
    for module in model.modules():
        if isinstance(scale := getattr(module, "scalar_embed_scale", None), float):
            module.embed_scale = torch.tensor(scale, dtype=dtype)  # it had been rounded to what is stored


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars while a model is loaded."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
