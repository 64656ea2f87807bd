"""Steps that run the first block alone: exact where nothing changed, and only where it may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny_transformers import V23, random_model
from torch import Tensor

from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.sampling.cheaper import FirstBlockCache


class Counting(LTXModel):
    """A model that notes the blocks it runs."""

    def run_block(self, index: int, group: Any) -> Any:
        self.ran.append(index)
        return super().run_block(index, group)


@pytest.fixture(scope="module")
def model() -> Counting:
    network = random_model(V23, 0.2, Counting)
    network.ran = []
    return network


def given(model: LTXModel, batch: int, shift: float = 0.0) -> dict[str, Modality]:
    """Samples that differ in text alone; their latents and positions are one sample's."""
    generator, found = torch.Generator().manual_seed(1), {}
    for name, tokens in {"video": 12, "audio": 7}.items():
        stream = model.config.streams[name]
        starts = 4 * torch.rand(1, len(stream.max_pos), tokens, generator=generator)
        latent = torch.randn(1, tokens, stream.in_channels, generator=generator) + shift
        found[name] = Modality(
            latent=latent.expand(batch, -1, -1),
            timesteps=torch.full((batch,), 0.7),
            positions=torch.stack((starts, starts + 0.1), -1).expand(batch, -1, -1, -1),
            context=torch.randn(batch, 5, stream.width, generator=generator),
        )
    return found


SKIP = PerturbationConfig((Perturbation(PerturbationType.SKIP_VIDEO_SELF_ATTN, (2,)),))
APART = PerturbationConfig((Perturbation(PerturbationType.SKIP_A2V_CROSS_ATTN),))
#: Text, negative text, perturbed in block 2 as the first, modalities apart.
PASSES = BatchedPerturbationConfig(
    [PerturbationConfig(), PerturbationConfig(), SKIP, APART], same_as=[0, 1, 0, 0], same_but_text_as=[0, 0, 0, 0]
)


def with_texts_alike(streams: dict[str, Modality]) -> dict[str, Modality]:
    """Samples 0, 2 and 3 read one text."""
    return {name: replace(one, context=one.context[[0, 1, 0, 0]]) for name, one in streams.items()}


def equal(left: tuple[Tensor | None, ...], right: tuple[Tensor | None, ...], atol: float) -> None:
    for one, other in zip(left, right, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("batch", [1, 2, None])
def test_what_did_not_change_is_not_computed_and_stays(model: Counting, batch: int | None) -> None:
    cache = FirstBlockCache(model, threshold=1e-6)
    streams = with_texts_alike(given(model, 4))
    plain = model(**streams, perturbations=PASSES, max_batch_size=batch)
    model.ran.clear()
    equal(cache(**streams, perturbations=PASSES, max_batch_size=batch), plain, atol=0)
    assert set(model.ran) == {0, 1, 2, 3}
    model.ran.clear()
    equal(cache(**streams, perturbations=PASSES, max_batch_size=batch), plain, atol=1e-5)
    assert set(model.ran) == {0} and (cache.calls, cache.reused) == (2, 1)


def test_what_changed_is_computed(model: Counting) -> None:
    cache = FirstBlockCache(model, threshold=1e-3)
    cache(**given(model, 1))
    moved = given(model, 1, shift=0.5)
    equal(cache(**moved), model(**moved), atol=0)
    assert cache.reused == 0


def test_reuse_compares_with_the_last_full_call(model: Counting) -> None:
    """A drift in small steps is noticed once it is large."""
    cache = FirstBlockCache(model, threshold=0.1)
    for step in range(12):
        cache(**given(model, 1, shift=0.02 * step))
    assert 0 < cache.reused < 11


def test_the_first_calls_run_all_blocks(model: Counting) -> None:
    cache = FirstBlockCache(model, threshold=1.0, full_calls=3)
    for _ in range(5):
        cache(**given(model, 1))
    assert cache.reused == 2


def test_other_passes_streams_or_tokens_are_not_compared(model: Counting) -> None:
    cache = FirstBlockCache(model, threshold=1.0)
    streams = with_texts_alike(given(model, 4))
    cache(**streams, perturbations=PASSES)
    cache(**given(model, 1))
    resting = given(model, 1)
    cache(video=resting["video"], audio=replace(resting["audio"], enabled=False))
    cache(video=resting["video"])
    assert cache.reused == 0
    cache(video=resting["video"])
    assert cache.reused == 1
