"""A clip, a batch and a data set that are killed again and again end as if they had never been, bit for bit.

Training is killed in `packages/ltx-trainer/tests/test_resume.py`, a long clip in `test_long.py` of the pipelines.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx_core.types import Audio
from ltx_media.audio import read_audio
from ltx_media.video import read_frames
from ltx_media.writer import write_video
from tests.fuzz.kills import command, dataset, killed, whole

KILLS = pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
SMALL = ["--height", "64", "--width", "64", "--num-frames", "9", "--model", "tiny", "-q"]


def same_clips(left: Path, right: Path) -> bool:
    """Whether two clips have the same frames and samples."""
    frames = all(torch.equal(a, b) for a, b in zip(read_frames(left), read_frames(right), strict=True))
    sounds = [read_audio(path) for path in (left, right)]
    return frames and all(sounds) and torch.equal(sounds[0].waveform, sounds[1].waveform)  # type: ignore[union-attr]


def hurt(
    kills: int,
    target: Callable[..., None],
    arguments: Callable[[Path], Sequence[Any]],
    finished: Callable[[Path], int],
    check: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """Kill work at random moments, let it end, compare; again in another folder until it was killed often enough.

    ``finished`` counts the files that are done in a folder: some kills come before the first, some after it.
    """
    rng = random.Random(kills)
    (tmp_path / "whole").mkdir()
    seconds = whole(target, arguments(tmp_path / "whole"), tmp_path)
    moments: Counter[bool] = Counter()
    for number in range(20 * kills):
        folder = tmp_path / str(number)
        folder.mkdir()
        while moments.total() < kills:
            earliest = 0.3 if moments.total() % 2 else 0.0
            if not killed(target, arguments(folder), tmp_path, rng.uniform(earliest, 0.95) * seconds):
                break
            moments[finished(folder) > 0] += 1
            if number % 2:  # every other folder is hurt once
                break
        whole(target, arguments(folder), tmp_path)
        check(tmp_path / "whole", folder)
        if moments.total() >= kills:
            break
    assert moments.total() == kills
    if kills > 1:
        assert moments[True] and moments[False], moments


def leftovers(folder: Path) -> list[Path]:
    """Files of half-finished work."""
    return [path for path in folder.rglob("*") if ".writing-" in path.name or path.name.endswith(".tmp")]


@KILLS
def test_generate(kills: int, tmp_path: Path) -> None:
    def line(folder: Path) -> Sequence[Any]:
        output = folder / "a.mp4"
        options = ["--seed", "3", "--keep-latents", "--overwrite", "-o", str(output)]
        return (["distilled", "a bell rings", *SMALL, *options],)

    def check(left: Path, right: Path) -> None:
        assert same_clips(left / "a.mp4", right / "a.mp4") and not leftovers(right)
        latents = [(folder / "a.stage1.safetensors").read_bytes() for folder in (left, right)]
        assert latents[0] == latents[1]

    hurt(kills, command, line, lambda folder: len(list(folder.glob("a.*.safetensors"))), check, tmp_path)


@KILLS
def test_batch(kills: int, tmp_path: Path) -> None:
    lines = [{"prompt": "a bell rings", "seed": seed, "output": f"{seed}.mp4"} for seed in (1, 2)]
    sizes = {"height": 64, "width": 64, "num_frames": 9, "model": "tiny", "pipeline": "distilled"}
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps({**one, **sizes}) + "\n" for one in lines))

    def line(folder: Path) -> Sequence[Any]:
        return (["batch", str(tmp_path / "batch.jsonl"), "-o", str(folder), "-q"],)

    def check(left: Path, right: Path) -> None:
        assert sorted(path.name for path in right.iterdir()) == ["1.mp4", "2.mp4"]
        assert all(same_clips(left / name, right / name) for name in ("1.mp4", "2.mp4"))

    hurt(kills, command, line, lambda folder: len(list(folder.glob("[12].mp4"))), check, tmp_path)


@KILLS
def test_dataset(kills: int, tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        pictures = [torch.full((64, 96, 3), 20 * number + frame, dtype=torch.uint8) for frame in range(20)]
        write_video(tmp_path / f"{number}.mp4", pictures, 24, Audio(torch.randn(1, 14000).mul(0.1), 16000))
        rows.append({"video": f"{number}.mp4", "caption": f"clip {number}"})
    table = tmp_path / "t.json"
    table.write_text(json.dumps(rows))

    def records(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}

    def check(left: Path, right: Path) -> None:
        assert len(records(left)) == 10 and records(left) == records(right)

    hurt(kills, dataset, lambda folder: (table, folder), lambda folder: len(records(folder)), check, tmp_path)
