"""A model that knows only some prompts says so in one line, and makes its clip all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltx_core.errors import ConfigError
from ltx_pipelines.cli.generate import make_plan
from ltx_pipelines.cli.progress import Reporter
from ltx_pipelines.cli.session import open_session
from ltx_pipelines.running.model_facts import PromptWorld

GIVEN = {
    "words": ["a", "ball", "red"],
    "one_of": ["ball"],
    "says": "knows balls alone",
    "examples": ["a red ball"],
}
WORLD = PromptWorld.read(json.dumps(GIVEN), "model.safetensors")


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [("A red ball.", True), ("a ball", True), ("a red", False), ("a blue ball", False), ("", False)],
)
def test_a_prompt_is_inside_by_its_words(prompt: str, inside: bool) -> None:
    assert WORLD.holds(prompt) is inside


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"text"', json.dumps({**GIVEN, "words": 3})])
def test_what_cannot_be_read_is_named_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.safetensors: prompt_world cannot be read, expected .*examples$"):
        PromptWorld.read(text, "model.safetensors")
    with pytest.raises(ConfigError, match="no text"):
        PromptWorld.read(json.dumps({**GIVEN, "words": [3]}), "model.safetensors")


@pytest.mark.parametrize(("prompt", "told"), [("a red ball", False), ("a cat on a piano", True)])
def test_who_asks_for_more_is_told_once(
    prompt: str, told: bool, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"model": str(small_model), "prompt": prompt}
    session = open_session(given)
    session.ledger.__dict__["prompt_world"] = WORLD
    assert make_plan(session, given, Reporter("lines")).prompt == prompt
    said = [line for line in capsys.readouterr().err.splitlines() if "knows balls alone" in line]
    assert len(said) == told
    assert all("--model" in line and "ltx models" in line for line in said)
