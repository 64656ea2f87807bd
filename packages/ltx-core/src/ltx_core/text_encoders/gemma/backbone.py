"""The language model body of Gemma: token ids to the states of every layer, for valid tokens only.

With L decoder layers there are L + 1 states: the scaled embedding, the residual stream after layers 1 to L - 1, and
the normalised residual stream after layer L.

Prompts are not padded. The valid tokens of all prompts lie in one row ``[1, n]``, each at the position it has in its
padded prompt, and a mask keeps prompts apart: token i sees token j of the same prompt iff j comes no later, in sliding
layers less than a window earlier. Padding is invisible to valid tokens in a padded batch too, so states agree.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ltx_core.errors import as_checkpoint_error
from ltx_core.loader.streaming import Hold, StreamedBlocks
from ltx_core.loader.weights import ComponentWeights, build, empty
from ltx_core.precision import Precision
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.config import GemmaConfig
from ltx_core.text_encoders.gemma.decoder import DecoderLayer, Norm, rotation
from ltx_core.text_encoders.gemma.tokenizer import TokenBatch


class GemmaBackbone(nn.Module):
    """The decoder of a language model, its states visited as they are computed."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config.layers[kind], config) for kind in config.kinds)
        self.norm = Norm(config.width, config)

    @torch.no_grad()
    def forward(self, tokens: TokenBatch, visit: Callable[[Tensor], None]) -> None:
        """Call ``visit`` with each state ``[n, D]`` as it is computed; n counts the valid tokens, row by row."""
        tokens.check_vocabulary(self.config.vocab_size)
        dtype, device = self.norm.weight.dtype, self.norm.weight.device
        valid = tokens.attention_mask.bool()
        prompts, positions = valid.nonzero(as_tuple=True)  # of each token: its prompt, its place in the padded one
        kinds = self.config.layers.items()
        tables = {kind: rotation(layer.rope, positions.to(device), dtype) for kind, layer in kinds}
        visible = {kind: _visible(prompts, positions, layer.window).to(device) for kind, layer in kinds}
        scale = torch.tensor(self.config.width**0.5, dtype=dtype)  # rounded as the states are
        ids = tokens.input_ids[valid].to(self.embed_tokens.weight.device)  # of a table that may be in host memory
        x = self.embed_tokens(ids).to(device)[None] * scale.to(device)  # [1, n, D]
        for module, kind in zip(self.layers, self.config.kinds, strict=True):
            visit(x[0])
            x = module(x, tables[kind], visible[kind])
        visit(self.norm(x)[0])

    def hidden_states(self, tokens: TokenBatch) -> list[Tensor]:
        """All states ``[n, D]``, for a projection that runs after this model has left the device."""
        states: list[Tensor] = []
        self(tokens, states.append)
        return states


def _visible(prompts: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Mask of the keys each query sees, bool ``[1, 1, n, n]``, by prompt and position of each token ``[n]``."""
    distance = positions[:, None] - positions[None]
    visible = (prompts[:, None] == prompts[None]) & (distance >= 0)
    return (visible if window is None else visible & (distance < window))[None, None]


def load_backbone(
    assets: GemmaAssets,
    dtype: torch.dtype | Precision = torch.bfloat16,
    device: torch.device | str = "cpu",
    hold: Hold | None = None,
) -> GemmaBackbone:
    """The language model alone, in evaluation mode and without gradients.

    With ``hold`` two layers are on the device at a time, the others where it says; None: all are there. Raises
    ``CheckpointError`` where the files describe no model that is built here, or the weights do not fill it exactly.
    """
    if hold is not None:
        construct, weights = _backbone(assets, dtype, "cpu")
        network = empty(construct, weights)
        StreamedBlocks(weights, "layers", (), torch.device(device)).fill(network, hold)
    else:
        network = build(*_backbone(assets, dtype, device))
    assert isinstance(network, GemmaBackbone)
    return network


def check_backbone(assets: GemmaAssets) -> None:
    """Raises ``CheckpointError`` as ``load_backbone`` would; reads headers only."""
    empty(*_backbone(assets, None, "cpu"))


def _backbone(
    assets: GemmaAssets, dtype: torch.dtype | Precision | None, device: torch.device | str
) -> tuple[Callable[[], GemmaBackbone], ComponentWeights]:
    with as_checkpoint_error(f"{assets.path} describes no language model to encode with"):
        config = GemmaConfig.from_json(assets.config)
    weights = ComponentWeights(f"a {assets.model_type} decoder", assets.language_model(), dtype, device)
    return partial(GemmaBackbone, config), weights
