"""The API without workers: shapes, refusals, and what a client may not do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ltx_pipelines.cli.fields import every_option
from ltx_pipelines.long import read_storyboard
from ltx_studio.guard import LOOPBACK, Limits
from ltx_studio.server import Settings, create_app

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
SMALL = {"prompt": "a ball", "num_frames": 9}
FINE = {"pipeline": "x", "size": "1x1", "frames": 1, "fps": 1, "seconds": 1, "steps": 1, "text": ""}
FOREIGN = (
    "/etc/passwd",
    "../../secret",
    "..%2f..%2fsecret",
    "file:///etc/passwd",
    "http://example.com/x",
    "upload_../../x",
)


def client_of(folder: Path, **settings: object) -> TestClient:
    app = create_app(Settings(data=folder, run_workers=False, hosts=(*LOOPBACK, "testserver"), **settings))
    return TestClient(app)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reaches the planning process, which is not there: every request is fine."""
    asked: list[dict[str, Any]] = []
    answer = lambda _, question: asked.append(question["request"]) or FINE  # noqa: E731
    monkeypatch.setattr("ltx_studio.planner.Planner._answer", answer)
    return asked


@pytest.fixture
def client(tmp_path: Path, planned: list[dict[str, Any]]) -> Iterator[TestClient]:
    with client_of(tmp_path, limits=Limits(creates_per_minute=10**6)) as client:
        yield client


def test_create_list_cancel_delete(client: TestClient) -> None:
    made = client.post("/v1/videos", json={**SMALL, "seconds": "2", "size": "256x128"}).json()
    assert (made["object"], made["status"], made["seconds"]) == ("video", "queued", "2.0")
    assert made["ltx"]["request"]["width"] == 256
    other = client.post("/v1/videos", json=SMALL).json()
    listed = client.get("/v1/videos", params={"limit": 1}).json()
    assert listed["data"][0]["id"] == other["id"] and listed["has_more"]
    assert client.get("/v1/videos", params={"after": other["id"]}).json()["data"][0]["id"] == made["id"]
    assert client.get(f"/v1/videos/{made['id']}/content").status_code == 409
    assert client.post(f"/v1/videos/{made['id']}/cancel").json()["ltx"]["status"] == "cancelled"
    assert client.delete(f"/v1/videos/{made['id']}").json()["deleted"] is True
    assert client.get(f"/v1/videos/{made['id']}").status_code == 404
    remixed = client.post(f"/v1/videos/{other['id']}/remix", json={"prompt": "a star"}).json()
    assert remixed["remixed_from_video_id"] == other["id"] and remixed["prompt"] == "a star"


def test_errors_have_the_form_clients_expect(client: TestClient) -> None:
    for answer in (
        client.get("/v1/videos/video_nothing"),
        client.post("/v1/videos", content=b"{"),
        client.post("/v1/videos", json=[1]),
        client.post("/v1/videos", json={**SMALL, "size": "bigxsmall"}),
        client.get("/v1/videos", params={"limit": 0}),
        client.get("/nowhere"),
    ):
        assert 400 <= answer.status_code < 500
        assert isinstance(answer.json()["error"]["message"], str), answer.text


def test_uploads_are_known_by_their_content(client: TestClient, tmp_path: Path) -> None:
    name = client.post("/v1/uploads", files={"file": ("../../x.exe", PNG)}).json()["name"]
    assert name.startswith("upload_") and name.endswith(".png")
    assert (tmp_path / "uploads" / name).read_bytes() == PNG
    lying = client.post("/v1/uploads", files={"file": ("x.png", b"MZ" + b"\0" * 80)})
    assert lying.status_code == 400 and "no picture" in lying.json()["error"]["message"]
    form = client.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": ("a.png", PNG, "image/png")})
    assert form.json()["ltx"]["request"]["images"][0]["path"].startswith("upload_")


