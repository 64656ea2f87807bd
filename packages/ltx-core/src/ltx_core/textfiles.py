"""Text people write: one guarded reader, in which whatever is wrong with a file becomes one line that names it.

Files are UTF-8, with or without a byte order mark. Lines end at ``\\n`` or ``\\r\\n`` and nowhere else: U+2028, U+0085
and vertical tabs are content.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from ltx_core.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

BOM = "\ufeff"
LARGEST = 2**26  # bytes of a file
DEEPEST = 64  # objects in objects
MOST_NODES = 10**6  # of a YAML file with its aliases written out
LONGEST_NUMBER = 40  # digits
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
SEPARATORS = tuple(NAMES)


def path_of(text: str | Path) -> Path:
    """The path that a text names, ``~`` being a user's folder; as it stands where there is no such user."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (whose way raises what nobody expects)


def read_text(path: str | Path) -> str:
    """The text of a file, without its byte order mark. Raises `ConfigError`, also for one of more than `LARGEST`."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ConfigError(f"{path} is larger than {LARGEST // 2**20} MiB, expected a text that people write")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: it is no UTF-8 text; save it as UTF-8") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends."""
    lines = [line.removesuffix("\r") for line in text.removeprefix(BOM).split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def parse_json(text: str, where: str) -> Any:
    """JSON as Python values. Refused are a key that is given twice, numbers without a value or of more digits than
    numbers have, text that no file can hold (half a surrogate pair), and objects nested deeper than `DEEPEST`.

    Raises `ConfigError` that begins with ``where``.
    """
    try:
        text = text.removeprefix(BOM)
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
        _check_depth(value)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"{where}: it is no JSON: {error}") from error


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object that a model's files hold. Raises `CheckpointError` that begins with ``where``."""
    try:
        value = parse_json(text if isinstance(text, str) else text.decode(), where)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: it is no UTF-8 text") from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: it is {value!r:.60}, expected a JSON object")
    return value


def read_json(path: str | Path) -> Any:
    """A JSON file. Raises `ConfigError`."""
    return parse_json(read_text(path), str(path))


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Number and value of every line of a file that is not blank. Raises `ConfigError` that names the line."""
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}")


def read_yaml(path: str | Path) -> Any:
    """A YAML file; a key that is given twice is refused, tuples are lists. Raises `ConfigError`."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.value != "<<"]
            _refuse_twice([key for key in keys if isinstance(key, str)])
            return super().construct_mapping(node, deep)

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)
    text = read_text(path)
    try:
        if _brackets(text) > DEEPEST:  # whose reading takes the square of their number
            raise RecursionError
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _nodes(node, {})
        value = loader.construct_document(node)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False, default=str).encode()
        return value
    except RecursionError as error:
        raise ConfigError(f"{path}: it is nested too deeply") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path}: it is no YAML: {' '.join(str(error).split())}") from error


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names in its first line. Raises `ConfigError` for a row with more cells than those.

    Cells end at the commas, semicolons or tabs that the first line has most of; one inside a cell needs quotes around
    the cell. A file that is no UTF-8 is read as Latin-1, and a line says so.
    """
    text = _table_text(path)
    lines = text.split("\n")
    separator = max(SEPARATORS, key=lines[0].count)
    reader = csv.reader((line + "\n" for line in (lines[:-1] if lines[-1] == "" else lines)), delimiter=separator)
    rows: list[dict[str, str]] = []
    header: list[str] | None = None
    try:
        for row in reader:
            if header is None:
                header = row
                _refuse_twice([name for name in header if name])
            elif len(row) > len(header):
                count = f"row {len(rows) + 1} has {len(row)} cells, the header {len(header)}"
                raise ConfigError(f"{path}: {count}; put quotes around cells that hold {NAMES[separator]}")
            elif row:
                rows.append(dict(zip(header, row, strict=False)))
    except (csv.Error, ValueError) as error:
        raise ConfigError(f"{path}, line {reader.line_num}: it is no CSV: {error}") from error
    return rows


def _nodes(node: Any, known: dict[int, int], depth: int = 0) -> int:
    """Number of nodes a YAML node stands for with its aliases written out. Raises ``ValueError`` for too many."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if id(node) not in known:
        known[id(node)] = MOST_NODES  # until it is known: an alias to itself is endless
        inside = node.value if isinstance(node.value, list) else ()
        parts = (part for one in inside for part in (one if isinstance(one, tuple) else (one,)))
        known[id(node)] = 1 + sum(_nodes(part, known, depth + 1) for part in parts)
        if isinstance(node.value, str) and node.tag.endswith(":int") and len(node.value) > LONGEST_NUMBER:
            raise ValueError(f"{node.value[:20]}... has {len(node.value)} digits, expected at most {LONGEST_NUMBER}")
    if known[id(node)] >= MOST_NODES:
        raise ValueError(f"its aliases stand for more than {MOST_NODES:,} values")
    return known[id(node)]


def _brackets(text: str) -> int:
    """The most brackets of a text that are open at once."""
    steps = (1 if one[0] in "[{" else -1 for one in re.finditer(r"[\[\]{}]", text))
    return max(accumulate(steps), default=0)


def _check_depth(value: Any) -> None:
    """Refuse values nested deeper than what reads them goes. Raises ``ValueError``."""
    level, depth = [value], 0
    while level := [
        inner
        for one in level
        if isinstance(one, dict | list)
        for inner in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"{text[:20]}... has {len(text)} digits, expected at most {LONGEST_NUMBER}")
    return int(text)


def _table_text(path: str | Path) -> str:
    """The text of a table, which spreadsheets do not always write in UTF-8."""
    try:
        return read_text(path)
    except ConfigError:
        data = Path(path).read_bytes() if Path(path).is_file() else b""
        if not data or b"\0" in data:
            raise
    logger.warning("%s is no UTF-8 text: read as Latin-1; save it as UTF-8 if letters look wrong", path)
    return data.decode("latin-1")


def _sequence(loader: Any, node: Any) -> Any:
    return loader.construct_sequence(node)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([key for key, _ in pairs])
    return dict(pairs)


def _refuse_twice(keys: list[str]) -> None:
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if twice is not None:
        raise ValueError(f"{twice!r} is given twice")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number that can be kept")
    return value
