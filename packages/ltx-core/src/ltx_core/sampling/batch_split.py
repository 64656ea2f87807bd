"""A batch larger than fits, in several calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer.modality import Modality


class BatchSplitAdapter:
    """Calls ``model`` on at most ``max_batch_size`` samples at a time, in order; same call, same result.

    Other attributes are the model's. Raises ``ConfigError`` for a maximum below 1.
    """

    def __init__(self, model: Any, max_batch_size: int) -> None:
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}, expected at least 1")
        self.model = model
        self.max_batch_size = max_batch_size

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        batch = max(modality.batch_size for modality in (video, audio) if modality is not None)
        if batch <= self.max_batch_size:
            return self.model(video=video, audio=audio, perturbations=perturbations)
        videos, audios = [], []
        for start in range(0, batch, self.max_batch_size):
            stop = min(start + self.max_batch_size, batch)
            video_part, audio_part = self.model(
                video=None if video is None else video.batch_slice(start, stop),
                audio=None if audio is None else audio.batch_slice(start, stop),
                perturbations=None if perturbations is None else perturbations.batch_slice(start, stop),
            )
            videos.append(video_part)
            audios.append(audio_part)
        return _join(videos), _join(audios)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not set yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.model, name)


def _join(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None
