"""Damaged files of every kind, made anew from fixed seeds, and those that once got past."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.harness import CASES, check, run_cases
from tests.fuzz.targets import TARGETS

QUICK, QUICK_DEAR = 25, 6  # cases of each target in `make test`; of those that plan or build a model each time
DEAR = ("recipes", "stages", "batches", "model-configs", "text-encoders")
SLOW = 10_000

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_end_in_a_line(name: str, tmp_path: Path) -> None:
    _, found = run_cases(TARGETS[name], tmp_path, range(QUICK_DEAR if name in DEAR else QUICK))
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_very_many_damaged_files(name: str, tmp_path: Path) -> None:
    _, found = run_cases(TARGETS[name], tmp_path, range(SLOW))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", sorted(CASES.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_got_past(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case is ``<target>/<what>-<name of the file>``; prepared data lie in ``data``, empty."""
    monkeypatch.chdir(tmp_path)
    for folder in ("conditions", "latents", "audio_latents"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    copy = tmp_path / path.name.rsplit("-", 1)[1]
    copy.write_bytes(path.read_bytes())
    check(TARGETS[path.parent.name], copy)


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_are_read(name: str, tmp_path: Path) -> None:
    """The targets do read: of their whole files at least one each is accepted."""
    target = TARGETS[name]
    read = 0
    for file, data in target.seeds().items():
        (tmp_path / file).write_bytes(data)
        read += check(target, tmp_path / file)
    assert read
