"""What makes `ltx` pleasant: variations, defaults, short help, completion, errors for programs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from ltx_core.errors import ConfigError
from ltx_core.types import Audio
from ltx_media.metrics import psnr
from ltx_media.preview import write_preview
from ltx_media.writer import sdr_encoding
from ltx_pipelines.cli.app import BASH, overview, run, words
from ltx_pipelines.cli.config import config_path, settings, with_settings
from ltx_pipelines.cli.fields import COMMON, every_option
from ltx_pipelines.utils.media_io import (
    decode_image,
    probe_video,
    read_audio,
    read_frames,
    read_recipe,
    write_video,
    write_wav,
)


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_variations_and_their_sheet(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = "one-stage -p bell -f 9 -n 2 --steps 1 -o bell.mp4 -s"
    assert run([*line.split(), "5"]) == 0
    assert capfd.readouterr().err.count("one-stage with ") == 1
    for seed in (5, 6):
        recipe = read_recipe(here / f"bell-{seed}.mp4")
        assert recipe is not None and recipe["plan"]["seed"] == seed and "count" not in recipe["request"]["options"]
    assert decode_image(here / "bell-sheet.png").shape[1] == 1600
    (here / "bell-sheet.png").unlink()
    assert run([*line.split(), "4"]) == 1  # all are planned before the first is made
    assert "bell-5.mp4 is there already" in capfd.readouterr().err and not (here / "bell-4.mp4").exists()


def test_defaults_of_ones_own(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LTX_MODEL", raising=False)
    assert run(["config"]) == 0 and "nothing is set" in capfd.readouterr().out
    assert run(["config", "model", "tiny"]) == run(["config", "dtype", "float32"]) == 0
    assert run(["config", "overwrite", "true"]) == 0
    capfd.readouterr()
    assert run(["config", "dtype"]) == 0 and capfd.readouterr().out == "float32\n"
    assert settings() == {"model": "tiny", "dtype": "float32", "overwrite": True}
    assert with_settings({"dtype": "bfloat16", "checkpoint_path": "a"}) == {
        "dtype": "bfloat16",
        "checkpoint_path": "a",
    } | {"overwrite": True}
    monkeypatch.setenv("LTX_MODEL", "other")
    assert "model" not in with_settings({})
    assert run(["config", "--unset", "model"]) == 0 and settings() == {"dtype": "float32", "overwrite": True}
    for line, said in (
        (["config", "modell", "a"], "modell has no default; nearest valid: model"),
        (["config", "prompt", "a"], "prompt has no default"),
        (["config", "dtype", "float8"], "dtype is 'float8', expected one of"),
    ):
        assert run(line) == 1 and said in capfd.readouterr().err
    config_path().write_text("[1]")
    with pytest.raises(ConfigError, match="is list, expected options"):
        settings()


def test_help_is_short_and_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert COMMON - {"pipeline"} <= every_option().keys()
    for name in ("generate", "distilled", "retake"):
        assert run([name, "--help"]) == run([name, "--help-all"]) == 0
        short, whole = capsys.readouterr().out.split(f"Usage: ltx {name} ")[1:]
        assert "--prompt" in short and "--quantization" not in short and "--help-all" in short
        assert "--quantization" in whole and len(whole) > 1.5 * len(short)
        assert max(map(len, f"{short}\n{whole}".splitlines())) <= 80
    assert "--start-time" in short
    assert max(map(len, overview().splitlines())) <= 80


def test_completion() -> None:
    assert {"generate", "distilled", "compare"} <= set(words([""]))
    assert {"--height", "--sampler"} <= set(words(["one-stage", "--h"]))
    assert words(["one-stage", "--sampler", ""])[:2] == ["euler", "euler_ancestral"]
    assert words(["models", ""]) == []
    line = "COMP_WORDS=(ltx distilled --h) COMP_CWORD=2; _ltx; echo $COMPREPLY"
    script = f"{BASH}\nltx() {{ echo --height --width; }}\n{line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout == "--height\n"
    assert run(["completion", "tcsh"]) == 2 and run(["completion", "zsh"]) == 0


def test_refusals_are_events_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["distilled", "-p", "x", "-H", "0", "--json"]) == 1
    shown = capfd.readouterr()
    message = "height is 0, expected at least 1; nearest valid: 1"
    assert json.loads(shown.out) == {"event": "error", "message": message}
    assert shown.err == f"ltx: {message}\n"


def test_the_bundled_model_needs_no_download(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "download", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny is bundled and there: ")


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.mov", "a.gif", "a.webp"])
def test_kinds_of_video_files(name: str, tmp_path: Path) -> None:
    path, recipe = tmp_path / name, {"recipe": json.dumps({"plan": {"prompt": "\u00e9" * 300}})}
    frames = torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(9, 48, 64, 3)
    sound = Audio(torch.sin(torch.arange(9000) * 0.05).expand(2, -1) * 0.3, 24000)
    if path.suffix in (".gif", ".webp"):
        write_preview(path, [frames], 24, metadata=recipe)
    else:
        assert write_video(path, [frames], 24, sound, sdr_encoding(10, path.suffix), recipe) == 9
        info, heard = probe_video(path), read_audio(path)
        assert (info.frames, info.fps, info.width) == (9, 24, 64) and heard is not None
        assert abs(heard.duration - 9 / 24) < 0.03
        read = torch.stack(list(read_frames(path))) / 255
        assert psnr(read, frames) > 35
    assert read_recipe(path) == json.loads(recipe["recipe"])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_kinds_of_sound_files(name: str, tmp_path: Path) -> None:
    sound = Audio(torch.sin(torch.arange(12000) * 0.05).expand(2, -1) * 0.3, 24000)
    write_wav(tmp_path / name, sound, {"recipe": json.dumps({"plan": 1})})
    heard = read_audio(tmp_path / name)
    assert heard is not None and heard.sampling_rate == 24000 and abs(heard.duration - 0.5) < 0.1
    if not name.endswith("mp3"):
        assert (heard.waveform[0] - sound.waveform).abs().max() < 1e-4
    assert read_recipe(tmp_path / name) == {"plan": 1}


def test_a_single_picture_and_what_a_gif_leaves_out(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["one-stage", "-p", "bell", "-f", "1", "--steps", "1", "-o", "bell.png"]) == 0
    assert "bell.png: a PNG has no sound" in capfd.readouterr().err
    assert decode_image(here / "bell.png").shape == (128, 128, 3)
    recipe = read_recipe(here / "bell.png")
    assert recipe is not None and recipe["plan"]["prompt"] == "bell"
    assert run(["one-stage", "-p", "bell", "-f", "9", "--steps", "1", "-o", "bell.gif"]) == 0
    assert "bell.gif: a GIF has no sound, 256 colours, at most 15 frames a second" in capfd.readouterr().err
    assert run(["rerun", "bell.gif", "-q"]) == 0 and (here / "bell-again.gif").exists()
