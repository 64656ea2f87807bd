"""The loss by noise level: a run can look flat while the low-noise end still learns."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class SigmaLossTracker:
    """Means of element losses per sigma bucket, over the elements of one step."""

    def __init__(self, boundaries: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0), prefix: str = "train/loss") -> None:
        self.boundaries, self.prefix = tuple(boundaries), prefix
        self.values: dict[int, list[float]] = {}

    def update(self, sigmas: Sequence[float], losses: Sequence[float]) -> None:
        """Replace the content by one step's elements; a sigma belongs to the last boundary not above it."""
        self.values = {}
        for sigma, loss in zip(sigmas, losses, strict=True):
            bucket = min(max(bisect_right(self.boundaries, sigma) - 1, 0), len(self.boundaries) - 2)
            self.values.setdefault(bucket, []).append(loss)

    def metrics(self) -> dict[str, float]:
        """``<prefix>_sigma_0.25-0.50`` and so on, only for buckets that were hit."""
        return {
            f"{self.prefix}_sigma_{self.boundaries[b]:.2f}-{self.boundaries[b + 1]:.2f}": sum(v) / len(v)
            for b, v in self.values.items()
        }
