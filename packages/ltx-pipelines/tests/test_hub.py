"""What is said when the hub refuses, and that known models are described."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltx_core.errors import CheckpointError
from ltx_pipelines.running import hub, model_files
from ltx_pipelines.running.hub import KNOWN_MODELS, advice, hub_errors


class GatedRepoError(OSError):
    """Named like the hub's own."""


class RepositoryNotFoundError(OSError):
    """Named like the hub's own."""


def test_known_models_name_their_licence_and_what_else_they_need() -> None:
    for repo, model in KNOWN_MODELS.items():
        assert model.repo == repo and model.license and model.files and model.gigabytes > 1
        assert all(other in KNOWN_MODELS for other in model.needs)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            GatedRepoError("403"),
            ("LTX-2 Community License", "https://huggingface.co/Lightricks/LTX-2", "hf auth login"),
        ),
        (RepositoryNotFoundError("404"), ("not on the hub", "private")),
        (OSError(28, "No space left on device"), ("disk full", "HF_HOME")),
        (OSError("Got: ConnectError: [Errno -2] Name or service not known"), ("cannot be reached", "--model")),
        (OSError("something else"), ("something else", "run the same command again")),
    ],
)
def test_advice(error: OSError, said: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "_has_token", lambda: False)
    with pytest.raises(CheckpointError) as raised, hub_errors("Lightricks/LTX-2"):
        raise error
    message = str(raised.value)
    assert "\n" not in message and all(piece in message for piece in said)


def test_advice_offline_and_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_has_token", lambda: True)
    assert "your token may not read it" in advice("Lightricks/LTX-2", GatedRepoError())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in advice("Lightricks/LTX-2", OSError())


def test_a_hub_model_takes_its_text_encoder_from_where_it_lies(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    folders = {"Lightricks/LTX-2": small_model, hub.GEMMA_3: small_model / "gemma-3-tiny"}

    def fetch(repo: str) -> Path:
        fetched.append(repo)
        return folders[repo]

    real = model_files.find_in_folder

    def without_encoder(*arguments: Any) -> Any:
        found = real(*arguments)
        return replace(found, files=replace(found.files, text_encoder=None))

    monkeypatch.setattr(hub, "download_model", fetch)
    monkeypatch.setattr(model_files, "find_in_folder", without_encoder)
    found = model_files.from_hub("Lightricks/LTX-2", "distilled")
    assert fetched == ["Lightricks/LTX-2", hub.GEMMA_3]
    assert found.files.text_encoder == str(small_model / "gemma-3-tiny")


def test_a_hub_id_with_dots_is_no_file_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model_files, "from_hub", lambda repo, variant: asked.append(repo))
    model_files.find_model("Lightricks/LTX-2.3")
    assert asked == ["Lightricks/LTX-2.3"]
