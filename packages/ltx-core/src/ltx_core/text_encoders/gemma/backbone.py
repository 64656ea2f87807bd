"""The language model body of Gemma: token ids to the states of every layer, for valid tokens only.

With L decoder layers there are L + 1 states: the scaled embedding, the residual stream after layers 1 to L - 1, and
the normalised residual stream after layer L.

Prompts are not padded. The valid tokens of all prompts lie in one row ``[1, n]``, each at the position it has in its
padded prompt, and a mask keeps prompts apart: token i sees token j of the same prompt iff j comes no later, in sliding
layers less than a window earlier. Padding is invisible to valid tokens in a padded batch too, so states agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError
from ltx_core.loader.weights import widen_loaded
from ltx_core.precision import Precision, computed_and_stored
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.tokenizer import TokenBatch


class GemmaBackbone(nn.Module):
    """A decoder of ``transformers``, such as ``Gemma3TextModel`` or ``Gemma4UnifiedTextModel``, watched at work."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model: Any = language_model

    @property
    def text_config(self) -> Any:
        return self.language_model.config

    @torch.no_grad()
    def forward(self, tokens: TokenBatch, visit: Callable[[Tensor], None]) -> None:
        """Call ``visit`` with each state ``[n, D]`` as it is computed; n counts the valid tokens, row by row."""
        device = self.language_model.get_input_embeddings().weight.device
        packed = _pack(tokens)
        masks = {
            "full_attention": _visible(packed, None).to(device),
            "sliding_attention": _visible(packed, getattr(self.text_config, "sliding_window", None)).to(device),
        }
        with _watch(self.language_model, visit):
            output = self.language_model(
                input_ids=packed.input_ids.to(device),
                attention_mask=masks,
                position_ids=packed.positions.to(device),
                use_cache=False,
            )
        visit(output.last_hidden_state[0])

    def hidden_states(self, tokens: TokenBatch) -> list[Tensor]:
        """All states ``[n, D]``, for a projection that runs after this model has left the device."""
        states: list[Tensor] = []
        self(tokens, states.append)
        return states


@contextmanager
def _watch(model: nn.Module, visit: Callable[[Tensor], None]) -> Iterator[None]:
    """Visit what the embedding and all layers but the last one give."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        visit((output[0] if isinstance(output, tuple) else output)[0])

    watched = [model.get_submodule("embed_tokens"), *list(model.get_submodule("layers").children())[:-1]]
    handles = [module.register_forward_hook(hook) for module in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Packed:
    """The valid tokens of a batch in one row."""

    input_ids: Tensor  # [1, n]
    positions: Tensor  # [1, n], in the padded prompt
    prompts: Tensor  # [n], which prompt each belongs to


def _pack(tokens: TokenBatch) -> _Packed:
    valid = tokens.attention_mask.bool()
    prompts, positions = valid.nonzero(as_tuple=True)
    return _Packed(tokens.input_ids[valid][None], positions[None], prompts)


def _visible(packed: _Packed, window: int | None) -> Tensor:
    """Which keys each query sees, bool ``[1, 1, n, n]``."""
    distance = packed.positions[0][:, None] - packed.positions[0][None]
    visible = (packed.prompts[:, None] == packed.prompts[None]) & (distance >= 0)
    return (visible if window is None else visible & (distance < window))[None, None]


def load_backbone(
    assets: GemmaAssets, dtype: torch.dtype | Precision = torch.bfloat16, device: torch.device | str = "cpu"
) -> GemmaBackbone:
    """The language model alone, in evaluation mode and without gradients.

    Raises ``CheckpointError`` where the installed ``transformers`` does not carry the model type, or the weights do
    not fill it exactly.
    """
    computed, stored = computed_and_stored(dtype)
    text_config = transformers_config(assets).get_text_config()
    model_class = _model_class(text_config)
    with quiet_transformers():
        try:
            model, info = model_class.from_pretrained(
                None,
                config=text_config,
                state_dict=assets.language_model_tensors(),
                dtype=stored or computed,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{assets.path} does not fit {model_class.__name__}: {reason}") from error
    misfits = [f"{kind} {sorted(map(str, info[kind]))[:10]}" for kind in LOADING_REPORT if info.get(kind)]
    if misfits:
        raise CheckpointError(f"{assets.path} does not fit {model_class.__name__}: {'; '.join(misfits)}")
    if stored is not None:
        widen_language_model(model, computed)
    return GemmaBackbone(model.to(device).eval().requires_grad_(False))


def widen_language_model(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Let a model of ``transformers`` compute in ``dtype`` with its matrices as they are loaded."""
    widen_loaded(model, dtype)
    for module in model.modules():
        if isinstance(scale := getattr(module, "scalar_embed_scale", None), float):
            module.embed_scale = torch.tensor(scale, dtype=dtype)  # it had been rounded to what is stored


LOADING_REPORT = ("missing_keys", "unexpected_keys", "mismatched_keys")


def transformers_config(assets: GemmaAssets) -> Any:
    """The config object of ``transformers`` for the whole model; ``CheckpointError`` when it knows no such model."""
    import transformers

    options = {name: value for name, value in assets.config.items() if name != "model_type"}
    try:
        return transformers.AutoConfig.for_model(assets.model_type, **options)
    except ValueError as error:
        reason = f"transformers {transformers.__version__} cannot read a {assets.model_type} config"
        raise CheckpointError(f"{assets.path}: {reason}: {' '.join(str(error).split())}") from error


def _model_class(text_config: Any) -> Any:
    import transformers

    return transformers.MODEL_MAPPING[type(text_config)]


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
