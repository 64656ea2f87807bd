"""The whole service on the bundled model: OpenAI's own client, the page in a browser, deaths of processes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.studio_server import ask, processes_of, served, wait_for

KEY = "secret"
PROMPT = "a small red ball bounces on a blue background with a low knock"
HUGE_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
HUGE_PNG += struct.pack(">I", zlib.crc32(HUGE_PNG[12:])) + b"\0\0\0\0IEND\xaeB`\x82"  # says 10 GB, holds nothing
SMALLEST: dict[str, Any] = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The data folder and the address of a server that asks for a key."""
    data = tmp_path_factory.mktemp("served-folder")
    with served(data, "--api-key", KEY) as (address, _):
        yield data, address


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_client_makes_and_deletes_clips(server: tuple[Path, str], tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed: it comes with `make test`")
    data, address = server
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    video = client.videos.create(prompt=PROMPT, model="tiny", extra_body=SMALLEST)
    assert video.status == "queued"
    done = wait_for(lambda: (v := client.videos.retrieve(video.id)).status in ("completed", "failed") and v, 240)
    assert done.status == "completed" and done.progress == 100, done
    client.videos.download_content(video.id).write_to_file(tmp_path / "x.mp4")
    assert (tmp_path / "x.mp4").read_bytes()[4:8] == b"ftyp"
    assert [one.id for one in client.videos.list(limit=5)] == [video.id]
    assert [model.id for model in client.models.list()] == ["tiny"]
    long = client.videos.create(prompt=PROMPT, model="tiny", extra_body={**SMALLEST, "num_inference_steps": 500})
    wait_for(lambda: client.videos.retrieve(long.id).status == "in_progress", 60)
    wait_for(lambda: steps_of(data, long.id) > 0, 60)
    before = steps_of(data, long.id)
    with ThreadPoolExecutor() as pool:
        deleting = pool.submit(client.videos.delete, long.id)
        seen = before
        while not deleting.done():
            seen = max(seen, steps_of(data, long.id))
    assert deleting.result().deleted
    assert seen - before <= 2, "one step may end and be counted, no further one begins"
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(long.id)
    assert client.videos.delete(video.id).deleted
    for name, lie in (("x.png", HUGE_PNG), ("x.wav", b"RIFF    WAVEfmt nonsense"), ("x.mp4", b"MZ" * 40)):
        with pytest.raises(openai.BadRequestError, match=r"too many pixels|cannot read sound|no picture"):
            client.videos.create(prompt=PROMPT, model="tiny", input_reference=(name, lie))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).videos.list()


def steps_of(data: Path, job_id: str) -> int:
    """How many steps a job has made, by its progress."""
    with sqlite3.connect(data / "jobs.sqlite") as connection:
        row = connection.execute("SELECT progress FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return round(500 * row[0] / 0.9) if row else 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_makes_a_clip(tmp_path: Path) -> None:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: it comes with `make test`"
    )
    problems: list[str] = []
    with playwright.sync_playwright() as drive:
        browser = drive.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        with served(tmp_path) as (address, _):
            own = (address, "data:", "blob:")
            page.on("request", lambda r: None if r.url.startswith(own) else problems.append(r.url))
            page.goto(address)
            make_clip_and_watch(page, playwright.expect)
            cancel_another(page, playwright.expect)
            compose_scenes(page, playwright.expect)
            assert not problems, problems
            page.goto("about:blank")
        with served(tmp_path) as (address, _):
            own = (address, "data:", "blob:")
            page.goto(address)
            playwright.expect(page.locator(".clip")).to_have_count(2, timeout=30_000)
            playwright.expect(page.locator(".clip video")).to_have_count(1)
        browser.close()


def make_clip_and_watch(page: Any, expect: Any) -> None:
    """Bars and a preview move, and the clip plays to its end with sound."""
    page.fill("#prompt", PROMPT)
    page.fill("#num_frames", "9")
    page.click("button.primary")
    expect(page.locator(".job .hint")).to_contain_text("step", timeout=120_000)
    preview = page.locator(".job .preview")
    expect(preview).to_be_visible(timeout=60_000)
    look = "p => p.style.backgroundImage"
    first = preview.evaluate(look)
    page.wait_for_function(f"first => ({look})(document.querySelector('.job .preview')) !== first", arg=first)
    expect(page.locator(".clip video")).to_have_count(1, timeout=240_000)
    page.click(".clip .open")
    video = page.locator("#viewer video")
    expect(video).to_be_visible()
    heard = "v.currentTime > 0 && v.webkitAudioDecodedByteCount > 0"
    page.wait_for_function(f"() => {{ const v = document.querySelector('#viewer video'); return {heard}; }}")
    ends = "v => new Promise(done => { v.loop = false; v.onended = () => done(true); v.play(); })"
    assert video.evaluate(ends)
    page.keyboard.press("Escape")


