"""Random numbers of training, as a pure function of (seed, rank, step): resuming needs no generator state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Random numbers of a training step, in the documented order of draws."""

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal values."""
        ...

    def rand(self, shape: Sequence[int]) -> Tensor:
        """Uniform float32 values in [0, 1)."""
        ...


class GeneratorDraws:
    """Draws from one torch generator, on that generator's device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(tuple(shape), dtype=dtype, generator=self.generator, device=self.generator.device)

    def rand(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self.generator, device=self.generator.device)


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from any values that print the same everywhere: (run seed, rank, step, purpose)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def step_draws(device: torch.device | str, *parts: object) -> GeneratorDraws:
    """The draws of one micro-step; ``parts`` as in `derived_seed`."""
    return GeneratorDraws(torch.Generator(device=device).manual_seed(derived_seed(*parts)))
