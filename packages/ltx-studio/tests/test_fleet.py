"""Clips of the studio that are made elsewhere: what is sent, what comes back. A real cluster: tests/test_ray.py."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from ltx_core.errors import ConfigError, LtxError
from ltx_core.parallel.executor import Cluster, Stopped, check_installed
from ltx_studio.cli import Serve, settings_of
from ltx_studio.fleet import Asked, ClipMaker, Fleet, Made
from ltx_studio.requests import canonical

SMALLEST = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 2, "pipeline": "one-stage"}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet("worker-0", tmp_path / "server", "tiny")


def test_a_maker_needs_nothing_but_what_it_is_sent(fleet: Fleet, tmp_path: Path) -> None:
    sent = fleet.files.new_upload(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (64, 64), (200, 30, 40)).save(sent)
    request = canonical({"prompt": "a small red ball", "images": [[sent.name, 0, 1.0]], **SMALLEST}, ["tiny"])
    fleet.store.add(request, "tiny")
    job = fleet.claim()
    assert job is not None
    asked: Asked = pickle.loads(pickle.dumps(Asked(job, fleet.files_of(job))))
    sent.rename(tmp_path / "elsewhere.png")
    told: list[str] = []
    made: Made = pickle.loads(pickle.dumps(ClipMaker({"model": "tiny"})(asked, told.append)))
    assert not fleet.files.job(job.id).exists()
    assert not fleet.seen(0, asked, told[-1]) and not fleet.seen(0, asked, "") and not fleet.seen(0, None, "")
    half_way = fleet.store.get(job.id)
    assert half_way is not None and half_way.progress == 1 and half_way.phase == "decode"
    assert half_way.facts["frames"] == 9
    fleet.end(job, fleet.keep(job, made))
    done = fleet.store.get(job.id)
    assert done is not None and done.status == "completed" and done.facts["bytes"] == len(made.files["clip.mp4"])
    names = {path.name for path in fleet.files.job(job.id).iterdir()}
    assert names == {"clip.mp4", "thumbnail.webp", "spritesheet.jpg"}


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [(Stopped(), "cancelled", None), (LtxError("3 workers died at it"), "failed", "3 workers died at it")],
)
def test_what_ends_a_job_otherwise(fleet: Fleet, outcome: LtxError, status: str, error: str | None) -> None:
    fleet.store.add({"prompt": "x"}, "tiny")
    job = fleet.claim()
    assert job is not None
    fleet.store.cancel(job.id)
    assert fleet.seen(0, Asked(job, {}), '{"planned": {"frames": 9}}')
    fleet.end(job, outcome)
    done = fleet.store.get(job.id)
    assert done is not None and (done.status, done.error) == (status, error)


def test_a_maker_says_what_is_wrong_with_a_job(fleet: Fleet) -> None:
    job = fleet.store.add({"prompt": "x", "height": "tall"}, "tiny")
    with pytest.raises(ConfigError, match="height is 'tall', expected an integer"):
        ClipMaker({"model": "tiny"})(Asked(job, {}), lambda words: None)


def test_one_process_speaks_to_a_cluster(tmp_path: Path) -> None:
    check_installed()
    assert settings_of(Serve(data=str(tmp_path), ray=Cluster("head:6379", 8))).devices == ("ray:8:head:6379",)
    with pytest.raises(ConfigError, match="--workers names devices of this machine"):
        settings_of(Serve(data=str(tmp_path), ray=Cluster(), workers="cpu"))
