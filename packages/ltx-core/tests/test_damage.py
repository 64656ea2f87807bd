"""Damaged files: each mutation loads with identical tensors or is a ``CheckpointError``, never anything else."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_checkpoints import UPSAMPLER, metadata, upsampler_tensors

from ltx_core.errors import CheckpointError
from ltx_core.loader import Checkpoint
from ltx_core.loader.safetensors_file import SafetensorsFile, save_checkpoint

MUTATIONS = 300


def flip_bytes(data: bytes, rng: random.Random, end: int) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(end)] ^= rng.randrange(1, 256)
    return bytes(changed)


def flip_anywhere(data: bytes, rng: random.Random) -> bytes:
    return flip_bytes(data, rng, len(data))


def flip_in_header(data: bytes, rng: random.Random) -> bytes:
    return flip_bytes(data, rng, 8 + struct.unpack("<Q", data[:8])[0])


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def extend(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 64))


def lie_about_length(data: bytes, rng: random.Random) -> bytes:
    return struct.pack("<Q", rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1, rng.randrange(2**20)))) + data[8:]


def edit_header(data: bytes, rng: random.Random) -> bytes:
    """Rewrite one thing in the parsed header."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    numbers = (0, -1, 1, 3, 2**31, 2**62, 10**30, 1.5, None, "8", True)
    kind = rng.randrange(7)
    if kind == 0:
        entry["shape"] = [rng.choice(numbers) for _ in range(rng.randrange(5))]
    elif kind == 1:
        entry["shape"] = entry["shape"][::-1] + [1] * rng.randrange(2)
    elif kind == 2:
        entry["data_offsets"] = [rng.choice(numbers), rng.choice(numbers)]
    elif kind == 3:
        entry["dtype"] = rng.choice(("F32", "I32", "F16", "BF16", "F8_E4M3", "X", None))
    elif kind == 4:
        header[name + "x"] = header.pop(name)
    elif kind == 5:
        del header[name]
    else:
        key = rng.choice(list(header["__metadata__"]))
        header["__metadata__"][key] = rng.choice(
            ("", "{", "null", json.dumps({**UPSAMPLER, "num_blocks_per_stage": 2}))
        )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


MUTATORS = (flip_anywhere, flip_in_header, truncate, extend, lie_about_length, edit_header, edit_header)


def mutants(data: bytes) -> list[bytes]:
    rng = random.Random(0)
    return [MUTATORS[i % len(MUTATORS)](data, rng) for i in range(MUTATIONS)]


def test_our_files_are_never_read_wrongly(tmp_path: Path) -> None:
    tensors = upsampler_tensors()
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, tensors, metadata(UPSAMPLER))
    refused = 0
    for mutant in mutants(path.read_bytes()):
        path.write_bytes(mutant)
        try:
            state = Checkpoint.open(path).build("latent_upsampler").state_dict()
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert refused > MUTATIONS * 0.9


def test_published_files_give_right_shapes_or_an_error(tmp_path: Path) -> None:
    """Without digests a flipped weight cannot be told from a weight; everything else can."""
    tensors = upsampler_tensors()
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata(UPSAMPLER))
    for mutant in mutants(path.read_bytes()):
        path.write_bytes(mutant)
        try:
            state = Checkpoint.open(path).build("latent_upsampler").state_dict()
        except CheckpointError:
            continue
        assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in tensors.items()}


def test_a_lying_header_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"x": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}}).encode()
    tracemalloc.start()
    for length in (len(header), 2**40):
        path.write_bytes(struct.pack("<Q", length) + header)
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_digests_are_checked_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, upsampler_tensors(), metadata(UPSAMPLER))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: tensor .* does not match"):
        Checkpoint.open(path).build("latent_upsampler")
    unchecked = Checkpoint.open(path, verify=False)
    unchecked.build("latent_upsampler")
    with pytest.raises(CheckpointError, match="is damaged"):
        unchecked.verify()
