"""Text people write: where lines end, and one line for whatever is wrong with a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltx_core.errors import ConfigError
from ltx_core.textfiles import lines_of, parse_json, read_csv, read_json, read_json_lines, read_text, read_yaml

ODD = "a\u2028b\u0085c\x0bd\x0ce\x1cf"


def test_lines_end_at_newlines_only() -> None:
    assert lines_of(f"{ODD}\r\n\r\nsecond\n") == [ODD, "", "second"]
    assert lines_of("\ufeffx") == ["x"] and lines_of("") == []


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    (tmp_path / "a.csv").write_bytes("\ufeffcaption,video\r\nx,a.mp4\r\n".encode())
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_json(tmp_path / "a.json") == read_yaml(tmp_path / "a.yaml") == {"a": 1}
    assert list(read_json_lines(tmp_path / "a.json")) == [(1, {"a": 1})]
    assert read_csv(tmp_path / "a.csv") == [{"caption": "x", "video": "a.mp4"}]


def test_odd_characters_in_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'caption,video\n{ODD},a.mp4\n"one\ntwo, three",b.mp4\n', newline="")
    assert [row["caption"] for row in read_csv(tmp_path / "a.csv")] == [ODD, "one\ntwo, three"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_spreadsheets(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.csv").write_text(f'caption{separator}video\n"one{separator} two"{separator}a.mp4\n')
    assert read_csv(tmp_path / "a.csv") == [{"caption": f"one{separator} two", "video": "a.mp4"}]


def test_a_table_in_latin_1_is_read_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_bytes("caption;video\ncafé;a.mp4\n".encode("latin-1"))
    assert read_csv(tmp_path / "a.csv") == [{"caption": "café", "video": "a.mp4"}]
    assert "a.csv is no UTF-8 text: read as Latin-1" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "{", "a.json: it is no JSON"),
        ("a.json", "[" * 100_000, "a.json: it is nested too deeply"),
        ("a.json", '{"a": 1, "a": 2}', "'a' is given twice"),
        ("a.json", "[NaN]", "NaN is no number"),
        ("a.json", "[1e999]", "1e999 is no number"),
        ("a.json", "9" * 10_000, "a.json: it is no JSON"),
        ("a.jsonl", '{"a": 1}\n\n{', "a.jsonl, line 3: it is no JSON"),
        ("a.yaml", "a: [", "a.yaml: it is no YAML"),
        ("a.yaml", "[" * 10_000, "a.yaml: it is nested too deeply"),
        ("a.yaml", "a: 1\na: 2", "'a' is given twice"),
        ("a.yaml", "a: 2024-99-99", "a.yaml: it is no YAML"),
        ("a.yaml", "!!python/object:os.system {}", "a.yaml: it is no YAML"),
        ("a.csv", "caption,video\nx,a.mp4\na red, round ball,b.mp4\n", "row 2 has 3 cells, the header 2; put quotes"),
        ("a.csv", "video,video\na,b\n", "'video' is given twice"),
        ("a.csv", "caption\nx\n".encode("utf-16"), "a.csv, line 1: it is no UTF-8 text"),
        ("a.json", "{}".encode("utf-16"), "a.json, line 1: it is no UTF-8 text"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": read_json,
        ".jsonl": lambda path: list(read_json_lines(path)),
        ".yaml": read_yaml,
        ".csv": read_csv,
    }
    with pytest.raises(ConfigError) as caught:
        readers[path.suffix](path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_text_from_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none: No such file"):
        read_text(tmp_path / "none")
    with pytest.raises(ConfigError, match="header of a: it is no JSON"):
        parse_json("x", "header of a")


#: What reads JSON, YAML or CSV by itself, and why.
BY_THEMSELVES = {
    "ltx_core/textfiles.py": "the guarded reader",
    "ltx_pipelines/running/recipe.py": "text it has just written",
    "ltx_pipelines/cli/plan.py": "text it has just written",
    "ltx_studio/supervisor.py": "lines of its own worker",
    "ltx_studio/fleet.py": "lines of its own worker",
    "ltx_studio/store.py": "its own database",
    "ltx_studio/planner.py": "lines of its own server",
    "ltx_trainer/run_log.py": "its own table",
    "ltx_trainer/processing/captions.py": "a string inside an answer",
    "ltx_trainer/config_file.py": "a value on a line",
}


def test_nothing_else_reads_json_yaml_or_csv() -> None:
    packages = Path(__file__).resolve().parents[2]
    reads = re.compile(r"json\.loads?\(|yaml\.(safe_)?load\(|csv\.(reader|DictReader)\(")
    found = {
        str(path.relative_to(path.parents[len(path.parts) - path.parts.index("src") - 2]))
        for path in packages.glob("*/src/**/*.py")
        if reads.search(path.read_text())
    }
    assert found == BY_THEMSELVES.keys()


def test_yaml_with_tuples_and_merges(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: &b {x: 1}\none:\n  <<: *b\n  y: !!python/tuple [1, 2]\n")
    assert read_yaml(tmp_path / "a.yaml")["one"] == {"x": 1, "y": [1, 2]}
