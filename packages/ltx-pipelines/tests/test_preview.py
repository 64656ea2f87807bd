"""Previews: the map from latents to pixels, and the ways pictures reach a terminal."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from ltx_core.errors import ConfigError
from ltx_pipelines import TI2VidOneStagePipeline
from ltx_pipelines.cli.app import run
from ltx_pipelines.cli.preview import Picture, PicturedProgress, escape_code, way_of
from ltx_pipelines.cli.progress import Reporter
from ltx_pipelines.running.preview import ENOUGH, SIDE, cache_path, find_map, fitting

CHANNELS, SIZE = 12, (3, 4, 5)  # of a latent: channels; frames, rows, columns


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `fitting` asks a ledger for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files, factors = SimpleNamespace(checkpoint=str(tmp_path / "model.safetensors")), SimpleNamespace(time=8)
    return SimpleNamespace(files=files, scale_factors=factors, decoder_digest="a")


def decoded(latent: torch.Tensor) -> torch.Tensor:
    """Frames ``[F, H, W, 3]`` that a linear decoder makes: every cell a tile of 8 x 8 pixels, each frame 8 times."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(CHANNELS, 3 * SIDE**2, generator=generator) * 0.02
    tiles = (latent[0].permute(1, 2, 3, 0) @ maps + 0.5).unflatten(-1, (SIDE, SIDE, 3))
    frames = tiles.transpose(2, 3).flatten(1, 2).flatten(2, 3)
    frames = frames.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return torch.cat([frames[:1], frames[1:].repeat_interleave(8, 0).roll(7, 0)])


def test_the_map_of_a_linear_decoder_is_found(ledger: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    assert find_map(ledger) is None
    for clip in range(3):
        latent = torch.randn(1, CHANNELS, *SIZE, generator=generator)
        frames = decoded(latent)
        passed = list(fitting(latent, iter(frames.split(5)), ledger))
        assert torch.equal(torch.cat(passed), frames)
        preview = find_map(ledger)
        assert preview is not None
        assert float(load_file(cache_path(ledger))["gram"][-1, -1]) == (clip + 1) * 60
    other = torch.randn(1, CHANNELS, *SIZE, generator=generator)
    made = preview.frames(other, 99)
    assert made.shape == (3, 16, 20, 3) and made.dtype == torch.uint8
    expected = decoded(other)[::8, ::2, ::2]
    assert (made / 255 - expected).abs().max() < 0.01
    assert preview.frames(other, 2).shape[0] == 2
    ledger.decoder_digest = "b"
    assert find_map(ledger) is None, "another decoder has a map of its own"


def test_a_map_that_has_seen_enough_or_cannot_be_kept_changes_nothing(ledger: Any, tmp_path: Path) -> None:
    many = torch.randn(1, CHANNELS, 1, 100, ENOUGH // 100)
    list(fitting(many, iter([decoded(many)]), ledger))
    before = cache_path(ledger).read_bytes()
    few = torch.randn(1, CHANNELS, *SIZE)
    assert len(torch.cat(list(fitting(few, iter([decoded(few)]), ledger)))) == 17
    assert cache_path(ledger).read_bytes() == before
    ledger.decoder_digest = "c"
    shutil.rmtree(cache_path(ledger).parent)
    cache_path(ledger).parent.write_text("in the way")
    assert len(torch.cat(list(fitting(few, iter([decoded(few)]), ledger)))) == 17


def test_every_step_has_a_preview_once_a_clip_was_decoded(here: Path, small_model: Path) -> None:
    pipeline = TI2VidOneStagePipeline.from_pretrained(str(small_model))
    reporter = Reporter("lines")
    reporter.style = "bars"
    reporter.show_previews(pipeline.ledger)
    assert reporter.preview is None
    pipeline("a bell", progress=False).video.tensor()
    reporter.show_previews(pipeline.ledger)
    assert reporter.preview is not None
    read = pipeline.ledger.bytes_read
    steps = [event for event in pipeline.stream("a drum") if event.step]
    for event in steps:
        assert event.preview().shape == (1, 128, 2, 4, 4)
        assert reporter.preview.frames(event.preview(), 8).shape == (2, 16, 16, 3)
    assert len(steps) == 2 and pipeline.ledger.bytes_read == read


def test_without_a_terminal_previews_are_left_out_with_a_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "a bell", "--preview", "-o", "a.mp4"]) == 0
    assert "previews are left out" in capfd.readouterr().err
    assert run(["t2a-one-stage", "a bell", "--preview", "-o", "a.wav"]) == 2


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "blocks"),
        ({"TERM": "dumb", "LTX_PREVIEW": "sixel"}, "sixel"),
    ],
)
def test_terminals_are_known_by_their_environment(environment: dict[str, str], way: str) -> None:
    assert way_of(environment) == way


