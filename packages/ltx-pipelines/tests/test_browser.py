"""What is written plays in a browser: a headless Chromium loads the file and says what it found."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ltx_core.types import Audio
from ltx_pipelines.utils.media_io import write_video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = """<!doctype html><video id=v src="{name}" preload=auto muted></video><pre id=out>waiting</pre><script>
const v = document.getElementById("v"), out = document.getElementById("out");
const tell = what => out.textContent = JSON.stringify({{what, duration: v.duration, width: v.videoWidth,
  height: v.videoHeight, sound: v.webkitAudioDecodedByteCount, picture: v.webkitVideoDecodedByteCount,
  error: v.error && v.error.message}});
v.onerror = () => tell("error");
v.oncanplaythrough = () => v.play().then(() => setTimeout(() => tell("canplaythrough"), 400), e => tell("" + e));
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("fps", [25.0, 30000 / 1001])
def test_file_plays_in_chromium(tmp_path: Path, fps: float) -> None:
    frames, seconds = 50, 50 / fps
    ramp = torch.linspace(0, 1, 96).view(1, 1, 96, 1)
    tone = torch.sin(torch.arange(round(seconds * 24000)) * 0.06).expand(2, -1) * 0.3
    write_video(tmp_path / "clip.mp4", [ramp.expand(frames, 64, 96, 3)], fps, Audio(tone, 24000))
    found = what_chromium_says(tmp_path / "clip.mp4")
    assert found["what"] == "canplaythrough", found
    assert abs(found["duration"] - seconds) < 1.5 / fps
    assert (found["width"], found["height"]) == (96, 64)
    assert found["sound"] > 0 and found["picture"] > 0


def what_chromium_says(clip: Path) -> dict:
    page = clip.with_suffix(".html")
    page.write_text(PAGE.format(name=clip.name))
    assert CHROMIUM is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += [
        "--disable-background-networking",
        "--disable-component-update",
        "--autoplay-policy=no-user-gesture-required",
    ]
    command = [
        CHROMIUM,
        *quiet,
        f"--user-data-dir={clip.parent / 'profile'}",
        "--virtual-time-budget=8000",
        "--dump-dom",
    ]
    run = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r"<pre id=\"out\">(.*?)</pre>", run.stdout, flags=re.DOTALL)
    assert match, run.stderr[-500:]
    assert match[1] != "waiting", "the browser never said that it can play the file"
    return json.loads(html.unescape(match[1]))
