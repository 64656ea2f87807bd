"""Which file each part of a model is read from: one file for everything, or a split pack."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltx_core.errors import ConfigError

StrPath = str | os.PathLike[str]
Slot = Literal["transformer", "text_encoder", "video_vae", "audio_vae", "duration_head"]


@dataclass(frozen=True)
class ModelPaths:
    """A path per part; None where there is none."""

    transformer: Path | None = None
    text_encoder: Path | None = None
    video_vae: Path | None = None
    audio_vae: Path | None = None
    duration_head: Path | None = None
    embeddings_weight_paths: tuple[Path, ...] = ()  # text projections and connectors

    @classmethod
    def from_monolith(
        cls, checkpoint: StrPath, gemma_root: StrPath | None = None, video_vae_path: StrPath | None = None
    ) -> ModelPaths:
        """A single file holds all but the text encoder; ``video_vae_path`` replaces its video VAE."""
        file = Path(checkpoint)
        return cls(file, _path(gemma_root), _path(video_vae_path) or file, file, file, (file,))

    @classmethod
    def from_split(
        cls,
        transformer: StrPath | None = None,
        text_encoder: StrPath | None = None,
        video_vae: StrPath | None = None,
        audio_vae: StrPath | None = None,
        duration_head: StrPath | None = None,
    ) -> ModelPaths:
        """One file per part. Text projections lie with the text encoder, connectors with the transformer."""
        network, encoder = _path(transformer), _path(text_encoder)
        embeddings = tuple(path for path in (network, encoder if network else None) if path is not None)
        return cls(network, encoder, _path(video_vae), _path(audio_vae), _path(duration_head), embeddings)

    def require(self, slot: Slot) -> Path:
        """The path of a part; ``ConfigError`` when none was given."""
        path = getattr(self, slot)
        if path is None:
            raise ConfigError(f"no {slot} path given, expected a file or folder")
        return Path(path)


def _path(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)