def test_a_way_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"LTX_PREVIEW is 'sixels', expected .*sixel"):
        way_of({"LTX_PREVIEW": "sixels"})


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 0, 255), (4, 0, 8, 4))
    return image


def drawn(picture: Image.Image, way: Any) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80, height=30)
    bars = PicturedProgress(console=console, auto_refresh=False)
    with bars:
        bars.add_task("denoising", total=8)
        bars.picture = Picture(picture, way)
        bars.refresh()
    text: str = console.file.getvalue()
    return text


def test_blocks_show_two_pixels_to_a_character(picture: Image.Image) -> None:
    text = drawn(picture, "blocks")
    assert "38;2;255;0;0;48;2;255;0;0m▀" in text and "38;2;0;0;255;48;2;0;0;255m▀" in text and "denoising" in text


@pytest.mark.parametrize("way", ["kitty", "iterm", "sixel"])
def test_a_picture_is_drawn_above_the_bars(picture: Image.Image, way: str) -> None:
    text = drawn(picture, way)
    assert escape_code(picture, way, 64, 16) in text
    assert text.index("\x1b7") < text.index("\x1b8") < text.rindex("denoising")


def test_the_picture_itself_is_sent(picture: Image.Image) -> None:
    noise = Image.effect_noise((200, 100), 90).convert("RGB")
    sent = escape_code(noise, "kitty", 10, 5)
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", sent)
    assert len(pieces) > 2 and all(len(data) <= 4096 for _, data in pieces)
    assert [keys[-3:] for keys, _ in pieces[:-1]] == ["m=1"] * (len(pieces) - 1) and pieces[-1][0] == "m=0"
    back = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces))))
    assert back.tobytes() == noise.tobytes()
    inline = re.fullmatch(r"\x1b]1337;File=inline=1;[^:]*:(.*)\x07", escape_code(picture, "iterm", 8, 2))
    assert Image.open(io.BytesIO(base64.b64decode(inline[1]))).tobytes() == picture.tobytes()


def test_sixels_hold_every_pixel(picture: Image.Image) -> None:
    code = escape_code(picture, "sixel", 8, 2)
    width, height, body = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', code).groups()
    assert (int(width), int(height)) == (80, 40)
    palette = {int(i): tuple(map(int, rgb.split(";"))) for i, rgb in re.findall(r"#(\d+);2;(\d+;\d+;\d+)", body)}
    pixels = {}
    for number, band in enumerate(re.sub(r"#\d+;2;\d+;\d+;\d+", "", body).split("-")):
        for line in band.split("$"):
            index, bits = re.fullmatch(r"#(\d+)(.*)", line).groups()
            bits = re.sub(r"!(\d+)(.)", lambda run: run[2] * int(run[1]), bits)
            for x, character in enumerate(bits):
                for bit in range(6):
                    if ord(character) - 63 >> bit & 1:
                        pixels[x, 6 * number + bit] = palette[int(index)]
    assert len(pixels) == 80 * 40
    assert pixels[0, 0] == (100, 0, 0) and pixels[79, 39] == (0, 0, 100)


def test_a_notebook_exchanges_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    handle = SimpleNamespace(update=shown.append)
    inline = SimpleNamespace(
        Image=lambda data, width: data, display=lambda data, display_id: shown.append(data) or handle
    )
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=inline))
    monkeypatch.setitem(sys.modules, "IPython.display", inline)
    bars = PicturedProgress(console=Console(file=io.StringIO()), disable=True)
    for value in (0, 255):
        bars.show(torch.full((4, 6, 3), value, dtype=torch.uint8))
    assert [Image.open(io.BytesIO(data)).getpixel((0, 0)) for data in shown] == [(0, 0, 0), (255, 255, 255)]
    assert bars.picture is None
