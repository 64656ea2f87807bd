"""Input of the transformer for one stream, as an immutable value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer.config import STREAMS, TransformerConfig
from ltx_core.model.transformer.masks import AttentionBias, StrengthGroups, self_attention_bias, take_rows
from ltx_core.optimizations import optimizations


@dataclass(frozen=True)
class TimestepGroups:
    """The distinct noise levels among a stream's tokens, so that modulation is computed once for each.

    Text to video has one level, image to video two. Grouping reads the tensor's values, which stalls a GPU; a sampling
    loop groups its denoise mask once and scales the groups at every step::

        groups = TimestepGroups.of(denoise_mask)
        at_step = groups.scale_by(sigma)
        Modality(timesteps=at_step.timesteps, timestep_groups=at_step, ...)
    """

    timesteps: Tensor  # [B, T, 1], [B, T], [B, 1] or [B]: the tensor that is grouped
    values: Tensor  # [R] distinct levels
    index: Tensor | None  # [B, T] row of each token; None: R = B and row b serves every token of sample b

    @classmethod
    def of(cls, timesteps: Tensor, release: Tensor | None = None) -> TimestepGroups:
        """Group ``timesteps`` by value; tokens of one group agree in ``release`` too, which has the same shape."""
        per_token = timesteps.reshape(timesteps.shape[0], -1)  # [B, 1 or T]
        if per_token.shape[1] > 1 and not optimizations().distinct_modulation:
            every = torch.arange(per_token.numel(), device=timesteps.device)
            return cls(timesteps, per_token.flatten(), every.view_as(per_token))
        keys = per_token if release is None else torch.stack((per_token, release.view_as(per_token)), dim=2)
        if per_token.shape[1] == 1 or bool((keys == keys[:, :1]).all()):
            return cls(timesteps, per_token[:, 0], None)
        if release is None:
            return cls(timesteps, *torch.unique(per_token, return_inverse=True))
        pairs, index = torch.unique(keys.flatten(0, 1), dim=0, return_inverse=True)
        return cls(timesteps, pairs[:, 0], index.view_as(per_token))

    def values_of(self, tokens: Tensor) -> Tensor:
        """``[R]``: for each level what its tokens agree in, of ``tokens`` ``[B, T, 1]``."""
        if self.index is None:
            return tokens[:, 0].flatten()
        return torch.empty_like(self.values).scatter_(0, self.index.flatten(), tokens.flatten().to(self.values.dtype))

    def scale_by(self, sigma: Tensor | float) -> TimestepGroups:
        """The groups of ``sigma * timesteps``; ``sigma`` is one number for the whole batch."""
        return TimestepGroups(self.timesteps * sigma, self.values * sigma, self.index)

    def limit_to(self, sigma: Tensor | float) -> TimestepGroups:
        """The groups of ``min(timesteps, sigma)``: tokens of LTX-Video wait at their own level for the others."""
        limit = float(sigma)
        return TimestepGroups(self.timesteps.clamp(max=limit), self.values.clamp(max=limit), self.index)

    def select(self, samples: Sequence[int]) -> TimestepGroups:
        """Some of the samples."""
        timesteps = take_rows(self.timesteps, samples)
        if self.index is None:
            return TimestepGroups(timesteps, take_rows(self.values, samples), None)
        return TimestepGroups(timesteps, self.values, take_rows(self.index, samples))


@dataclass(eq=False)
class TextMemory:
    """Projections of the texts of a batch, per module; samples with equal labels have equal texts.

    It serves one set of weights: whoever changes them starts a new one.
    """

    labels: tuple[int, ...]  # of each sample
    kept: dict[tuple[nn.Module, str, int], tuple[Tensor, ...]] = field(default_factory=dict)

    def select(self, samples: tuple[int, ...]) -> TextMemory:
        """The same memory for some of the samples."""
        return TextMemory(tuple(self.labels[sample] for sample in samples), self.kept)

    def recall(self, owner: nn.Module, name: str, make: Callable[[int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Results of ``make(sample)`` for each sample ``[1, ...]``, joined; made once per owner, name and label."""
        for sample, label in enumerate(self.labels):
            if (owner, name, label) not in self.kept:
                self.kept[owner, name, label] = make(sample)
        found = [self.kept[owner, name, label] for label in self.labels]
        return found[0] if len(found) == 1 else tuple(torch.cat(parts) for parts in zip(*found, strict=True))


