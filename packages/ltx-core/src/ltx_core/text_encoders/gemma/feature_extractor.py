"""Features of a prompt: a linear map of all states of the language model at each of its tokens.

Tensors, with D the language model's width and L its number of states; column ``d * L + l`` reads channel d of state l::

    aggregate_embed.weight [D, D * L]                            one map for both modalities, no bias (19B)
    {video,audio}_aggregate_embed.{weight [C, D * L], bias [C]}  a map per modality (2.3, 2.5)

Only valid tokens are computed with: states are packed ``[n, D]``, the n valid tokens of all prompts in a row. States
arrive one by one, are normalised, and wait in a buffer of bounded size until the projection takes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.text_encoders.gemma.config import FeatureExtractorConfig
from ltx_core.utils import rms_norm

EPS = 1e-6
PER_PROMPT_RANGE = 8.0  # width of the interval per-prompt normalisation maps a state to
BUFFER_BYTES = 256 * 2**20  # normalised states kept before they are projected: all 49 of up to 700 tokens in bfloat16


@dataclass(frozen=True)
class PromptFeatures:
    """Features in the layout of the tokens they come from, one row per prompt."""

    video: Tensor  # [B, T, Cv]; padding is zero or the projection's bias
    audio: Tensor | None  # [B, T, Ca]
    attention_mask: Tensor  # [B, T] int64; 1 = token of the prompt


class FeatureExtractor(nn.Module):
    """Normalises every state and projects all of them together."""

    def __init__(self, config: FeatureExtractorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size * config.num_states
        if not config.per_token:
            self.aggregate_embed = nn.Linear(width, config.hidden_size, bias=False)
            return
        self.video_aggregate_embed = nn.Linear(width, config.video_width)
        if config.audio_width is not None:
            self.audio_aggregate_embed = nn.Linear(width, config.audio_width)

    def forward(self, states: Iterable[Tensor], attention_mask: Tensor) -> PromptFeatures:
        """States ``[n, D]`` from the embedding to the last layer, n the valid tokens of ``attention_mask`` ``[B, T]``.

        Raises ``ConfigError`` when their number is not that of the config.
        """
        total = self.start(attention_mask)
        for state in states:
            total.add(state)
        return total.features()

    def start(self, attention_mask: Tensor) -> FeatureSum:
        """An empty sum over states, for a language model that hands them out as it computes them."""
        return FeatureSum(self, attention_mask)

    def normalize(self, state: Tensor, lengths: Sequence[int]) -> Tensor:
        """One state ``[n, D]`` of prompts with ``lengths`` valid tokens, in float32."""
        return rms_norm(state.float(), eps=EPS) if self.config.per_token else normalize_per_prompt(state, lengths)

    @property
    def projections(self) -> dict[str, nn.Linear]:
        """The linear maps by modality; ``both`` serves both."""
        if not self.config.per_token:
            return {"both": self.aggregate_embed}
        maps = {"video": self.video_aggregate_embed}
        return maps if self.config.audio_width is None else maps | {"audio": self.audio_aggregate_embed}


def normalize_per_prompt(state: Tensor, lengths: Sequence[int]) -> Tensor:
    """Zero mean and a range of 8 over all tokens and channels of each prompt: ``[n, D]`` to float32 ``[n, D]``."""
    rows = []
    for x in state.float().split([length for length in lengths if length]):
        low, high = x.aminmax()
        mean = x.sum() / (x.numel() + EPS)
        rows.append(PER_PROMPT_RANGE * (x - mean) / (high - low + EPS))
    return torch.cat(rows)


class FeatureSum:
    """The projection of the states seen so far.

    The layer is the fastest axis of the weights, so a slice of a few layers touches every cache line of them. All
    layers are therefore projected in one product when their buffer is small, in as few groups as it allows otherwise.
    """

    def __init__(self, extractor: FeatureExtractor, attention_mask: Tensor) -> None:
        config, weight = extractor.config, next(iter(extractor.projections.values())).weight
        self.extractor, self.mask = extractor, attention_mask
        self.lengths: list[int] = attention_mask.sum(1).tolist()
        tokens = sum(self.lengths)
        bytes_per_state = max(tokens * config.hidden_size * weight.itemsize, 1)
        group = min(max(BUFFER_BYTES // bytes_per_state, 1), config.num_states)
        self.buffer = weight.new_empty(tokens, config.hidden_size, group)  # [n, D, group]
        self.sums = {
            name: torch.zeros(tokens, linear.out_features, dtype=torch.float32, device=weight.device)
            for name, linear in extractor.projections.items()
        }
        self.seen = self.projected = 0

    def add(self, state: Tensor) -> None:
        """Take the next state ``[n, D]``."""
        if self.seen == self.extractor.config.num_states:
            raise ConfigError(f"feature extractor got more than {self.seen} states; it fits another language model")
        normalized = self.extractor.normalize(state.to(self.buffer.device), self.lengths)
        self.buffer[:, :, self.seen - self.projected] = normalized
        self.seen += 1
        if self.seen - self.projected == self.buffer.shape[2]:
            self._project()

    def features(self) -> PromptFeatures:
        """The features of all prompts, once every state has been added."""
        config = self.extractor.config
        if self.seen != config.num_states:
            raise ConfigError(f"feature extractor got {self.seen} states, expected {config.num_states}")
        self._project()
        if not config.per_token:
            features = self._unpack(self.sums["both"], None)
            return PromptFeatures(features, None if config.audio_width is None else features, self.mask)
        rows = {}
        for name, linear in self.extractor.projections.items():
            scale = math.sqrt(linear.out_features / config.hidden_size)
            rows[name] = self._unpack(self.sums[name] * scale + linear.bias, linear.bias)
        return PromptFeatures(rows["video"], rows.get("audio"), self.mask)

    def _project(self) -> None:
        count = self.seen - self.projected
        if not count:
            return
        layers = slice(self.projected, self.seen)
        x = self.buffer[:, :, :count].flatten(1)  # [n, D * count]
        for name, linear in self.extractor.projections.items():
            weight = linear.weight.unflatten(1, (-1, self.extractor.config.num_states))[:, :, layers]
            self.sums[name] += x @ weight.flatten(1).T  # [n, C]
        self.projected = self.seen

    def _unpack(self, rows: Tensor, padding: Tensor | None) -> Tensor:
        """Packed rows ``[n, C]`` to ``[B, T, C]`` in the weights' dtype."""
        valid = self.mask.to(rows.device, torch.bool)
        out = torch.zeros(*valid.shape, rows.shape[1], dtype=self.buffer.dtype, device=rows.device)
        if padding is not None:
            out += padding
        out[valid] = rows.to(out.dtype)
        return out