def spellings() -> list[str]:
    """Every name a field of a request goes by."""
    flags = (flag.lstrip("-") for one in every_option().values() for flag in one.spellings)
    return sorted({*every_option(), *flags, "pipeline", "input_reference"})


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings(one)
    elif isinstance(value, str):
        yield value


def test_no_path_of_a_client_is_opened(client: TestClient, planned: list[dict[str, Any]]) -> None:
    path = FOREIGN[0]
    shapes = ([path], [[path, 0]], {"path": path}, [{"path": path}], *FOREIGN)
    for name in spellings():
        for given in shapes:
            answer = client.post("/v1/plan", json={"prompt": "a ball", name: given})
            assert answer.status_code in (200, 400), (name, given, answer.text)
    texts = {"prompt", "negative_prompt", "background", "quantization"}  # the last two are names of things
    for request in planned:
        found = {text for name, value in request.items() if name not in texts for text in strings(value)}
        assert not found & set(FOREIGN), request
    for name in ("image", "video-path", "input_reference", "lora", "gemma-root", "checkpoint-path", "output"):
        assert client.post("/v1/videos", json={"prompt": "a ball", name: path}).status_code == 400, name


def test_a_storyboard_is_its_scenes(client: TestClient, planned: list[dict[str, Any]]) -> None:
    picture = client.post("/v1/uploads", files={"file": ("a.png", PNG)}).json()["name"]
    scenes = [{"prompt": "a ball", "seconds": 1}, {"prompt": "a star", "seconds": 2, "keyframes": [{"image": picture}]}]
    made = client.post("/v1/videos", json={"pipeline": "long", "storyboard": scenes, "seed": -1}).json()
    kept = made["ltx"]["request"]
    assert kept["storyboard"][1]["keyframes"][0] | {"image": picture} == kept["storyboard"][1]["keyframes"][0]
    assert kept["seed"] >= 0, "drawn once, so that the clip can be taken up again"
    board = read_storyboard(planned[0]["storyboard"], 24.0)
    assert board.seconds == 3 and Path(board.images[0].path).read_bytes() == PNG and board.images[0].frame_idx == 24
    foreign = {"prompt": "a", "seconds": 1, "keyframes": [{"image": "/x.png"}]}
    for wrong in ("x.yaml", ["a"], [{"prompt": "a"}], [foreign]):
        refused = client.post("/v1/videos", json={"pipeline": "long", "storyboard": wrong})
        assert refused.status_code == 400 and "storyboard" in refused.json()["error"]["message"], refused.text


def test_nothing_is_imported_or_downloaded_for_a_client(client: TestClient, planned: list[dict[str, Any]]) -> None:
    for field in ({"pipeline": "antigravity:Flight"}, {"model": "Lightricks/LTX-2"}, {"model": "/models/x"}):
        for route in ("/v1/videos", "/v1/plan"):
            answer = client.post(route, json={**SMALL, **field})
            assert answer.status_code == 400 and "expected one of" in answer.json()["error"]["message"]
    assert "antigravity" not in sys.modules and not planned


@pytest.mark.parametrize("job", ["..", "%2e%2e%2f%2e%2e%2fetc", "video_../../x", "*", "video_" + "0" * 32, "x" * 5000])
def test_no_id_leads_elsewhere(client: TestClient, job: str) -> None:
    for method, route in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/cancel")):
        assert client.request(method, f"/v1/videos/{job}{route}").status_code in (404, 405), (method, route)
    made = client.post("/v1/videos", json=SMALL).json()["id"]
    assert client.get(f"/v1/videos/{made}/content", params={"variant": "../../jobs.sqlite"}).status_code == 400


