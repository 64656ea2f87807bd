"""Header metadata: parsing, model versions and what follows from them, and which text encoder a checkpoint needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.textfiles import parse_json

logger = logging.getLogger(__name__)

Version = tuple[int, ...]


def parse_metadata(raw: Mapping[str, str]) -> dict[str, Any]:
    """Each value as JSON where it is JSON, else as text. A two-part version becomes a number: read versions as text."""
    return {key: _json_or_text(value) for key, value in raw.items()}


def _json_or_text(value: str) -> Any:
    try:
        return parse_json(value, "metadata")
    except ConfigError:
        return value


def parse_version(text: str | None) -> Version:
    """The leading all-digit parts: ``2.3.rc1`` is (2, 3); empty, absent or unreadable is (), below everything."""
    parts: list[int] = []
    for part in (text or "").split("."):
        if not (part.isascii() and part.isdigit() and len(part) < 10):
            break
        parts.append(int(part))
    return tuple(parts)


def detect_version(text: str | None) -> Version:
    """The version that chooses defaults: as ``parse_version``, but ``2.4-rc2`` counts as (2, 4)."""
    return parse_version((text or "").replace("-", "."))


@dataclass(frozen=True)
class VersionDefaults:
    """Sampling defaults of one model generation."""

    num_inference_steps: int
    stg_blocks: tuple[int, ...]
    image_crf: int  # H.264 constant rate factor applied to conditioning images
    ancestral_stage_1: bool  # ancestral sampler in stage 1 of distilled runs


DEFAULTS_FROM: tuple[tuple[Version, VersionDefaults], ...] = (
    ((2, 5), VersionDefaults(30, (28,), 18, True)),
    ((2, 4), VersionDefaults(30, (28,), 18, False)),
    ((2, 3), VersionDefaults(30, (28,), 33, False)),
    ((), VersionDefaults(40, (29,), 33, False)),
)


def version_defaults(version: Version) -> VersionDefaults:
    """The defaults of the newest generation that is not newer than ``version``."""
    return next(defaults for first, defaults in DEFAULTS_FROM if version >= first)


def check_gemma_source(
    metadata: Mapping[str, Any], model_version: str | None, encoder_config: Mapping[str, Any]
) -> None:
    """Refuse a text encoder that a checkpoint was not trained with.

    ``metadata`` is the parsed header of the checkpoint, ``encoder_config`` the text encoder's ``config.json``. A
    declared ``gemma_source_checkpoint`` must name the encoder's ``gemma_version``; from version 2.4.0 on one should
    be declared; older checkpoints need ``model_type`` ``gemma3``. Raises ``CheckpointError``.
    """
    given = encoder_config.get("gemma_version")
    source = metadata.get("gemma_source_checkpoint")
    if source is not None:
        expected = source.get("gemma_version") if isinstance(source, Mapping) else None
        if given != expected:
            raise CheckpointError(f"text encoder has gemma_version {given!r}, the checkpoint expects {expected!r}")
    elif parse_version(model_version) >= (2, 4, 0):
        if given is not None:
            raise CheckpointError(
                f"text encoder has gemma_version {given!r}, checkpoint {model_version} has no gemma_source_checkpoint"
            )
        logger.warning("checkpoint %s has no gemma_source_checkpoint, text encoder not checked", model_version)
    elif (kind := encoder_config.get("model_type")) != "gemma3":
        raise CheckpointError(f"text encoder has model_type {kind!r}, checkpoint {model_version!r} expects 'gemma3'")
