"""The training state on disk: one safetensors file that holds all a run needs to go on as if never stopped.

A state is written to a temporary name and renamed, so a file that has its final name is complete. Processes that hold
parts of a tensor write them to their places in it: the file is the same however many there are, and any number of
processes goes on from it, each mapping the file and copying its parts alone. It holds
``model.<parameter>``, ``optimizer.<parameter>.<slot>`` and ``ema.<parameter>`` tensors, ``rng.cpu`` (and ``rng.cuda``),
and a JSON header entry ``state`` with the step and the fingerprint of the settings that must agree on resume.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.safetensors_file import DTYPES, build_header, save_tensors
from ltx_core.textfiles import parse_json

logger = logging.getLogger(__name__)

STATE_NAME = "training_state_step_{step:05d}.safetensors"
STEP_PATTERN = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class TrainingState:
    """Everything that changes while training. Tensors may be sharded."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]]
    ema: Mapping[str, Tensor] = field(default_factory=dict)
    rng: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


def save_state(folder: Path, state: TrainingState) -> Path:
    """Write ``state`` into ``folder`` under its step's name and return the file; every process of a run calls this."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.items()}
    for name, slots in state.optimizer.items():
        tensors |= {f"optimizer.{name}.{slot}": tensor for slot, tensor in slots.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in state.ema.items()}
    tensors |= {f"rng.{name}": tensor for name, tensor in state.rng.items()}
    path = folder / STATE_NAME.format(step=state.step)
    header = {"step": state.step, "fingerprint": dict(state.fingerprint)}
    write = save_parts if any(isinstance(tensor, DTensor) for tensor in tensors.values()) else save_whole
    write(path, tensors, {"state": json.dumps(header)})
    return path


def save_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The first process writes, all have the same."""
    if is_main():
        save_tensors(path, tensors, metadata)


def save_parts(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Every process writes its rows of sharded tensors into one file, the first the header and all that is whole.

    Raises `CheckpointError` where the disk is full or the folder cannot be written.
    """
    types = {f"torch.{kind}": stored_as for stored_as, (kind, _) in DTYPES.items()}
    kinds = {name: (types[str(tensor.dtype)], tuple(tensor.shape)) for name, tensor in tensors.items()}
    header, spans = build_header(kinds, metadata)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(header)
                file.truncate(max(end for _, end in spans.values()))
        dist.barrier()
        with temporary.open("r+b") as file:
            for name, tensor in tensors.items():
                row = first_row(tensor)
                if row is None or not (part := local(tensor).detach().cpu().contiguous()).numel():
                    continue
                offset = row * part[0].nbytes if part.ndim else 0
                file.seek(spans[name][0] + offset)
                file.write(part.reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        dist.barrier()
        if is_main():
            temporary.replace(path)
        dist.barrier()
    except OSError as error:
        if is_main():
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error}") from error


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_row(tensor: DTensor) -> int:
    """First of the rows that this process holds."""
    for dim, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            assert placement.dim == 0
            length = -(-tensor.shape[0] // tensor.device_mesh.size(dim))
            return min(tensor.device_mesh.get_local_rank(dim) * length, tensor.shape[0])
    return 0


def first_row(tensor: Tensor) -> int | None:
    """The first row that this process writes; None where another one writes what it has."""
    if not isinstance(tensor, DTensor):
        return 0 if is_main() else None
    copies = [dim for dim, placement in enumerate(tensor.placements) if not isinstance(placement, Shard)]
    return None if any(tensor.device_mesh.get_local_rank(dim) for dim in copies) else own_row(tensor)


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A copy of ``tensor``, which every process can read, on the device of ``other``; of a sharded one the own part."""
    if not isinstance(other, DTensor):
        return tensor.to(other.device, copy=True)
    start, held = own_row(other), other.to_local()
    part = tensor[start : start + len(held)].to(held.device, copy=True)
    return DTensor.from_local(part, other.device_mesh, other.placements, shape=other.shape, stride=other.stride())


def is_main() -> bool:
    """Whether this is the first process of a run."""
    return not dist.is_initialized() or dist.get_rank() == 0


def load_state(path: Path) -> TrainingState:
    """Read a state file. Raises `CheckpointError` when it is not one."""
    step, fingerprint = state_header(path)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "ema": {}, "rng": {}}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                group, name = key.split(".", 1)
                groups[group][name] = file.get_tensor(key)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a training state: {error}") from error
    optimizer: dict[str, dict[str, Tensor]] = {}
    for key, tensor in groups["optimizer"].items():
        name, slot = key.rsplit(".", 1)
        optimizer.setdefault(name, {})[slot] = tensor
    return TrainingState(step, groups["model"], optimizer, groups["ema"], groups["rng"], fingerprint)


def state_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and fingerprint of a whole state file, without its tensors. Raises `CheckpointError` when it is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {}).get("state", "null"), "state")
        step, fingerprint = header["step"], header["fingerprint"]
        if not isinstance(step, int) or not isinstance(fingerprint, dict):
            raise TypeError("its header names no step")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a training state: {error}") from error
    return step, fingerprint


def step_of(path: Path) -> int:
    """The step in a checkpoint's file name, -1 when it names none."""
    match = STEP_PATTERN.search(path.name)
    return int(match[1]) if match else -1


def newest(paths: Iterable[Path]) -> list[Path]:
    """Checkpoint files by step, newest first."""
    return sorted((path for path in paths if step_of(path) >= 0), key=step_of, reverse=True)


def latest_state(folder: Path) -> Path | None:
    """The newest whole state in ``folder``; a damaged one is passed over, with a line, for the one before it.

    Raises `CheckpointError` where there are states and none can be read.
    """
    problems = []
    for path in newest(folder.glob("training_state_step_*.safetensors")):
        try:
            state_header(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning("%s; going on from the one before it", problem)
        return path
    if problems:
        hint = "choose another output_dir, or give --overwrite to start anew"
        raise CheckpointError(f"{folder}: none of {len(problems)} states can be read, first: {problems[0]}; {hint}")
    return None


def checkpoint_files(folder: Path) -> list[Path]:
    """States and weights of a run in its folder of checkpoints, newest first."""
    return newest(folder.glob("*step_*.safetensors"))


def check_unused(folder: Path) -> None:
    """Refuse a folder of checkpoints for a new run where another has left some. Raises `ConfigError`."""
    if files := checkpoint_files(folder):
        hint = "a new run needs a new or empty output_dir, or --overwrite, which deletes them"
        raise ConfigError(f"{folder} holds {len(files)} checkpoints, newest {files[0].name}; {hint}")


def retain(folder: Path, keep_last_n: int, step: int) -> None:
    """Of each kind keep the ``keep_last_n`` newest files up to ``step``, and all later ones; -1 and 0 keep all."""
    if keep_last_n <= 0:
        return
    kinds: dict[str, list[Path]] = {}
    for path in checkpoint_files(folder):
        if step_of(path) <= step:
            kinds.setdefault(STEP_PATTERN.sub("", path.name), []).append(path)
    for paths in kinds.values():
        for path in paths[keep_last_n:]:
            path.unlink(missing_ok=True)


def rng_state() -> dict[str, Tensor]:
    """States of the global generators, for whatever a module draws by itself (dropout)."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: Mapping[str, Tensor]) -> None:
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
