"""Precomputed files: one record per clip and directory, a mapping of names to tensors and plain numbers.

    latents, reference_latents               latents [128, F', H', W'], num_frames, height, width (of the latent), fps
    audio_latents, reference_audio_latents   latents [8, T, 16], num_time_steps, frequency_bins, duration, present
    conditions                               video_prompt_embeds [L, Dv], audio_prompt_embeds [L, Da],
                                             prompt_attention_mask [L], valid tokens at the end
    video_masks, audio_masks                 mask [F', H', W'] or [T], 1 = given
    loss_masks                               mask [F', H', W'], how much the loss counts
    keyframe_latents                         latents [128, K, H', W'], K pictures encoded each alone, and of which
                                             pixel frames: frames [K], rising

A record is a safetensors file: tensors as tensors, numbers as JSON in the header entry ``values``, what it was made of
in the entry ``inputs``. The lists ``table.<name>.json`` say which records tables call for; others are not read. Of a
caption only the valid tokens are stored; reading pads them to ``padded_length``. `torch.save` files of plain dicts are
read as well, by the unpickler that builds nothing but tensors and plain values.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.safetensors_file import save_tensors
from ltx_core.textfiles import parse_json, read_json

Record = Mapping[str, Tensor | int | float]
Signature = tuple[Any, ...]

SUFFIX = ".safetensors"
SUFFIXES = (SUFFIX, ".pt")
VALUES, INPUTS, PADDED_LENGTH, MASK = "values", "inputs", "padded_length", "prompt_attention_mask"
LISTS = "table.*.json"
# Directories, and the roles of which a row of a table needs one to have a record there.
ROLES_OF = {
    "conditions": ("caption",),
    "latents": ("video",),
    "reference_latents": ("reference_video",),
    "video_masks": ("video_mask",),
    "audio_latents": ("audio", "video"),
    "reference_audio_latents": ("reference_audio",),
    "audio_masks": ("audio_mask",),
    "loss_masks": ("loss_mask",),
    "keyframe_latents": ("video",),
}
LONGEST_CAPTION = 2**16  # tokens
EMBEDS = "prompt_embeds"  # the end of the name of every caption tensor


def write_record(path: Path, record: Record, inputs: Mapping[str, str] | None = None) -> None:
    """Write a record under a temporary name, then rename it. Raises `CheckpointError` when the disk refuses.

    ``inputs`` says what it was made of.
    """
    tensors = {name: value for name, value in record.items() if isinstance(value, Tensor)}
    values = {name: value for name, value in record.items() if not isinstance(value, Tensor)}
    made_of = {} if inputs is None else {INPUTS: json.dumps(inputs)}
    save_tensors(path, tensors, {VALUES: json.dumps(values), **made_of})


def record_path(root: Path, directory: str, stem: Path) -> Path | None:
    """The record of a row, where there is one."""
    base = root / directory / stem
    return next((path for suffix in SUFFIXES if (path := base.with_name(base.name + suffix)).is_file()), None)


def caption_record(embeds: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor | int]:
    """The record of one caption: of each ``[L, D]`` tensor the rows where ``mask`` ``[L]`` is set."""
    valid = mask.bool()
    return {name: tensor[valid] for name, tensor in embeds.items()} | {PADDED_LENGTH: len(mask)}


def read_record(path: Path) -> dict[str, Tensor | int | float]:
    """Read a record. Raises `CheckpointError`, one line that names the file, when it is none."""
    if path.suffix == ".pt":
        return _read_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Tensor | int | float] = _values(file.metadata())
            record |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is no precomputed file: {error}") from error
    return _pad(record, path) if PADDED_LENGTH in record else record


def read_values(path: Path) -> dict[str, Any]:
    """The plain numbers of a record, without reading its tensors."""
    if path.suffix == ".pt":
        return {name: value for name, value in _read_pickle(path).items() if not isinstance(value, Tensor)}
    try:
        with safe_open(path, framework="pt") as file:
            return _values(file.metadata())
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is no precomputed file: {error}") from error


def read_inputs(path: Path) -> dict[str, str] | None:
    """The inputs that a record was made of, None where it does not say."""
    if path.suffix == ".pt":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return _values(metadata, INPUTS) if INPUTS in metadata else None
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is no precomputed file: {error}") from error


def listed_rows(root: Path, but: Path | None = None) -> dict[str, set[str]] | None:
    """The roles of every row that the lists of a data set name, by its stem; None where there is no list.

    ``but`` is a list that does not count. Raises `ConfigError` for a damaged one.
    """
    lists = [path for path in sorted(root.glob(LISTS)) if path != but]
    rows: dict[str, set[str]] = {}
    for path in lists:
        named = read_json(path)
        named = named.get("rows") if isinstance(named, dict) else None
        if not isinstance(named, dict) or not all(isinstance(roles, list) for roles in named.values()):
            raise ConfigError(f"{path} lists no rows; process the table again to make it")
        for stem, roles in named.items():
            rows.setdefault(stem, set()).update(map(str, roles))
    return rows if lists else None


def is_listed(directory: str, path: Path, rows: Mapping[str, set[str]]) -> bool:
    """Whether a row calls for the record at ``path``, relative to its directory."""
    roles = rows.get(path.with_suffix("").as_posix())
    known = ROLES_OF.get(directory)
    return roles is not None and (known is None or any(role in roles for role in known))


def _values(metadata: Mapping[str, str] | None, entry: str = VALUES) -> dict[str, Any]:
    values = parse_json((metadata or {}).get(entry, "{}"), entry)
    if not isinstance(values, dict):
        raise ValueError(f"{entry} is a {type(values).__name__}, expected an object")
    return values


def signature(path: Path) -> Signature:
    """Properties that records of a batch must share: tensor shapes as they are read, and the frame rate."""
    if path.suffix == ".pt":
        record = _read_pickle(path)
        shapes = {name: tuple(value.shape) for name, value in record.items() if isinstance(value, Tensor)}
        fps = record.get("fps")
    else:
        values = read_values(path)
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if PADDED_LENGTH in values:
            length = _length_of(values, path)
            shapes = {name: (length, *shape[1:]) for name, shape in shapes.items()} | {MASK: (length,)}
        fps = values.get("fps")
    if fps is not None and not isinstance(fps, int | float):
        raise CheckpointError(f"{path}: fps is {fps!r:.60}, expected a number")
    return signature_of(shapes, fps)


def signature_of(shapes: Mapping[str, tuple[int, ...]], fps: float | None = None) -> Signature:
    """The signature of a record with tensors of these shapes."""
    return (*sorted(shapes.items()), None if fps is None else round(float(fps), 3))


def _read_pickle(path: Path) -> dict[str, Tensor | int | float]:
    try:
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is no precomputed file: {reason}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds a {type(record).__name__}, expected a dict of tensors")
    return record


def _length_of(values: Mapping[str, Any], path: Path) -> int:
    """Tokens that a caption is padded to. Raises `CheckpointError` for what no caption is."""
    length = values[PADDED_LENGTH]
    if type(length) is not int or not 0 < length <= LONGEST_CAPTION:
        raise CheckpointError(f"{path}: {PADDED_LENGTH} is {length!r:.60}, expected 1 to {LONGEST_CAPTION}")
    return length


def _pad(record: Mapping[str, Tensor | int | float], path: Path) -> dict[str, Tensor | int | float]:
    """Caption tensors with zeros in front, and the mask that tells where the caption is."""
    length, padded = _length_of(record, path), {}
    count = 0
    for name, value in record.items():
        if isinstance(value, Tensor) and name.endswith(EMBEDS):
            if value.ndim != 2 or len(value) > length:
                raise CheckpointError(f"{path}: {name} is {list(value.shape)}, expected at most {length} rows")
            count = len(value)
            padded[name] = F.pad(value, (0, 0, length - count, 0))
    mask = torch.zeros(length, dtype=torch.int64)
    mask[length - count :] = 1
    return {**padded, MASK: mask}
