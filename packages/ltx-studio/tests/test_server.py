"""The API without workers: shapes, refusals, and what a client may not do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ltx_studio.guard import LOOPBACK, Limits
from ltx_studio.server import Settings, create_app

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
SMALL = {"prompt": "a ball", "num_frames": 9}


def client_of(folder: Path, **settings: object) -> TestClient:
    app = create_app(Settings(data=folder, run_workers=False, hosts=(*LOOPBACK, "testserver"), **settings))
    return TestClient(app)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr("ltx_studio.planner.Planner.check", lambda self, request: None)
    with client_of(tmp_path) as client:
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
    assert form.json()["ltx"]["request"]["images"][0][0].startswith("upload_")


@pytest.mark.parametrize(
    "field", ["images", "video_path", "audio_path", "loras", "gemma_root", "checkpoint_path", "output"]
)
@pytest.mark.parametrize("value", ["/etc/passwd", "../../secret", "http://example.com/x", "upload_../../x"])
def test_no_path_of_a_client_is_opened(tmp_path: Path, field: str, value: str) -> None:
    with client_of(tmp_path) as client:
        given = [value] if field in ("images", "loras") else value
        answer = client.post("/v1/videos", json={**SMALL, field: given})
        assert answer.status_code == 400, answer.text
        assert client.get("/v1/videos").json()["data"] == []


def test_host_key_and_size_are_checked(tmp_path: Path) -> None:
    with client_of(tmp_path, key="secret", limits=Limits(upload_bytes=1000)) as client:
        assert client.get("/v1/videos").status_code == 401
        assert client.get("/v1/videos", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/videos", headers={"authorization": "Bearer secret"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        evil = client.get("/v1/videos", headers={"host": "evil.example", "authorization": "Bearer secret"})
        assert evil.status_code == 421
        large = client.post("/v1/uploads", content=b"x" * 2000, headers={"authorization": "Bearer secret"})
        assert large.status_code == 413
        page = client.get("/")
        assert "default-src 'self'" in page.headers["content-security-policy"]


def test_too_many_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltx_studio.planner.Planner.check", lambda self, request: None)
    with client_of(tmp_path, limits=Limits(creates_per_minute=3)) as client:
        codes = [client.post("/v1/videos", json=SMALL).status_code for _ in range(5)]
        assert codes == [200, 200, 200, 429, 429]
    with client_of(tmp_path / "full", limits=Limits(queued_jobs=1)) as client:
        assert [client.post("/v1/videos", json=SMALL).status_code for _ in range(2)] == [200, 429]


def test_the_document_lists_every_option(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "seconds", "size", "seed", "images", "num_frames"} <= body["properties"].keys()
