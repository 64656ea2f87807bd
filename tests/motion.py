"""Motion between two pictures, as tests measure it."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def global_motion(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Pixels (x, y) by which the picture moved from ``first`` to ``second`` ``[C, H, W]``, by phase correlation."""
    a, b = (np.asarray(frame.double().mean(dim=0)) for frame in (first, second))
    window = np.outer(np.hanning(a.shape[0]), np.hanning(a.shape[1]))
    cross = np.fft.fft2(b * window) * np.conj(np.fft.fft2(a * window))
    surface = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-12)).real
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    return (
        _peak(surface[row], int(column)),
        _peak(surface[:, column], int(row)),
    )


def _peak(line: np.ndarray, place: int) -> float:
    """The maximum of a cyclic line near ``place``, refined by a parabola, as a signed shift."""
    size = len(line)
    left, middle, right = line[place - 1], line[place], line[(place + 1) % size]
    curve = left - 2 * middle + right
    shift = place + (0.5 * (left - right) / curve if curve else 0.0)
    return float(shift - size if shift > size / 2 else shift)
