"""Where the Gaussian numbers of an LTX-Video run come from: generators, or a recording.

Draws are made in a fixed order: the initial noise as tokens ``[1, F*H*W, C]``; one ``[1, C, f, h, w]`` per soft
condition; per step ``[1, N, C]`` where hard conditions are noised again, then ``[1, N, C]`` where sampling is
stochastic; a second pass does all that once more; last the decoder's. Posterior draws are made where pixels are
encoded: a source clip's before the initial noise, conditions' after it and before their own noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from torch import Tensor

Use = Literal["initial", "condition", "renoise", "stochastic", "posterior", "decoder"]
SHARED_USES = frozenset({"initial", "condition", "renoise"})


class Noise(Protocol):
    """A source of standard normal numbers in the dtype and on the device of ``like``."""

    def draw(self, use: Use, shape: tuple[int, ...], like: Tensor) -> Tensor: ...


class GeneratorNoise:
    """Noise of a seed.

    Initial, condition and renoise draws come from one CPU generator with this seed, so that they do not depend on the
    device; the other uses have a generator of their own and leave that sequence as it is.
    """

    def __init__(self, seed: int) -> None:
        self._shared = torch.Generator().manual_seed(seed)
        self._own = torch.Generator().manual_seed(seed + 1)

    def draw(self, use: Use, shape: tuple[int, ...], like: Tensor) -> Tensor:
        generator = self._shared if use in SHARED_USES else self._own
        return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


class RecordedNoise:
    """Draws made before, given again in their order, whatever they are for."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self._draws = iter(draws)

    def draw(self, use: Use, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The next draw. Raises ``ValueError`` when there is none or it has another shape."""
        noise = next(self._draws, None)
        if noise is None or tuple(noise.shape) != tuple(shape):
            found = "none" if noise is None else list(noise.shape)
            raise ValueError(f"recorded {use} noise is {found}, expected {list(shape)}")
        return noise.to(like)