def cancel_another(page: Any, expect: Any) -> None:
    """A clip that is being made can be stopped, and is told of."""
    page.fill("#num_frames", "49")
    page.click("button.primary")
    expect(page.locator(".job .hint")).to_contain_text("step", timeout=60_000)
    page.click(".job .cancel")
    expect(page.locator(".job")).to_have_count(0, timeout=60_000)
    expect(page.locator(".clip").first).to_contain_text("cancelled")


def compose_scenes(page: Any, expect: Any) -> None:
    """Scenes are cards that move; their plan is that of a long clip."""
    page.fill("#prompt", "")
    for number in range(2):
        page.click("#add-scene")
        page.locator("#scenes textarea").nth(number).fill(f"{('a red ball bounces', 'a blue star spins')[number]}")
    page.click("#scenes li:first-child .later")
    assert page.locator("#scenes textarea").first.input_value() == "a blue star spins"
    expect(page.locator("#plan")).to_contain_text("6.00 s", timeout=60_000)
    expect(page.locator("#problem")).to_have_text("")


def test_what_a_dead_worker_had_goes_on_from_its_second_stage(server: tuple[Path, str]) -> None:
    from ltx_studio.store import Store

    data, address = server
    store = Store(data)
    job = ask(address, KEY, prompt=PROMPT, num_frames=25, num_inference_steps=2)["id"]
    behind = ask(address, KEY, prompt=PROMPT, **SMALLEST)["id"]
    kept = data / "jobs" / job / "clip.stage1.safetensors"
    wait_for(kept.is_file, 120)
    for pid in processes_of("ltx_studio.worker", str(data)):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: store.get(job).attempts == 2, 60)
    made = kept.stat().st_mtime_ns
    again = []
    while not (now := store.get(job)).ended:
        again += [now.progress] if now.phase == "denoise" and now.progress else []
        with suppress(FileNotFoundError):
            assert kept.stat().st_mtime_ns == made, "the first stage was made anew"
        time.sleep(0.02)
    assert now.status == "completed" and now.attempts == 2
    assert min(again) > 0.9 * 2 / 5, "two of five steps were behind it"
    assert {file.name for file in kept.parent.iterdir()} == {"clip.mp4", "thumbnail.webp", "spritesheet.jpg"}
    assert os.fsencode(data.name) not in (kept.parent / "clip.mp4").read_bytes(), "no folder of the server"
    after = wait_for(lambda: (found := store.get(behind)).ended and found, 60)
    assert after.status == "completed" and after.attempts == 1


@pytest.mark.slow
def test_a_long_clip_goes_on_from_its_last_window(tmp_path: Path) -> None:
    from ltx_studio.store import Store

    scenes = [{"prompt": "a red ball bounces", "seconds": 1}, {"prompt": "a blue star spins", "seconds": 1}]
    small = {"height": 64, "width": 64, "num_inference_steps": 2, "window": 17, "overlap": 8}
    with served(tmp_path) as (address, _):
        store = Store(tmp_path)
        job = ask(address, pipeline="long", storyboard=scenes, **small)["id"]
        unfinished = tmp_path / "jobs" / job / "clip.mp4.unfinished"
        pieces = lambda: sorted(unfinished.glob("*.mp4"))  # noqa: E731
        wait_for(lambda: len(pieces()) > 1, 120)
        first = pieces()[0].stat().st_mtime_ns
        for pid in processes_of("ltx_studio.worker", str(tmp_path)):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: store.get(job).attempts == 2 and store.get(job).progress > 0, 120)
        assert not pieces() or pieces()[0].stat().st_mtime_ns == first, "the first window was made anew"
        done = wait_for(lambda: (found := store.get(job)).ended and found, 240)
        assert done.status == "completed" and 1.9 < done.facts["seconds"] < 2.1, done
        assert {file.name for file in unfinished.parent.iterdir()} == {"clip.mp4", "thumbnail.webp", "spritesheet.jpg"}
        larger = ask(address, pipeline="upscale", video_path=job, upscale=2)["id"]
        done = wait_for(lambda: (found := store.get(larger)).ended and found, 600)
        assert done.status == "completed" and done.facts["width"] == 128, done
