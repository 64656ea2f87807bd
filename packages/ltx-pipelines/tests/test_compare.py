"""`ltx compare`: distances of pictures and sounds, and what differs in recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ltx_core.types import Audio
from ltx_media.writer import LOSSLESS
from ltx_pipelines.cli.app import run
from ltx_pipelines.cli.compare import differences, flat
from ltx_pipelines.utils.media_io import decode_image, write_png, write_video, write_wav


def clip(path: Path, seed: int, shift: int = 0, recipe: dict[str, object] | None = None) -> Path:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 200, (9, 32, 64, 3), generator=generator, dtype=torch.uint8)
    frames[5] += shift
    sound = Audio(torch.rand(2, 6000, generator=generator) - 0.5, 16000)
    metadata = {"recipe": json.dumps(recipe)} if recipe else None
    write_video(path, [frames], 24, sound, LOSSLESS, metadata)
    return path


def test_distances_and_the_frame_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = clip(tmp_path / "a.mp4", 1, 0, {"plan": {"seed": 1, "stages": [{"sigmas": [1, 0]}]}})
    other = clip(tmp_path / "b.mp4", 1, 10, {"plan": {"seed": 2, "stages": [{"sigmas": [1, 0.5, 0]}]}})
    assert run(["compare", str(one), str(one)]) == 0
    assert capsys.readouterr().out == "picture: equal\nsound: equal\nrecipes: no difference\n"
    sheet = tmp_path / "sheet.png"
    assert run(["compare", str(one), str(other), "-o", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "picture: 37.67 dB, frame 5 the worst with 28.13 dB" in said and "sound: equal" in said
    assert "  plan.seed: 1 -> 2\n  plan.stages.0.sigmas: [1, 0] -> [1, 0.5, 0]\n" in said
    page = decode_image(sheet)
    assert page.shape[1] == 1600 and int((page == 40).all(-1).sum()) > 1000  # 10, four times as strong
    assert run(["compare", str(one), str(other), "-o", str(sheet)]) == 1
    assert "there already" in capsys.readouterr().err


def test_what_cannot_be_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = clip(tmp_path / "a.mp4", 1)
    write_png(tmp_path / "b.png", torch.zeros(32, 32, 3, dtype=torch.uint8))
    write_wav(tmp_path / "c.wav", Audio(torch.zeros(2, 100), 24000))
    assert run(["compare", str(one), str(tmp_path / "b.png"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["picture"]["size"] == ["64 x 32", "32 x 32"] and "psnr" not in facts["picture"]
    assert facts["sound"] is None and facts["recipe"] == {}
    assert run(["compare", str(one), str(tmp_path / "c.wav")]) == 0
    assert capsys.readouterr().out.startswith("picture: not in both\nsound: rate 16000 and 24000\n")
    assert run(["compare", str(one)]) == 2 and run(["compare", str(one), str(tmp_path / "none.mp4")]) == 1
    assert "No such file" in capsys.readouterr().err.splitlines()[-1]


def test_how_a_clip_hangs_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    windows = [{"first": 0, "last": 4}, {"first": 2, "last": 8, "shared": 1}]
    one = clip(tmp_path / "a.mp4", 1, 50, {"plan": {"stages": [{"windows": windows}]}})
    assert run(["compare", str(one), "--coherence"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("a.mp4: frame 5 changes most") or said[0].startswith("a.mp4: frame 6 changes most")
    assert said[1].startswith("a.mp4: seams: frame 3 the worst of 1, ") and said[2].startswith("a.mp4: drift a second")
    assert said[1].endswith("% of all frames change more")
    assert run(["compare", str(one), "--coherence", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["coherence"]["a.mp4"]["seams"][0]["frame"] == 3


def test_places_in_a_recipe() -> None:
    assert flat({"a": [1, 2], "b": [{"c": 1}], "d": {}}) == {"a": [1, 2], "b.0.c": 1}
    assert list(differences({"a": 1, "b": 2}, {"b": 2, "c": 3})) == [("a", (1, None)), ("c", (None, 3))]
