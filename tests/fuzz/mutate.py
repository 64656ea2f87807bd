"""Damage: bytes at random, values by grammar. Everything is a function of a `random.Random`."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

HUGE = "1" * 10_000
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 2**31, 2**53, 10**12, 10**30, 10**300, 0.5, -0.0, 1e-300, 1e308),
    *(
        "",
        " ",
        "x",
        "x" * 5000,
        "\x00",
        "\ud800",
        "é\u2028\u202e",
        "../../etc/passwd",
        "/dev/zero",
        "~nobody/a.mp4",
        "-1",
        "1e999",
        *("http://127.0.0.1:47123/a.mp4", HUGE),
    ),
    *([], {}, [[]], [None], [0, 0, 0], [1] * 300, {"": None}, {"a": {"b": {}}}, [{}], ["a", 1], [10**12]),
)
PLACES = (0, 1, 0x7F, 0x80, 0xFF)
WORDS = (b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00")


def deep(levels: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat, insert and reorder bytes, mostly near the front, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            return bytes(changed)
        reach = len(changed) if rng.random() < 0.4 else min(len(changed), rng.choice((16, 64, 256, 4096)))
        at, kind = rng.randrange(reach), rng.randrange(8)
        length = min(rng.choice((1, 2, 4, 8, 32, 256)), len(changed) - at)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((*PLACES, rng.randrange(256)))
        elif kind == 2:
            changed[at : at + 4] = rng.choice(WORDS)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 3, 50))
        elif kind == 5:
            changed[at:at] = rng.randbytes(length)
        elif kind == 6:
            del changed[rng.randrange(len(changed)) :]
        else:
            other = rng.randrange(len(changed))
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value, its own included."""
    yield path
    if len(path) > 40:
        return
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*path, key))


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Another value: parts replaced, removed, renamed, repeated, swapped or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *parents, key = rng.choice([path for path in places(value) if path] or [("",)])
        inside = value
        for step in parents:
            inside = inside[step]
        if not isinstance(inside, dict | list) or not inside:
            return rng.choice(NASTY)
        kind = rng.randrange(8)
        if kind < 4:
            inside[key] = copy.deepcopy(rng.choice(NASTY))
        elif kind == 4:
            del inside[key]
        elif kind == 5 and isinstance(inside, dict):
            inside[rng.choice(("x", "", f"{key}x", "__class__", "type"))] = inside.pop(key)
        elif kind == 6:
            text = as_json(inside[key])[:200].decode("utf-8", "replace")
            inside[key] = rng.choice(([inside[key]], {"a": inside[key]}, text, deep(rng.choice((5, 70, 3000)))))
        elif isinstance(inside[key], int | float) and not isinstance(inside[key], bool):
            inside[key] = rng.choice((-1, 0, 2, 10, 1000)) * inside[key]
    return value


def as_json(value: Any) -> bytes:
    """JSON as hostile writers give it: whatever Python can say, half surrogates and deep nesting included."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000
    except ValueError:
        return b'{"a": ' + HUGE.encode() + b"}"


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON text damaged as a value, now and then as text too."""
    text = as_json(mutate_value(json.loads(data), rng))
    return mutate_bytes(text, rng) if rng.random() < 0.15 else text


def mutate_safetensors(*entries: str) -> Callable[[bytes, random.Random], bytes]:
    """Damage the header of a safetensors file as a value, or JSON texts in its metadata; now and then the bytes."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.1:
            return mutate_bytes(data, rng)
        (length,) = struct.unpack("<Q", data[:8])
        header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
        metadata = header.get("__metadata__", {})
        present = [entry for entry in entries if entry in metadata]
        if present and rng.random() < 0.8:
            entry = rng.choice(present)
            metadata[entry] = mutate_json(metadata[entry].encode(), rng).decode("utf-8", "replace")
        else:
            header = mutate_value(header, rng)
        text = as_json(header)
        return struct.pack("<Q", len(text)) + text + rest

    return mutate
