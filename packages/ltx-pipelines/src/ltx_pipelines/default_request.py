"""What a model asks to be asked: a JSON object under ``default_request`` in the metadata of its checkpoint.

::

    {"height": 256, "width": 256, "num_frames": 49, "frame_rate": 25.0, "num_inference_steps": 16,
     "video_guider_params": {"cfg_scale": 3.0, "stg_scale": 0.0}, "audio_guider_params": {"cfg_scale": 3.0}}

A field stands where a request leaves it out. Of the guider parameters each key replaces that one alone; the others
stay as they are for models of that version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ltx_core.errors import ConfigError, nearest_hint

Kind = tuple[str, Callable[[Any], bool]]  # in words, and whether a value is one


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, float) or _integer(value)


INTEGER: Kind = ("an integer", _integer)
NUMBER: Kind = ("a number", _number)
TEXT: Kind = ("a text", lambda value: isinstance(value, str))
OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))
NUMBERS: Kind = ("a list of numbers", lambda value: isinstance(value, list) and all(map(_number, value)))
BLOCKS: Kind = (
    "a list of integers or null",
    lambda value: value is None or (isinstance(value, list) and all(map(_integer, value))),
)
FIELDS: dict[str, Kind] = {
    **dict.fromkeys(("height", "width", "num_frames", "num_inference_steps", "max_batch_size"), INTEGER),
    "frame_rate": NUMBER,
    "sigmas": NUMBERS,
    "negative_prompt": TEXT,
    **dict.fromkeys(("video_guider_params", "audio_guider_params"), OBJECT),
}
GUIDER_FIELDS: dict[str, Kind] = {
    **dict.fromkeys(("cfg_scale", "stg_scale", "rescale_scale", "modality_scale"), NUMBER),
    "stg_blocks": BLOCKS,
    "skip_step": INTEGER,
}


def read_default_request(text: str, where: str) -> dict[str, Any]:
    """The fields of ``text`` under the names of `Request`; guider parameters as the keys that were given.

    Raises `ConfigError` that names the file ``where`` it stands, and the field.
    """
    place = f"{where}: default_request"
    try:
        asked = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place} is no JSON: {error}") from error
    if not isinstance(asked, dict):
        raise ConfigError(f"{place} is {type(asked).__name__}, expected an object")
    _check(asked, FIELDS, place)
    for name, value in asked.items():
        if isinstance(value, dict):
            _check(value, GUIDER_FIELDS, f"{place}, {name}")
    return asked


def _check(values: Mapping[str, Any], fields: Mapping[str, Kind], place: str) -> None:
    """Every name is known and every value of its kind."""
    for name, value in values.items():
        if name not in fields:
            hint = nearest_hint(name, fields) or f"; expected one of {', '.join(fields)}"
            raise ConfigError(f"{place}: no field is called {name}{hint}")
        kind, fits = fields[name]
        if not fits(value):
            raise ConfigError(f"{place}: {name} is {value!r}, expected {kind}")
