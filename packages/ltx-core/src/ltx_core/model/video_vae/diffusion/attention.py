"""Neighbourhood attention: every location attends to the ``kt x kh x kw`` locations around it.

Along an axis of n locations, location i sees the k locations from ``clamp(i - k // 2, 0, n - k)``: at a border the
window moves inward, it is never cut. The neighbourhood is the product of the three windows.

Queries are taken in small boxes. The windows of a box lie in a box of keys not much larger, so each is one dense
attention with a mask, and inner boxes all share one mask: no score outside the fused kernel, no memory beyond a few
gathered boxes.

Positions are rotary, on three axes: each head's channels are split into one part per axis, adjacent channels rotate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae.diffusion.config import Axes
from ltx_core.utils import device_of_doubles

BASE = 10000.0  # of the rotary positions
BOX = 4  # queries of a box along an axis
GATHERED_BYTES = 2**27  # of keys and values at once
MAX_BATCH = 2**14  # boxes at once: kernels limit their grids


def neighbourhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel: Axes, scale: float = 1.0, first: Axes = (0, 0, 0)
) -> Tensor:
    """``softmax(scale q k^T) v`` over each query's neighbourhood, ``[B, T, H, W, heads, head_dim]``.

    Queries may be a box of the locations of ``k`` and ``v`` that begins at ``first``. Raises ``ConfigError`` for an
    axis shorter than its kernel and a box that leaves the locations.
    """
    for name, asked, start, there, size in zip(
        ("frames", "height", "width"), q.shape[1:4], first, k.shape[1:4], kernel, strict=True
    ):
        if there < size:
            raise ConfigError(f"{name} is {there} locations, expected at least the kernel's {size}")
        if start < 0 or start + asked > there:
            raise ConfigError(f"{name}: queries {start} to {start + asked} lie outside the {there} locations")
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype, device=v.device)
    runs = [axis_runs(*axis) for axis in zip(q.shape[1:4], first, k.shape[1:4], kernel, strict=True)]
    masks = {(run, size): axis_mask(run, size, q) for axis, size in zip(runs, kernel, strict=True) for run in axis}
    for grid in itertools.product(*runs):
        mask = box_mask(grid, [masks[run, size] for run, size in zip(grid, kernel, strict=True)])
        for part in _parts(grid, k):
            t, h, w = (run.queries for run in part)
            queries = _split(q[:, t, h, w], part).flatten(0, 3).flatten(2, 4)  # [N, heads, Lq, head_dim]
            keys, values = (_gather(x, part) for x in (k, v))  # [N, heads, Lk, head_dim]
            found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
            boxes = _split(out[:, t, h, w], part)
            boxes.copy_(found.reshape(boxes.shape))
    return out


@dataclass(frozen=True)
class Run:
    """Boxes along one axis, one after another, that see their keys alike."""

    start: int  # first query
    length: int  # queries of a box
    count: int  # boxes
    keys: int  # first key of the first box; the keys of the next begin ``length`` further
    span: int  # keys of a box
    windows: tuple[int, ...]  # where the window of each query of a box begins among the box's keys

    @property
    def queries(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)

    def part(self, index: int, count: int) -> Run:
        """At most ``count`` of the boxes, from the ``index``-th on."""
        step = index * self.length
        return replace(self, start=self.start + step, keys=self.keys + step, count=min(count, self.count - index))


@lru_cache(maxsize=1024)
def axis_runs(queries: int, first: int, keys: int, kernel: int) -> tuple[Run, ...]:
    """Cut the queries ``first`` to ``first + queries`` of an axis of ``keys`` locations into boxes."""
    if keys <= kernel + BOX:  # the windows hardly differ
        box = queries
    else:
        box = 1 if kernel == 1 else BOX
    starts = [min(max(first + i - kernel // 2, 0), keys - kernel) for i in range(queries)]
    runs: list[Run] = []
    for start in range(0, queries, box):
        own = starts[start : start + box]
        windows = tuple(window - own[0] for window in own)
        run = Run(start, len(own), 1, own[0], own[-1] + kernel - own[0], windows)
        before = runs[-1] if runs else None
        follows = before is not None and own[0] == before.keys + before.count * before.length
        if before is not None and follows and before.windows == windows:
            runs[-1] = replace(before, count=before.count + 1)
        else:
            runs.append(run)
    return tuple(runs)


def _parts(runs: tuple[Run, ...], k: Tensor) -> Iterator[tuple[Run, Run, Run]]:
    """Cut a grid of boxes so that each part's keys and values fit ``GATHERED_BYTES``."""
    t, h, w = runs
    box_bytes = 2 * t.span * h.span * w.span * k.shape[4] * k.shape[5] * k.element_size() * k.shape[0]
    most = min(max(GATHERED_BYTES // box_bytes, 1), max(MAX_BATCH // k.shape[0], 1))
    wide = min(w.count, most)
    high = min(h.count, max(most // wide, 1))
    deep = min(t.count, max(most // (wide * high), 1))
    for a, b, c in itertools.product(range(0, t.count, deep), range(0, h.count, high), range(0, w.count, wide)):
        yield t.part(a, deep), h.part(b, high), w.part(c, wide)


def _split(x: Tensor, runs: tuple[Run, Run, Run]) -> Tensor:
    """A view ``[B, nt, nh, nw, heads, t, h, w, head_dim]`` of the boxes of ``[B, T, H, W, heads, head_dim]``."""
    t, h, w = runs
    x = x.unflatten(3, (w.count, w.length)).unflatten(2, (h.count, h.length)).unflatten(1, (t.count, t.length))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6, 8)


def _gather(x: Tensor, runs: tuple[Run, Run, Run]) -> Tensor:
    """The overlapping boxes of keys, copied: ``[B * nt * nh * nw, heads, t * h * w, head_dim]``."""
    for axis, run in enumerate(runs, 1):
        x = x.narrow(axis, run.keys, (run.count - 1) * run.length + run.span)
    for axis, run in enumerate(runs, 1):
        x = x.unfold(axis, run.span, run.length)  # [B, nt, nh, nw, heads, head_dim, t, h, w] in the end
    return x.permute(0, 1, 2, 3, 4, 6, 7, 8, 5).flatten(0, 3).flatten(2, 4)


def axis_mask(run: Run, size: int, like: Tensor) -> Tensor | None:
    """Additive ``[queries, keys]`` of a box along one axis: 0 inside the windows; None where they cover all keys."""
    if run.span == size:
        return None
    begins = torch.tensor(run.windows, device=like.device)[:, None]
    keys = torch.arange(run.span, device=like.device)
    outside = (keys < begins) | (keys >= begins + size)
    return torch.zeros(outside.shape, dtype=like.dtype, device=like.device).masked_fill_(outside, float("-inf"))


def box_mask(grid: tuple[Run, ...], axes: Sequence[Tensor | None]) -> Tensor | None:
    """The masks of three axes as one of whole boxes, ``[queries, keys]``."""
    total: Tensor | None = None
    for axis, mask in enumerate(axes):
        if mask is not None:
            shape = [1] * 6
            shape[axis], shape[axis + 3] = mask.shape
            total = mask.view(shape) if total is None else total + mask.view(shape)
    if total is None:
        return None
    queries, keys = [run.length for run in grid], [run.span for run in grid]
    return total.expand(*queries, *keys).reshape(math.prod(queries), math.prod(keys))


def axis_widths(head_dim: int) -> Axes:
    """Channels of a head that turn with time, height and width; all even, height and width alike."""
    time = 2 * (head_dim // 4 // 2)
    if (head_dim - time) // 2 % 2:
        time -= 2
    space = (head_dim - time) // 2
    if time < 0 or space % 2 or time + 2 * space != head_dim:
        raise ConfigError(f"head_dim is {head_dim}, expected an even number that three axes can share in pairs")
    return time, space, space


def axis_frequencies(width: int, base: float = BASE, device: torch.device | None = None) -> Tensor:
    """``base^(-2i / width)``, ``[width / 2]`` in float32, computed in float64."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=device_of_doubles(device)) / max(width, 1)
    return torch.pow(base, -exponents).to(device=device, dtype=torch.float32)


def rotate(x: Tensor, first: Axes = (0, 0, 0), base: float = BASE) -> Tensor:
    """Turn ``[B, T, H, W, heads, head_dim]`` by its positions, which count up from ``first``; float32 inside."""
    turned = []
    for axis, (part, start) in enumerate(zip(x.split(axis_widths(x.shape[-1]), dim=-1), first, strict=True)):
        positions = torch.arange(start, start + x.shape[axis + 1], dtype=torch.float32, device=x.device)
        angles = positions[:, None] * axis_frequencies(part.shape[-1], base, x.device)  # [n, width / 2]
        shape = [1, 1, 1, 1, 1, angles.shape[1]]
        shape[axis + 1] = angles.shape[0]
        cos, sin = angles.cos().view(shape), angles.sin().view(shape)
        even, odd = part.float().unflatten(-1, (-1, 2)).unbind(dim=-1)
        pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        turned.append(pairs.flatten(-2).to(x.dtype))
    return torch.cat(turned, dim=-1)
