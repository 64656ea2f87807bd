"""A clip from somebody else: its recipe names files, and makes us open none that the user has not agreed to."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ltx_core.errors import MediaError
from ltx_core.types import VideoPixelShape
from ltx_media.images import write_png
from ltx_media.video import probe_video
from ltx_pipelines.cli.app import run
from ltx_pipelines.planning.plan import ModelFiles, Plan, Source, StagePlan, StreamPlan
from ltx_pipelines.running.model_files import find_model

SHAPE = VideoPixelShape(1, 9, 64, 64, 24.0)


@pytest.fixture
def listener() -> Iterator[str]:
    """The address of a host that must stay silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            server.accept()


def clip(folder: Path, source: str | None = None, model: str | None = None, **recipe: object) -> str:
    """A picture with the recipe of somebody else, by default for the bundled model."""
    streams = {"video": StreamPlan(start="source" if source else "noise")}
    files = ModelFiles(model) if model else find_model("tiny").files
    sources = {"video": Source(source)} if source else {}
    plan = Plan("retake", files, "x", 1, (StagePlan(SHAPE, (1.0, 0.0), streams),), sources=sources)
    made = {"recipe": 1, "plan": json.loads(plan.to_json()), **recipe}
    write_png(folder / "clip.png", torch.zeros(8, 8, 3, dtype=torch.uint8), {"recipe": json.dumps(made)})
    return str(folder / "clip.png")


def refused(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    """The one line on which a command ends."""
    assert run([*line, "-q"] if line[0] == "rerun" else line) == 1
    error = capsys.readouterr().err
    assert error.startswith("ltx: ") and error.count("\n") == 1 and "internal error" not in error
    return error


def test_devices_and_pipes_are_never_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = ["/dev/zero", str(tmp_path / "pipe"), "/etc/passwd"]
    file = clip(tmp_path, files=dict.fromkeys(names, "1-0"))
    assert run(["inspect", file]) == 0
    shown = capsys.readouterr().out
    assert "/dev/zero was not looked at" in shown and "pipe is no regular file" in shown
    assert "/etc/passwd was not looked at" in shown
    assert run(["inspect", file, "--trust"]) == 0
    assert "/dev/zero is no regular file" in capsys.readouterr().out
    for name in names[:2]:
        assert "which is no regular file" in refused(capsys, "rerun", clip(tmp_path, name), "--trust")
        assert "no regular file" in refused(capsys, "rerun", clip(tmp_path, model=name), "--trust")
        with pytest.raises(MediaError, match="no regular file"):
            probe_video(name)


@pytest.mark.parametrize("form", ["http://{}/a.mp4", "async:http://{}/a.mp4", "concat:http://{}/a.mp4|b", "tcp://{}"])
def test_no_address_is_ever_asked(form: str, listener: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = form.format(listener)
    with pytest.raises(MediaError):
        probe_video(address)
    file = clip(tmp_path, address, files={address: "1-0"})
    assert run(["inspect", file, "--trust"]) == 0
    assert "a.mp4" in refused(capsys, "rerun", file, "--trust") or "tcp:" in form


def test_files_that_name_others_are_no_media(listener: str, tmp_path: Path) -> None:
    texts = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://{listener}/a.ts\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile 'http://{listener}/a.mp4'\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {listener.split(':')[1]} RTP/AVP 96\n",
    }
    for name, text in texts.items():
        for suffix in (".mp4", ".m3u8", ".sdp"):
            (tmp_path / f"{name}{suffix}").write_text(text)
            with pytest.raises(MediaError):
                probe_video(tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize("name", ["subfile,,start,0,end,9,,:{}", "file:{}", "concat:{}|{}"])
def test_other_spellings_of_a_file_are_no_files(name: str, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", torch.zeros(8, 8, 3, dtype=torch.uint8))
    with pytest.raises(MediaError, match="No such file"):
        probe_video(name.replace("{}", str(tmp_path / "a.avi")))


def test_what_a_recipe_opens_is_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "secret.mp4").write_bytes(b"x")
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "link.mp4").symlink_to(other / "secret.mp4")
    (tmp_path / "with" / "beside.mp4").write_bytes(b"x")
    for source in (other / "secret.mp4", tmp_path / "with" / "link.mp4"):
        error = refused(capsys, "rerun", clip(tmp_path / "with", str(source), str(tmp_path / "with" / "m.safetensors")))
        assert error.endswith(f"its recipe opens {source}; give --trust if you know who made it\n")
    beside = clip(tmp_path / "with", str(tmp_path / "with" / "beside.mp4"), str(tmp_path / "with" / "m.safetensors"))
    assert "--trust" not in refused(capsys, "rerun", beside)
    assert "--trust" not in refused(capsys, "rerun", clip(tmp_path / "with", str(other / "secret.mp4")), "--trust")


def test_a_terminal_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: Callable[[str], None]
) -> None:
    file = clip(tmp_path, "/etc/passwd", str(tmp_path / "m.safetensors"))
    answers("y\n")
    assert run(["rerun", file]) == 1
    assert "its recipe opens /etc/passwd\nOpen them? [y/N] ltx: " in capsys.readouterr().err
    answers("\n")
    assert run(["rerun", file]) == 1
    assert "give --trust" in capsys.readouterr().err


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a terminal be there, and answer."""

    class Terminal:
        text = ""

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.text

    terminal = Terminal()
    monkeypatch.setattr("sys.stdin", terminal)
    return lambda text: setattr(terminal, "text", text)


@pytest.mark.parametrize("options", [{"model": "someone/model"}, {"pipeline_config": "/etc/passwd"}])
def test_programs_and_models_of_the_hub_are_asked_about(
    options: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit(99)\n")
    request = {"command": "evil:Pipeline", "options": options}
    file = clip(tmp_path, model=str(tmp_path / "m.safetensors"), request=request)
    error = refused(capsys, "rerun", file, "--seed", "4")
    assert "evil:Pipeline" in error and next(iter(options.values())) in error and "--trust" in error


@pytest.mark.parametrize(
    "recipe",
    [
        {"plan": []},
        {"recipe": 99},
        {"files": []},
        {"files": {"a": 1}},
        {"files": {str(index): "" for index in range(1001)}},
        {"versions": [1]},
        {"versions": {"torch": None}},
        {"request": "x"},
        {"request": {"command": 1, "options": {}}},
        {"request": {"command": "distilled"}},
        {"plan": {"stages": 10**30}},
    ],
)
@pytest.mark.parametrize("command", ["inspect", "rerun"])
def test_recipes_have_a_schema(
    recipe: dict[str, object], command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(refused(capsys, command, clip(tmp_path, **recipe))) < 400
