"""The whole service on the bundled model: OpenAI's own client, the page in a browser, deaths of processes."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.studio_server import ask, processes_of, served, wait_for

PROMPT = "a small red ball bounces on a blue background with a low knock"
HUGE_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
HUGE_PNG += struct.pack(">I", zlib.crc32(HUGE_PNG[12:])) + b"\0\0\0\0IEND\xaeB`\x82"  # says 10 GB, holds nothing
SMALLEST: dict[str, Any] = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 2}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_client_makes_and_deletes_clips(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed: it comes with `make test`")
    with served(tmp_path, "--api-key", "secret") as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
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
        wait_for(lambda: steps_of(tmp_path, long.id) > 0, 60)
        before = steps_of(tmp_path, long.id)
        with ThreadPoolExecutor() as pool:
            deleting = pool.submit(client.videos.delete, long.id)
            seen = before
            while not deleting.done():
                seen = max(seen, steps_of(tmp_path, long.id))
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


def test_what_a_dead_worker_had_is_made_by_the_next(tmp_path: Path) -> None:
    from ltx_studio.store import Store

    with served(tmp_path) as (address, _):
        store = Store(tmp_path)
        jobs = [store.get(ask(address, prompt=PROMPT, **SMALLEST, seed=n)["id"]) for n in range(3)]
        wait_for(lambda: any(store.get(job.id).status == "in_progress" for job in jobs), 120)
        for pid in processes_of("ltx_studio.worker", str(tmp_path)):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all(store.get(job.id).ended for job in jobs), 240)
        assert [store.get(job.id).status for job in jobs] == ["completed"] * 3
        assert sorted(store.get(job.id).attempts for job in jobs) == [1, 1, 2]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_makes_a_clip(tmp_path: Path) -> None:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: it comes with `make test`"
    )
    problems: list[str] = []
    with served(tmp_path) as (address, _), playwright.sync_playwright() as drive:
        browser = drive.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else problems.append(r.url))
        page.goto(address)
        page.fill("#prompt", PROMPT)
        page.fill("#num_frames", "9")
        page.click("button.primary")
        playwright.expect(page.locator(".job .hint")).to_contain_text("step", timeout=120_000)
        preview = page.locator(".job .preview")
        playwright.expect(preview).to_be_visible(timeout=60_000)
        looks = {preview.evaluate("p => p.style.backgroundImage")}
        while len(looks) < 2 and preview.count():
            looks.add(preview.evaluate("p => p.style.backgroundImage"))
        assert len(looks) > 1, "the preview does not follow the steps"
        playwright.expect(page.locator(".clip video")).to_have_count(1, timeout=240_000)
        page.click(".clip .open")
        video = page.locator("#viewer video")
        playwright.expect(video).to_be_visible()
        deadline = time.monotonic() + 30
        while not (played := video.evaluate("v => v.currentTime > 0.1 && v.webkitAudioDecodedByteCount > 0")):
            assert time.monotonic() < deadline, "the clip does not play with its sound"
            time.sleep(0.2)
        assert played
        page.reload()
        playwright.expect(page.locator(".clip video")).to_have_count(1, timeout=30_000)
        browser.close()
    assert not problems, problems
