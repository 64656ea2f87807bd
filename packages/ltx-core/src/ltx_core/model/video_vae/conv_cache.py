"""One pass over one clip, whole or in pieces along time.

Every block takes ``(x, cache)``. In a whole pass x is the entire clip. In a streamed pass the blocks see consecutive
pieces, and the cache keeps for each of them the few frames the next piece will need: a 3-tap convolution keeps the two
frames before its window, a residual keeps what its lagging branch has not caught up with. Copies of edge frames are
made at the true start and the true end only, so the pieces join to exactly what the whole pass gives. Where the sizes
are known the room for all kept frames is taken at the start, so that a pass that has begun needs no more later.

A block may give zero frames for a piece: a symmetric convolution lags its input by one frame until the clip ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltx_core.model.video_vae.ops import memory_format

NoiseSource = Callable[[tuple[int, ...]], Tensor]  # from a shape to standard normal numbers

KERNEL = 3  # taps of every temporal convolution


@dataclass
class ConvCache:
    """State that blocks share during a pass. Frames are axis 2 of ``[B, C, T, H, W]``."""

    causal: bool = True  # whether convolutions see the past only, or one frame to each side
    last: bool = True  # whether the piece at hand ends the clip
    timestep: Tensor | None = None  # [B] scaled timestep of a timestep-conditioned decoder
    noise: torch.Generator | NoiseSource | None = None
    _frames: dict[nn.Module, Tensor] = field(default_factory=dict)
    _rooms: dict[nn.Module, Tensor] = field(default_factory=dict)
    _values: dict[nn.Module | tuple[nn.Module, str], Tensor] = field(default_factory=dict)
    _begun: set[nn.Module] = field(default_factory=set)

    def reserve(self, sizes: Mapping[nn.Module, int], like: Tensor) -> None:
        """Take memory for the frames that each owner keeps at most, in elements, at once."""
        rooms = like.new_empty(sum(sizes.values())).split(list(sizes.values()))
        self._rooms = dict(zip(sizes, rooms, strict=True))

    def conv_window(self, owner: nn.Module, x: Tensor, stride: int) -> Tensor:
        """The frames a 3-tap convolution needs for the outputs this piece completes; zero frames when for none."""
        return self._window(owner, x, (2, 0) if self.causal else (1, 1), KERNEL, stride)

    def pairs(self, owner: nn.Module, x: Tensor) -> Tensor:
        """A copy of the clip's first frame, then its frames, in whole pairs."""
        return self._window(owner, x, (1, 0), 2, 2)

    def _window(self, owner: nn.Module, x: Tensor, edge: tuple[int, int], kernel: int, stride: int) -> Tensor:
        kept = self._frames.pop(owner, None)
        if not x.shape[2] and kept is None:
            return x
        parts = [x[:, :, :1]] * edge[0] if kept is None else [kept]
        parts += [x] if x.shape[2] else []
        parts += [parts[-1][:, :, -1:]] * edge[1] if self.last else []
        x = torch.cat(parts, dim=2)
        windows = max((x.shape[2] - kernel) // stride + 1, 0)
        if not self.last:
            self._keep(owner, x[:, :, windows * stride :])
        used = (windows - 1) * stride + kernel if windows else 0
        return x if used == x.shape[2] else x[:, :, :used]

    def catch_up(self, owner: nn.Module, x: Tensor, frames: int) -> Tensor:
        """Queue x and take its oldest ``frames`` frames, those a lagging branch has reached."""
        kept = self._frames.pop(owner, None)
        if kept is None and frames == x.shape[2]:
            return x
        if kept is not None:
            x = torch.cat([kept, x], dim=2)
        if frames < x.shape[2]:
            self._keep(owner, x[:, :, frames:])
        return x[:, :, :frames]

    def _keep(self, owner: nn.Module, x: Tensor) -> None:
        """Remember frames for the next piece, in the owner's room where it has one."""
        room = self._rooms.get(owner)
        fits = room is not None and room.dtype == x.dtype and room.numel() >= x.numel()
        self._frames[owner] = _own(x, room if fits else None)

    def begins(self, owner: nn.Module, x: Tensor) -> bool:
        """Whether x holds the clip's first frames at this block."""
        if not x.shape[2] or owner in self._begun:
            return False
        if not self.last:
            self._begun.add(owner)
        return True

    def once(self, owner: nn.Module | tuple[nn.Module, str], make: Callable[[], Tensor]) -> Tensor:
        """A value that is the same for every piece."""
        if owner not in self._values:
            self._values[owner] = make()
        return self._values[owner]

    def draw(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard normal numbers in the dtype and on the device of ``like``, from this clip's noise source."""
        if callable(self.noise):
            return self.noise(shape).to(like)
        device = like.device if self.noise is None else self.noise.device
        return torch.randn(shape, generator=self.noise, dtype=like.dtype, device=device).to(like.device)


def _own(x: Tensor, room: Tensor | None = None) -> Tensor:
    """A copy that does not keep the tensor x is a slice of alive, in the same memory format; in ``room`` if given."""
    room = x.new_empty(x.numel()) if room is None else room[: x.numel()]
    if slice_format(x) is torch.channels_last_3d:
        return room.view(x.movedim(1, -1).shape).movedim(-1, 1).copy_(x)
    return room.view(x.shape).copy_(x)


def slice_format(x: Tensor) -> torch.memory_format:
    """The memory format of the tensor that x is a slice of along time."""
    return torch.channels_last_3d if x.stride(1) == 1 and x.shape[1] > 1 else memory_format(x)


class Stage(NamedTuple):
    """A block as a step of a streamed pass; ``max_frames`` bounds the piece it is given at once."""

    run: Callable[[Tensor, ConvCache], Tensor]
    max_frames: int


def stream(stages: Sequence[Stage], pieces: Iterable[tuple[Tensor, bool]], cache: ConvCache) -> Iterator[Tensor]:
    """Push pieces ``(frames, is_last)`` through the stages and yield what comes out, as soon as it does.

    At the end of the clip each stage gives the frames it still owes on top of its last piece. Pieces above a stage's
    ``max_frames`` are cut, and the first part travels to the end before the rest moves, so that memory stays flat.
    """
    for frames, ends in pieces:
        todo = [(0, frames, ends)]
        del frames
        while todo:
            index, x, last = todo.pop()
            if index == len(stages):
                yield x
                continue
            run, limit = stages[index]
            if x.shape[2] > limit:
                todo.append((index, _own(x[:, :, limit:]), last))
                x, last = x[:, :, :limit], False
            cache.last = last
            x = run(x, cache)
            if x.shape[2]:
                todo.append((index + 1, x, last))
