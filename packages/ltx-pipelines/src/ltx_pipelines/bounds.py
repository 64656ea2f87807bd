"""The range of every number a request may hold; what lies outside is refused with its nearest valid value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ltx_core.errors import ConfigError
from ltx_pipelines.utils.model_ledger import ModelLedger

MAX_PASSES = 4  # conditional, unconditional, perturbed, modality-isolated
# Field -> least and largest valid value; None is open.
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "max_batch_size": (1, MAX_PASSES),
    "audio_start_time": (0, None),
    "conditioning_attention_strength": (0, 1),
    "reference_strength": (0, 1),
    "temporal_upsample_rounds": (0, 2),
    "generated_keyframes": (0, None),
    "num_inference_steps": (1, 1000),
}
POSITIVE = ("frame_rate", "audio_max_duration")
GUIDERS = {"video_guider_params": "video", "audio_guider_params": "audio"}


def check_request(request: Mapping[str, Any], ledger: ModelLedger) -> None:
    """Refuse values out of range, whatever the task."""
    for name, (least, most) in BOUNDS.items():
        value = request.get(name)
        if not isinstance(value, int | float):
            continue
        nearest = max(value, least) if least is not None else value
        nearest = min(nearest, most) if most is not None else nearest
        if nearest != value:
            reach = f"at least {least}" if most is None else f"{least} to {most}"
            raise ConfigError(f"{name} is {value}, expected {reach}; nearest valid: {nearest}")
    for name in POSITIVE:
        value = request.get(name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value}, expected a positive number")
    if (direction := request.get("direction", "after")) not in ("after", "before"):
        raise ConfigError(f"direction is {direction!r}, expected after or before")
    for field, stream in GUIDERS.items():
        if (params := request.get(field)) is not None:
            check_guidance(stream, vars(params), ledger)


def check_guidance(stream: str, params: Mapping[str, Any], ledger: ModelLedger) -> None:
    """Guidance is finite, skips no negative number of steps, and perturbs blocks the model has."""
    for name, value in params.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{stream} {name} is {value}, expected a finite number")
    if params["skip_step"] < 0:
        raise ConfigError(f"{stream} skip_step is {params['skip_step']}, expected at least 0; nearest valid: 0")
    num_layers = int(ledger.config.get("transformer", {}).get("num_layers", 1))
    blocks = tuple(params["stg_blocks"] or ())
    outside = [block for block in blocks if not 0 <= block < num_layers]
    if outside and blocks != ledger.defaults.stg_blocks:
        nearest = min(max(outside[0], 0), num_layers - 1)
        said = f"{stream} stg_blocks hold {outside[0]}, the model has blocks 0 to {num_layers - 1}"
        raise ConfigError(f"{said}; nearest valid: {nearest}")
