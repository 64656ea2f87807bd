"""Sparse self-attention: who sees whom, kernels against a dense mask, and that nothing dropped is nothing lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.tiny_transformers import V23, random_model
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.model.common.meter import CountedAttention
from ltx_core.model.transformer.attention import Attention, attention
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.model.transformer.sparse import BlockPattern, tile_order
from ltx_core.sampling.cheaper import SparseDenoiser
from ltx_core.sampling.denoisers import DenoiseCall, GuidedDenoiser, Results
from ltx_core.types import LatentState

GRIDS = [
    ((3, 5, 7), 0, False),
    ((3, 5, 7), 6, False),
    ((3, 5, 7), 6, True),
    ((1, 9, 4), 0, False),
    ((5, 8, 8), 1, False),
]


def pattern_of(grid: tuple[int, int, int], more: int, first: bool, stride: int = 4) -> BlockPattern:
    return BlockPattern.of(grid, grid[0] * grid[1] * grid[2] + more, 8, stride, first=first)


def visible(pattern: BlockPattern) -> Tensor:
    """``[T, T]`` by places."""
    block = torch.arange(pattern.tokens) // pattern.block
    return pattern.seen[block][:, block]


@pytest.mark.parametrize(("grid", "more", "first"), GRIDS)
def test_what_touches_is_seen_and_so_is_what_stands_outside(grid: tuple[int, int, int], more: int, first: bool) -> None:
    pattern = pattern_of(grid, more, first, stride=1000)
    sight = visible(pattern)[pattern.inverse][:, pattern.inverse]  # by tokens
    assert torch.equal(pattern.order.sort().values, torch.arange(pattern.tokens))
    cells = torch.cartesian_prod(*map(torch.arange, grid))
    touching = ((cells[:, None] - cells).abs() <= 1).all(dim=2)
    count = len(cells)
    start = more if first else 0
    inside = sight[start : start + count, start : start + count]
    assert bool(inside[touching].all())
    outside = torch.ones(pattern.tokens, dtype=torch.bool)
    outside[start : start + count] = False
    assert bool(sight[outside].all()) and bool(sight[:, outside].all())
    assert pattern.kept == pytest.approx(float(sight.float().mean()))


def test_the_stride_and_the_last_block_are_seen_by_all() -> None:
    seen = pattern_of((6, 8, 8), 0, False, stride=5).seen
    assert bool(seen[:, ::5].all()) and bool(seen[:, -1].all())
    assert not bool(seen[0, 40:].all()), "distant pairs are left out"


def test_neighbours_in_the_order_touch_in_the_grid() -> None:
    _, places = tile_order((4, 8, 16), 8)
    tiles = [(tile.amin(0), tile.amax(0)) for tile in places.split(8)]
    assert all(int((high - low + 1).prod()) == 8 for low, high in tiles)
    for (low, high), (next_low, next_high) in pairwise(tiles):
        assert bool((torch.maximum(low, next_low) - torch.minimum(high, next_high) <= 1).all())


def mixed(pattern: BlockPattern, backend: str) -> tuple[Tensor, Tensor]:
    """By a backend, and by a dense mask."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, pattern.tokens, 3, 16, generator=generator)
    made = attention(q, k, v, pattern, backend)
    heads = (part.transpose(1, 2) for part in (q, k, v))
    return made, F.scaled_dot_product_attention(*heads, attn_mask=visible(pattern)).transpose(1, 2)


