"""The denoising loop of LTX-Video: guidance on velocities, and a noise level of its own for every token.

A condition of strength s holds its tokens at the level 1 - s: they stay until the pass has come down to it, then move
with the rest. All tokens of one strength share their levels, which are computed for the whole pass beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer.modality import Modality, TimestepGroups
from ltx_core.model.transformer.model import LTXModel
from ltx_pipelines.ltx_video.noise import Noise
from ltx_pipelines.ltx_video.schedule import StepGuidance
from ltx_pipelines.ltx_video.tokens import VideoTokens

TOLERANCE = 1e-6  # between noise levels that count as equal


@dataclass(frozen=True)
class LTXVContexts:
    """Text embeddings of the prompts. The negative ones are needed where a guidance scale is above 1."""

    positive: Tensor  # [1, S, c]
    positive_mask: Tensor | None = None  # [1, S] integers, 1 = a token of the prompt
    negative: Tensor | None = None
    negative_mask: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LTXVContexts:
        """The same contexts elsewhere; masks keep their dtype."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        casted = {name: value.to(dtype) for name, value in moved.items() if name in ("positive", "negative")}
        return LTXVContexts(**(moved | casted))

    def rows(self) -> tuple[Tensor, Tensor | None]:
        """Embeddings and masks of the predictions: negative, positive, perturbed."""
        negative = torch.zeros_like(self.positive) if self.negative is None else self.negative
        embeddings = torch.cat((negative, self.positive, self.positive))
        if self.positive_mask is None:
            return embeddings, None
        mask = torch.zeros_like(self.positive_mask) if self.negative_mask is None else self.negative_mask
        return embeddings, torch.cat((mask, self.positive_mask, self.positive_mask))


@dataclass(frozen=True)
class PassSettings:
    """What a pass does at each step."""

    levels: Tensor  # [steps] float32 on the CPU, falling, without the final 0
    guidance: Sequence[StepGuidance]
    fps: float
    skip_strategy: str = "attention_values"
    stochastic: bool = False
    image_cond_noise_scale: float = 0.0


@dataclass(frozen=True)
class TokenLevels:
    """The noise level of every token before and after every step. R is the number of distinct strengths."""

    now: Tensor  # [steps, R]
    after: Tensor  # [steps, R]; equal to `now` where tokens do not move
    index: Tensor | None  # [1, N] row of each token; None: one row for all

    @classmethod
    def of(cls, levels: Tensor, strengths: Tensor | None) -> TokenLevels:
        """Tables on the device of ``strengths``, the CPU without."""
        limits, index = torch.ones(1), None
        if strengths is not None:
            limits, index = torch.unique(1 - strengths, return_inverse=True)
        limits = limits.to("cpu", torch.float32)
        now = torch.minimum(levels[:, None], limits)  # [steps, R]
        below = levels < now[..., None] - TOLERANCE  # [steps, R, steps]
        target = torch.where(below, levels, 0).amax(-1)
        moves = levels[:, None] - TOLERANCE < limits
        after = torch.where(moves, target, now)
        device = "cpu" if index is None else index.device
        return cls(now.to(device), after.to(device), index)

    def to(self, device: torch.device) -> TokenLevels:
        return TokenLevels(self.now.to(device), self.after.to(device), self.index)

    def per_token(self, table: Tensor) -> Tensor:
        """A row of a table for every token: ``[1, N or 1, 1]``."""
        return (table[None] if self.index is None else table[self.index])[..., None]

    def timesteps(self, step: int, predictions: int) -> TimestepGroups:
        """The levels of a step for a batch of predictions."""
        if self.index is None:
            return TimestepGroups.of(self.now[step].expand(predictions, 1))
        timesteps = self.now[step][self.index].expand(predictions, -1)
        return TimestepGroups(timesteps, self.now[step], self.index.expand(predictions, -1))


@torch.no_grad()
def denoise(
    model: LTXModel, start: VideoTokens, settings: PassSettings, contexts: LTXVContexts, noise: Noise
) -> Iterator[VideoTokens]:
    """Run a pass; yields the tokens after every step. ``start`` is left as it is."""
    predict = Predictor(model, start.positions(settings.fps), settings, contexts)
    levels = TokenLevels.of(settings.levels, start.strengths).to(start.tokens.device)
    renoise = settings.image_cond_noise_scale if start.strengths is not None else 0
    tokens = start.tokens
    for step in range(len(settings.levels)):
        if renoise > 0 and start.strengths is not None:
            amount = renoise * float(settings.levels[step]) ** 2
            noisy = start.tokens + amount * noise.draw("renoise", tuple(tokens.shape), tokens)
            tokens = torch.where(start.strengths[..., None] > 1 - TOLERANCE, noisy, tokens)
        velocity = predict(step, tokens, levels)  # [1, N, C] float32
        now, after = levels.per_token(levels.now[step]), levels.per_token(levels.after[step])
        if settings.stochastic:
            fresh = noise.draw("stochastic", tuple(tokens.shape), tokens)
            moved = (1 - after) * (tokens.float() - now * velocity) + after * fresh.float()
            tokens = torch.where(now > after, moved.to(tokens.dtype), tokens)
        else:
            tokens = (tokens.float() - (now - after) * velocity).to(tokens.dtype)
        yield replace(start, tokens=tokens)


class Predictor:
    """Guided velocities of one pass. What steps share is made once."""

    def __init__(self, model: LTXModel, positions: Tensor, settings: PassSettings, contexts: LTXVContexts) -> None:
        self.model, self.positions, self.settings = model, positions, settings
        self.embeddings, self.masks = contexts.rows()
        self._perturbations: dict[tuple[int, tuple[int, ...]], BatchedPerturbationConfig] = {}

    def __call__(self, step: int, tokens: Tensor, levels: TokenLevels) -> Tensor:
        guidance = self.settings.guidance[step]
        count = guidance.predictions
        rows = slice(0 if guidance.uses_negative else 1, 3 if guidance.uses_perturbed else 2)
        groups = levels.timesteps(step, count)
        video = Modality(
            latent=tokens.expand(count, -1, -1),
            timesteps=groups.timesteps,
            timestep_groups=groups,
            positions=self.positions.expand(count, -1, -1),
            context=self.embeddings[rows],
            context_mask=None if self.masks is None else self.masks[rows],
        )
        velocities, _ = self.model(video, None, self.perturbations(guidance))
        assert velocities is not None
        return guidance.combine(velocities)

    def perturbations(self, guidance: StepGuidance) -> BatchedPerturbationConfig | None:
        """Bypasses in the last prediction of a step."""
        if not guidance.uses_perturbed or not guidance.skip_blocks:
            return None
        key = (guidance.predictions, guidance.skip_blocks)
        if key not in self._perturbations:
            keep = torch.ones(self.model.num_blocks, guidance.predictions)
            inside = [block for block in guidance.skip_blocks if block < self.model.num_blocks]
            keep[inside, -1] = 0
            self._perturbations[key] = BatchedPerturbationConfig.from_skip_mask(keep, self.settings.skip_strategy)
        return self._perturbations[key]
