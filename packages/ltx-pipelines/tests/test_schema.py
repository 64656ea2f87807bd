"""The request schema: what fits a field, what each way to ask means, and what is made of the declarations."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import ltx_pipelines
from ltx_core.errors import ConfigError
from ltx_pipelines.cli.batch import read_lines
from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.fields import every_option, from_json, options_for
from ltx_pipelines.pipeline import Pipeline, pipelines
from ltx_pipelines.planning import validation
from ltx_pipelines.planning.plan import ImageCondition, Lora
from ltx_pipelines.planning.schema import File, Misfit, Option, UsageError, fit, option, options_of, plain, read_all
from ltx_pipelines.request import AutoDuration, Reference
from ltx_pipelines.running.model_facts import SLOTS

IMAGE = ImageCondition("a.png", 8, 0.5)


@pytest.mark.parametrize(
    ("hint", "value", "fitted"),
    [
        (int, 8.0, 8),
        (int, np.int64(3), 3),
        (float, 2, 2.0),
        (str, Path("a/b"), "a/b"),
        (File | None, None, None),
        (tuple[float, ...], [1, 0.5], (1.0, 0.5)),
        (int | tuple[int, ...], [1, 2], (1, 2)),
        (tuple[ImageCondition, ...], "a.png", (ImageCondition("a.png"),)),
        (tuple[ImageCondition, ...], ["a.png", 8, 0.5], (IMAGE,)),
        (
            tuple[ImageCondition, ...],
            [("a.png", 8, 0.5), {"path": "b.png"}, IMAGE],
            (IMAGE, ImageCondition("b.png"), IMAGE),
        ),
        (tuple[Lora, ...], ("a", "b"), (Lora("a"), Lora("b"))),
        (AutoDuration | None, [1, 5], AutoDuration(1.0, 5.0)),
        (Reference | None, "mask.mp4", Reference("mask.mp4")),
        (Literal["after", "before"], "before", "before"),
    ],
)
def test_what_fits(hint: Any, value: Any, fitted: Any) -> None:
    assert fit(hint, value) == fitted


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, True, "an integer"),
        (int, "8", "an integer"),
        (int, 8.5, "an integer"),
        (float, "inf", "a number"),
        (float, float("nan"), "a number"),
        (bool, 1, "true or false"),
        (str, 5, "a text"),
        (tuple[float, ...], 3, "a list of numbers"),
        (int | AutoDuration, None, "an integer"),
        (Literal["after", "before"], "befor", "one of after, before; nearest valid: before"),
        (tuple[ImageCondition, ...], [5], "a file name"),
    ],
)
def test_what_does_not_fit(hint: Any, value: Any, expected: str) -> None:
    with pytest.raises(Misfit, match=expected):
        fit(hint, value)


@dataclass(frozen=True)
class Example:
    """One field of each sort of range."""

    steps: int = option(5, "Steps.", least=1, most=10)
    rate: float | None = option(None, "Rate.", positive=True, unit="frames/s", shown="24")
    sigmas: tuple[float, ...] = option((), "Levels.", least=0, most=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 11}, "steps is 11, expected 1 to 10; nearest valid: 10"),
        ({"rate": 0}, "rate is 0.0, expected a positive number"),
        ({"sigmas": [2, 0]}, "sigmas is 2.0, expected 0 to 1; nearest valid: 1"),
        ({"step": 3}, "who has no argument step; nearest valid: steps"),
        ({"zzz": 3}, "who has no argument zzz; expected one of rate, sigmas, steps"),
    ],
)
def test_errors_name_the_field_and_the_nearest_value(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_all(options_of(Example), given, "who")


def test_a_field_of_others_has_no_effect() -> None:
    others = {"width": Option("width", int, 5, "Width.")}
    assert read_all({}, {"width": 5}, "who", others) == {}
    with pytest.raises(UsageError, match="width has no effect in who"):
        read_all({}, {"width": 6}, "who", others)


def test_words_made_of_a_declaration() -> None:
    rate = options_of(Example)["rate"]
    assert (rate.flag, rate.value, rate.facts) == ("--rate", "X", "frames/s, positive; default 24")
    schema = {"description": "Rate.", "type": "number", "exclusiveMinimum": 0, "unit": "frames/s"}
    assert rate.json_schema() == schema
    assert options_of(Example)["sigmas"].json_schema()["items"] == {"type": "number", "minimum": 0, "maximum": 1}


ASKED = [  # as a line, as JSON: the same values
    ("-p x -i a.png 8 0.5", {"prompt": "x", "image": ["a.png", 8, 0.5]}),
    ("-i a.png 8 0.5 -i b.png", {"image": [["a.png", 8, 0.5], "b.png"]}),
    ("--no-snap --keep-video", {"no-snap": True, "keep-video": True}),
    ("--lora a.safetensors 0.5 --cfg 3", {"loras": [{"path": "a.safetensors", "strength": 0.5}], "cfg": 3}),
    ("--sigmas 1 0.5 0 --fps 25 -s 3", {"sigmas": [1, 0.5, 0], "frame-rate": 25, "seed": 3}),
    ("--video-stg-blocks 28 --a2v-guidance-scale 2", {"video_stg_blocks": [28], "a2v-guidance-scale": 2}),
    ("--auto-duration 1 5 --steps 8", {"auto_duration": [1, 5], "num_inference_steps": 8}),
]


@pytest.mark.parametrize(("line", "entry"), ASKED)
def test_a_line_and_an_entry_mean_the_same_and_survive_json(line: str, entry: dict[str, Any]) -> None:
    options = {name: one for kind in pipelines().values() for name, one in options_for(kind).items()}
    given = Command("generate", "", options, print, "prompt").parse(line.split())
    assert given == from_json(entry, "x")
    kept = json.loads(json.dumps({name: plain(value) for name, value in given.items()}))
    assert read_all(options, kept, "x") == given


def test_requests_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "requests.yaml"
    file.write_text("- prompt: a bell\n  image: [a.png, 8, 0.5]\n  seeds: 1-2\n- {prompt: a drum, output: drum.mp4}\n")
    lines = list(read_lines(file, str(tmp_path), "", {}))
    assert [(line.number, line.given["prompt"], line.given.get("seed")) for line in lines] == [
        (1, "a bell", 1),
        (1, "a bell", 2),
        (2, "a drum", None),
    ]
    file.write_text("- [")
    with pytest.raises(ConfigError, match="is no YAML"):
        list(read_lines(file, str(tmp_path), "", {}))


@pytest.mark.parametrize("kind", pipelines().values(), ids=lambda kind: kind.__name__)
def test_every_argument_is_in_signature_docstring_and_schema(kind: type[Pipeline]) -> None:
    schema = ltx_pipelines.request_schema(kind.__name__)
    for method in (kind.__call__, kind.plan, kind.stream):
        parameters, text = inspect.signature(method).parameters, str(method.__doc__)
        for name, one in kind.fields().items():
            assert name in parameters and f"\n    {name}: " in text and one.help in text
            assert one.hidden or schema["properties"][name]["description"] == one.help
            assert one.facts in text
    json.dumps(schema)


def test_pipelines_are_described_without_torch() -> None:
    program = (
        "import sys, ltx_pipelines\n"
        "from ltx_pipelines import DistilledPipeline, request_schema\n"
        "assert DistilledPipeline.__call__.__doc__ and request_schema('retake')\n"
        "heavy = {'torch', 'transformers', 'av', 'pydantic', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_advice_names_options_there_are() -> None:
    fields = {validation.FIELDS.get(component, slot) for component, slot in SLOTS.items()}
    assert fields | set(validation.FIELDS.values()) <= every_option().keys()
