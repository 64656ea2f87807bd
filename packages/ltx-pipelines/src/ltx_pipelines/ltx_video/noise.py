"""The Gaussian numbers of an LTX-Video run.

Draws are made in a fixed order: the initial noise as tokens ``[1, F*H*W, C]``; one ``[1, C, f, h, w]`` per soft
condition; per step ``[1, N, C]`` where hard conditions are noised again, then ``[1, N, C]`` where sampling is
stochastic; a second stage does all that once more; last the decoder's. Posterior draws are made where pixels are
encoded: a source clip's before the initial noise, conditions' after it and before their own noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARED_USES = frozenset({"initial", "condition", "renoise"})
SOUND = "sound"


class SeededNoise:
    """Noise of a seed.

    Initial, condition and renoise draws come from one CPU generator with this seed, so that they do not depend on the
    device; the other uses have a generator of their own and leave that sequence as it is. So has sound, which is drawn
    in the first stage alone: no later stage goes on from there.
    """

    def __init__(self, seed: int) -> None:
        self._shared = torch.Generator().manual_seed(seed)
        self._own = torch.Generator().manual_seed(seed + 1)
        self._sound = torch.Generator().manual_seed(seed + 2)

    def draw(self, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard normal numbers in the dtype and on the device of ``like``.

        ``use`` is one of initial, condition, renoise, stochastic, posterior, decoder and sound.
        """
        generator = self._shared if use in SHARED_USES else self._sound if use == SOUND else self._own
        return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)

    def get_state(self) -> Tensor:
        """Positions of the picture's sequences, to go on from with ``set_state``."""
        return torch.stack((self._shared.get_state(), self._own.get_state()))

    def set_state(self, state: Tensor) -> None:
        for generator, own in zip((self._shared, self._own), state, strict=True):
            generator.set_state(own.cpu().clone())  # torch reads a view from the start of its storage
