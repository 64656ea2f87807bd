"""Guidance passes on separate processes: each computes some samples of a step's batch, all get all results."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.parallel.ranks import Ranks, shares
from ltx_core.sampling.denoisers import Transformer


@dataclass(frozen=True)
class PassParallel:
    """A transformer as one that computes every sample; a process without a sample waits.

    With ``all_compute``, because they gather weights together, it computes the first one and leaves it.
    """

    transformer: Transformer
    ranks: Ranks
    all_compute: bool = False

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        given = {"video": video, "audio": audio}
        size = next(one.batch_size for one in given.values() if one is not None)
        counts, rows = shares(size, self.ranks.size), range(size)[self.ranks.span(size)]
        made: dict[str, Tensor | None] = {}
        if rows or self.all_compute:
            computed = tuple(rows) or (0,)
            own = {name: None if one is None else one.select(computed) for name, one in given.items()}
            chosen = None if perturbations is None else select_rows(perturbations, computed)
            made = dict(zip(given, self.transformer(**own, perturbations=chosen), strict=True))
        video_x0, audio_x0 = (
            None if one is None else self._all(one, made.get(name) if rows else None, counts)
            for name, one in given.items()
        )
        return video_x0, audio_x0

    def _all(self, modality: Modality, own: Tensor | None, counts: list[int]) -> Tensor:
        empty = modality.latent[:0]
        return self.ranks.gather(empty if own is None else own, counts, dim=0)


def select_rows(given: BatchedPerturbationConfig, rows: tuple[int, ...]) -> BatchedPerturbationConfig:
    """The perturbations of some samples, which still say which of them have equal inputs."""

    def among(labels: tuple[int, ...]) -> list[int]:
        own = [labels[row] for row in rows]
        return [own.index(label) for label in own]

    configs = [given.configs[row] for row in rows]
    return BatchedPerturbationConfig(
        configs, same_as=among(given.same_as), same_but_text_as=among(given.same_but_text_as)
    )