@dataclass(frozen=True, kw_only=True)
class Modality:
    """Noisy tokens of one stream and what conditions them.

    ``latent`` ``[B, T, C]`` are the patchified noisy tokens; their dtype is the working dtype of the forward.
    ``timesteps`` are float32 noise levels in [0, 1], per token ``[B, T]`` or ``[B, T, 1]``, or per sample ``[B]`` or
    ``[B, 1]``; other shapes with as many elements are read as ``[B, -1]``. ``sigma`` ``[B]`` float32 is the sample's
    noise level; None: its largest timestep. ``positions`` are float32 bounds in seconds (and pixels)
    ``[B, axes, T, 2]``, for LTX-Video starts ``[B, axes, T]``. ``context`` ``[B, S, c]`` are the text features, and
    ``context_mask`` ``[B, S]`` holds integers, 1 to keep a token of it, or an additive float bias; None: all are kept.

    With ``enabled`` False tokens stay as they are, and the other stream still attends to them. ``attention_mask``
    ``[B, Tq, Tk]`` holds self-attention strengths in [0, 1], where ``[B, 1, T]`` broadcasts; None: all ones.
    ``keyframes_mask`` ``[B, T, 1]`` is above 0 where a token encodes one single pixel frame; None: nowhere.

    The rest saves work: ``timestep_groups`` and ``strength_groups`` count only while they
    describe this very ``timesteps`` and ``attention_mask`` tensor; ``text_memory`` keeps what was made of ``context``,
    where text is the same at every step.
    """

    latent: Tensor
    timesteps: Tensor
    positions: Tensor
    context: Tensor
    sigma: Tensor | None = None
    enabled: bool = True
    context_mask: Tensor | None = None
    attention_mask: Tensor | None = None
    keyframes_mask: Tensor | None = None
    timestep_groups: TimestepGroups | None = None
    strength_groups: StrengthGroups | None = None
    text_memory: TextMemory | None = None

    def __post_init__(self) -> None:
        batch, count = self.batch_size, self.timesteps.numel()
        if self.timesteps.shape[:1] != (batch,) and count and batch and count % batch == 0:
            object.__setattr__(self, "timesteps", self.timesteps.reshape(batch, -1))

    @property
    def batch_size(self) -> int:
        return self.latent.shape[0]

    @property
    def per_token_timesteps(self) -> Tensor:
        """``[B, T, 1]`` or ``[B, 1, 1]``."""
        return self.timesteps.reshape(self.batch_size, -1, 1)

    @property
    def noise_level(self) -> Tensor:
        """``[B]``: ``sigma``, else the largest timestep of each sample."""
        if self.sigma is None:
            return self.timesteps.reshape(self.batch_size, -1).amax(dim=1)
        return self.sigma.reshape(-1).expand(self.batch_size)

    def grouped_timesteps(self) -> TimestepGroups:
        """The groups given, if they are of ``timesteps``, else computed."""
        if self.timestep_groups is not None and self.timestep_groups.timesteps is self.timesteps:
            return self.timestep_groups
        return TimestepGroups.of(self.timesteps)

    def batch_slice(self, start: int, stop: int) -> Modality:
        """The samples ``start`` to ``stop`` (exclusive); tensors that broadcast over the batch stay whole."""
        return self.select(tuple(range(self.batch_size)[start:stop]))

    def select(self, samples: tuple[int, ...]) -> Modality:
        """Some of the samples, in this order; tensors that broadcast over the batch stay whole."""
        if samples == tuple(range(self.batch_size)):
            return self
        parts: dict[str, Any] = {
            name: take_rows(value, samples)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == self.batch_size
        }
        if self.timestep_groups is not None and self.timestep_groups.timesteps is self.timesteps:
            groups = self.timestep_groups.select(samples)
            parts |= {"timesteps": groups.timesteps, "timestep_groups": groups}
        if self.strength_groups is not None and self.strength_groups.mask is self.attention_mask:
            strengths = self.strength_groups.select(samples)
            parts |= {"attention_mask": strengths.mask, "strength_groups": strengths}
        if self.text_memory is not None:
            parts["text_memory"] = self.text_memory.select(samples)
        return replace(self, **parts)

    def attention_bias(self) -> AttentionBias | None:
        """Of the self-attention: by groups where they are known, else dense."""
        groups = self.strength_groups
        if groups is None or groups.mask is not self.attention_mask or not optimizations().grouped_masks:
            return self_attention_bias(self.attention_mask, self.latent.dtype)
        return groups.bias(self.latent.dtype)

    def check(self, name: str, channels: int, context_width: int, axes: int) -> None:
        """Refuse shapes the model cannot hold, as ``ConfigError`` that names the field of stream ``name``."""
        batch, tokens = self.latent.shape[0], self.latent.shape[1]
        if self.latent.ndim != 3 or self.latent.shape[2] != channels or tokens == 0:
            raise ConfigError(_shape_error(name, "latent", self.latent, f"[B, T > 0, {channels}]"))
        if self.timesteps.numel() not in (batch, batch * tokens) or self.timesteps.shape[0] != batch:
            raise ConfigError(_shape_error(name, "timesteps", self.timesteps, f"[{batch}, {tokens}] or [{batch}]"))
        if self.sigma is not None and self.sigma.numel() not in (1, batch):
            raise ConfigError(_shape_error(name, "sigma", self.sigma, f"[{batch}]"))
        if self.positions.ndim not in (3, 4) or self.positions.shape[1:3] != (axes, tokens):
            raise ConfigError(_shape_error(name, "positions", self.positions, f"[{batch}, {axes}, {tokens}, 2]"))
        if self.context.ndim != 3 or self.context.shape[2] != context_width:
            raise ConfigError(_shape_error(name, "context", self.context, f"[{batch}, S, {context_width}]"))