def test_bodies_that_lie_or_never_end_are_cut_off(tmp_path: Path) -> None:
    sent = []

    def endless(head: bytes) -> Iterator[bytes]:
        yield head
        while len(sent) < 1000:
            sent.append(1)
            yield b"x" * 1000

    begun = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + PNG
    form = {"content-type": "multipart/form-data; boundary=b"}
    with client_of(tmp_path, limits=Limits(upload_bytes=50_000, body_bytes=5000)) as client:
        for route, head, headers in (("uploads", begun, form), ("videos", b'{"prompt": "', {}), ("plan", b"{", {})):
            sent.clear()
            answer = client.post(f"/v1/{route}", content=endless(head), headers=headers)
            assert answer.status_code == 413, (route, answer.text)
        for length in ("99999999999999999999999", "-1", "1e3", "\u0661"):
            assert (
                client.post("/v1/plan", content=b"{}", headers={"content-length": length.encode()}).status_code == 413
            )
        deep = client.post("/v1/plan", content=b"[" * 4000)
        assert deep.status_code == 400
    assert not list(tmp_path.glob("uploads/*"))


def test_a_full_folder_keeps_favourites_and_what_is_needed(tmp_path: Path, planned: list[dict[str, Any]]) -> None:
    with client_of(tmp_path, limits=Limits(quota_bytes=400_000)) as client:
        studio = client.app.state.studio
        for name in ("old", "kept", "new"):
            job = client.post("/v1/videos", json={**SMALL, "prompt": name}).json()["id"]
            studio.store.claim("w")
            studio.files.job(job).mkdir(parents=True)
            (studio.files.job(job) / "clip.mp4").write_bytes(b"x" * 120_000)
            studio.store.end(job, "completed", facts={"file": "clip.mp4"})
            client.post(f"/v1/videos/{job}/favourite", params={"on": name == "kept"})
        upload = client.post("/v1/uploads", files={"file": ("a.png", PNG)}).json()["name"]
        (tmp_path / "uploads" / upload).write_bytes(PNG + b"x" * 100_000)
        left = [
            one["prompt"] for one in client.post("/v1/videos", json=SMALL) and client.get("/v1/videos").json()["data"]
        ]
        assert left == ["a ball", "new", "kept"], "the oldest goes first, but for favourites"
        assert (tmp_path / "uploads" / upload).is_file(), "it was sent just now"
        os.utime(tmp_path / "uploads" / upload, (0, 0))
        (tmp_path / "uploads" / "filling").write_bytes(b"x" * 390_000)
        full = client.post("/v1/videos", json=SMALL)
        assert full.status_code == 507 and "delete clips" in full.json()["error"]["message"]
        assert not (tmp_path / "uploads" / upload).exists()
        assert [one["prompt"] for one in client.get("/v1/videos").json()["data"]] == ["a ball", "kept"]


def test_host_key_and_size_are_checked(tmp_path: Path) -> None:
    with client_of(tmp_path, key="secret", limits=Limits(upload_bytes=1000)) as client:
        assert client.get("/v1/videos").status_code == 401
        assert client.get("/v1/videos", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/videos", headers={"authorization": "Bearer secret"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        evil = client.get("/v1/videos", headers={"host": "evil.example", "authorization": "Bearer secret"})
        assert evil.status_code == 421
        large = client.post("/v1/uploads", files={"file": b"x" * 2000}, headers={"authorization": "Bearer secret"})
        assert large.status_code == 413
        page = client.get("/")
        assert "default-src 'self'" in page.headers["content-security-policy"]


def test_too_many_are_turned_away(tmp_path: Path, planned: list[dict[str, Any]]) -> None:
    with client_of(tmp_path, limits=Limits(creates_per_minute=3)) as client:
        codes = [client.post("/v1/videos", json=SMALL).status_code for _ in range(5)]
        assert codes == [200, 200, 200, 429, 429]
    with client_of(tmp_path / "full", limits=Limits(queued_jobs=1)) as client:
        assert [client.post("/v1/videos", json=SMALL).status_code for _ in range(2)] == [200, 429]


def test_the_document_lists_every_option(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "seconds", "size", "seed", "images", "num_frames"} <= body["properties"].keys()
