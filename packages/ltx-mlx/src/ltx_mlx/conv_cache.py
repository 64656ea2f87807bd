"""One pass of the video VAE over one clip, whole or in pieces along time: the rules of ``ltx_core``'s ``conv_cache``.

Frames are axis 1 of ``[B, T, H, W, C]``. A whole pass sees the entire clip as its first and last piece. In a streamed
pass the clip keeps, for each layer, the few frames the next piece will need, so pieces join to what the whole pass
gives.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx
import torch
from torch import Tensor

from ltx_mlx.arrays import TORCH_DTYPES

KERNEL = 3  # taps of every temporal convolution
NoiseSource = Callable[[tuple[int, ...]], Tensor]  # from a shape to standard normal numbers


@dataclass
class ConvCache:
    """State that blocks share during a pass; owners are told apart by ``id``."""

    causal: bool = True  # whether convolutions see the past only, or one frame to each side
    last: bool = True  # whether the piece at hand ends the clip
    timestep: mx.array | None = None  # [B] scaled timestep of a timestep-conditioned decoder
    noise: torch.Generator | NoiseSource | None = None
    frames: dict[int, mx.array] = field(default_factory=dict)
    _values: dict[Hashable, mx.array] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)

    def conv_window(self, owner: object, x: mx.array, stride: int) -> mx.array:
        """The frames a 3-tap convolution needs for the outputs this piece completes; zero frames when for none."""
        return self._window(owner, x, (2, 0) if self.causal else (1, 1), KERNEL, stride)

    def pairs(self, owner: object, x: mx.array) -> mx.array:
        """A copy of the clip's first frame, then its frames, in whole pairs."""
        return self._window(owner, x, (1, 0), 2, 2)

    def _window(self, owner: object, x: mx.array, edge: tuple[int, int], kernel: int, stride: int) -> mx.array:
        kept = self.frames.pop(id(owner), None)
        if not x.shape[1] and kept is None:
            return x
        parts = [x[:, :1]] * edge[0] if kept is None else [kept]
        parts += [x] if x.shape[1] else []
        parts += [parts[-1][:, -1:]] * edge[1] if self.last else []
        x = mx.concatenate(parts, axis=1)
        windows = max((x.shape[1] - kernel) // stride + 1, 0)
        if not self.last:
            self.frames[id(owner)] = mx.contiguous(x[:, windows * stride :])
        return x[:, : (windows - 1) * stride + kernel if windows else 0]

    def catch_up(self, owner: object, x: mx.array, frames: int) -> mx.array:
        """Queue x and take its oldest ``frames`` frames, those a lagging branch has reached."""
        kept = self.frames.pop(id(owner), None)
        if kept is not None:
            x = mx.concatenate([kept, x], axis=1)
        if frames < x.shape[1]:
            self.frames[id(owner)] = mx.contiguous(x[:, frames:])
        return x[:, :frames]

    def begins(self, owner: object, x: mx.array) -> bool:
        """Whether x holds the clip's first frames at this block."""
        if not x.shape[1] or id(owner) in self._begun:
            return False
        if not self.last:
            self._begun.add(id(owner))
        return True

    def once(self, owner: Hashable, make: Callable[[], mx.array]) -> mx.array:
        """A value that is the same for every piece."""
        if owner not in self._values:
            self._values[owner] = make()
        return self._values[owner]

    def draw(self, shape: tuple[int, ...], dtype: mx.Dtype) -> Tensor:
        """Standard normal numbers from this clip's noise source: the same ones the torch network draws."""
        if callable(self.noise):
            return self.noise(shape)
        device = "cpu" if self.noise is None else self.noise.device
        return torch.randn(shape, generator=self.noise, dtype=TORCH_DTYPES[dtype], device=device)


class Stage(NamedTuple):
    """A block as a step of a streamed pass; ``max_frames`` bounds the piece it is given at once."""

    run: Callable[[mx.array, ConvCache], mx.array]
    max_frames: int


def stream(stages: Sequence[Stage], pieces: Iterable[tuple[mx.array, bool]], cache: ConvCache) -> Iterator[mx.array]:
    """Push pieces ``(frames, is_last)`` through the stages and yield what comes out, as soon as it does.

    Every stage is evaluated before the next, so that no graph grows and no GPU command runs long.
    """
    for frames, ends in pieces:
        todo = [(0, frames, ends)]
        while todo:
            index, x, last = todo.pop()
            if index == len(stages):
                yield x
                continue
            run, limit = stages[index]
            if x.shape[1] > limit:
                todo.append((index, x[:, limit:], last))
                x, last = x[:, :limit], False
            cache.last = last
            x = run(x, cache)
            mx.eval(x, *cache.frames.values())
            if x.shape[1]:
                todo.append((index + 1, x, last))