def check_modalities(config: TransformerConfig, video: Modality | None, audio: Modality | None) -> dict[str, Modality]:
    """The streams that are given to a model, video first; ``ConfigError`` for what it cannot hold."""
    given = {name: modality for name, modality in zip(STREAMS, (video, audio), strict=True) if modality is not None}
    if not given:
        raise ConfigError("neither video nor audio is given, expected at least one stream")
    for name, modality in given.items():
        if name not in config.streams:
            raise ConfigError(f"{name} is given to a model without it, expected {', '.join(config.streams)}")
        stream = config.streams[name]
        modality.check(name, stream.in_channels, config.caption_channels or stream.width, len(stream.max_pos))
    if len({modality.batch_size for modality in given.values()}) > 1:
        sizes = ", ".join(f"{name} {modality.batch_size}" for name, modality in given.items())
        raise ConfigError(f"batch sizes are {sizes}, expected equal ones")
    return given


def check_perturbations(given: BatchedPerturbationConfig | None, size: int) -> BatchedPerturbationConfig:
    """Perturbations of as many samples; each sample stands alone where passes do not share."""
    if given is None:
        return BatchedPerturbationConfig.empty(size)
    if len(given) != size:
        raise ConfigError(f"perturbations are for {len(given)} samples, expected {size}")
    return given if optimizations().shared_prefix else BatchedPerturbationConfig(given.configs)


def _shape_error(stream: str, field: str, value: Tensor, expected: str) -> str:
    return f"{stream} {field} has shape {list(value.shape)}, expected {expected}"