@pytest.mark.parametrize(("grid", "more", "first"), GRIDS)
@pytest.mark.parametrize("backend", ["blocks", "auto", "flex"])
def test_kernels_agree_with_a_dense_mask(backend: str, grid: tuple[int, int, int], more: int, first: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uncompiled, flex attention says that it is slow
        made, dense = mixed(pattern_of(grid, more, first), backend)
    torch.testing.assert_close(made, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_compiled_kernel_agrees_too() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    pattern = BlockPattern.of((4, 9, 11), 400, 128, 3)
    q, k, v = torch.randn(3, 1, 2, pattern.tokens, 32, generator=torch.Generator().manual_seed(0))
    made = torch.compile(flex_attention, dynamic=False)(q, k, v, block_mask=pattern.block_mask)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=visible(pattern))
    torch.testing.assert_close(made, want, rtol=1e-4, atol=1e-5)


def test_operations_are_those_of_the_pairs_kept() -> None:
    pattern = pattern_of((5, 8, 8), 3, False)
    q, k, v = torch.zeros(3, 1, pattern.tokens, 2, 8)
    with CountedAttention() as counted:
        attention(q, k, v, pattern)
    assert counted.flops == pytest.approx(4 * pattern.tokens**2 * 16 * pattern.kept)


def test_near_pairs_hold_most_of_a_smooth_attention() -> None:
    pattern = pattern_of((4, 12, 12), 0, False, stride=16)
    _, places = tile_order((4, 12, 12), 8)
    distance = torch.cdist(places.float(), places.float())
    mass = torch.softmax(-(distance**2) / 4, dim=1)
    recalled = float((mass * visible(pattern)).sum(dim=1).mean())
    assert pattern.kept < 0.5 and recalled > 0.9


def test_backends_for_masks_say_that_they_take_no_pattern() -> None:
    pattern = pattern_of((1, 2, 4), 0, False)
    q = torch.zeros(1, 8, 1, 4)
    for name in ("sdpa", "math"):
        with pytest.raises(ConfigError, match=f"{name}.*takes no pattern of blocks"):
            attention(q, q, q, pattern, name)
    with pytest.raises(ConfigError, match=r"blocks.*needs a pattern"):
        attention(q, q, q, None, "blocks")


# In a model -----------------------------------------------------------------------------------------------------------

GRID, MORE = (3, 5, 7), 6


@pytest.fixture(scope="module")
def model() -> LTXModel:
    return random_model(V23, std=0.2)


@pytest.fixture(scope="module")
def states(model: LTXModel) -> dict[str, LatentState]:
    generator, found = torch.Generator().manual_seed(1), {}
    for name, tokens in {"video": 105 + MORE, "audio": 7}.items():
        stream = model.config.streams[name]
        latent = torch.randn(1, tokens, stream.in_channels, generator=generator)
        starts = 4 * torch.rand(1, len(stream.max_pos), tokens, generator=generator)
        mask = torch.ones(1, tokens, 1)
        mask[:, :3] = 0.5
        found[name] = LatentState(latent, mask, torch.stack((starts, starts + 0.1), -1), latent.clone())
    return found


class Told:
    """A denoiser that says which of the model's self-attentions are sparse while it runs."""

    def __init__(self, model: LTXModel, inner: GuidedDenoiser) -> None:
        self.model, self.inner, self.sparse = model, inner, [False]

    def __call__(self, transformer: Any, states: Any, call: DenoiseCall) -> Results:
        blocks: Any = self.model.transformer_blocks

        def note(module: Any, args: Any) -> None:
            self.sparse = [type(block.attn1) is not Attention for block in blocks]

        with blocks[0].register_forward_pre_hook(note):
            return self.inner(transformer, states, call)


@pytest.fixture
def told(model: LTXModel) -> Iterator[Told]:
    generator = torch.Generator().manual_seed(2)
    texts = {name: torch.randn(1, 5, width, generator=generator) for name, width in {"video": 32, "audio": 16}.items()}
    yield Told(model, GuidedDenoiser(texts))
    assert all(type(block.attn1) is Attention for block in model.transformer_blocks)


def predicted(denoiser: Any, model: LTXModel, states: dict[str, LatentState], step: int = 0) -> list[Tensor]:
    call = DenoiseCall.at(torch.tensor([0.9, 0.6, 0.0]), step)
    with torch.no_grad():
        return [result.denoised for result in denoiser(X0Model(model), states, call).values()]


def test_nothing_dropped_is_nothing_lost(model: LTXModel, states: dict[str, LatentState], told: Told) -> None:
    whole = BlockPattern.of(GRID, 105 + MORE, 8, stride=1)
    assert whole.kept == 1
    dense = predicted(told, model, states)
    sparse = predicted(SparseDenoiser(told, model, whole), model, states)
    for made, want in zip(sparse, dense, strict=True):
        torch.testing.assert_close(made, want, rtol=1e-4, atol=1e-4)
    assert told.sparse == [True] * 4


def test_first_steps_and_outer_blocks_stay_dense(model: LTXModel, states: dict[str, LatentState], told: Told) -> None:
    pattern = pattern_of(GRID, MORE, False, stride=1000)
    denoiser = SparseDenoiser(told, model, pattern, dense_steps=1, dense_blocks=1)
    dense = predicted(told, model, states)
    torch.testing.assert_close(predicted(denoiser, model, states), dense, rtol=1e-4, atol=1e-4)
    assert told.sparse == [False] * 4
    video, _ = predicted(denoiser, model, states, step=1)
    assert told.sparse == [False, True, True, False]
    assert float((video - predicted(told, model, states, step=1)[0]).abs().max()) > 1e-3


def test_strengths_are_refused(model: LTXModel, states: dict[str, LatentState], told: Told) -> None:
    strengths = torch.ones(1, 111, 111)
    strengths[:, 100:, :50] = 0.5
    masked = {**states, "video": replace(states["video"], attention_mask=strengths)}
    with pytest.raises(ConfigError, match="attention strengths are given to a sparse attention"):
        predicted(SparseDenoiser(told, model, pattern_of(GRID, MORE, False)), model, masked)
