"""One validation for Python, commands and batches: the same request is the same plan, or the same error."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ltx_core.components.schedulers import BetaScheduler
from ltx_core.errors import LtxError, NonFiniteError
from ltx_core.sampling.samplers import EulerSampler
from ltx_core.types import Audio
from ltx_pipelines.cli import session as session_module
from ltx_pipelines.cli.app import run
from ltx_pipelines.cli.batch import read_lines
from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.fields import every_option, options_for
from ltx_pipelines.cli.session import open_session
from ltx_pipelines.pipeline import Pipeline, every_field, pipelines
from ltx_pipelines.planning.plan import Lora, Plan
from ltx_pipelines.running.engine import generate
from ltx_pipelines.running.finite import finite_frames, finite_sound
from ltx_pipelines.running.networks import find_networks
from ltx_pipelines.running.recipe import changes_since
from ltx_pipelines.utils.media_io import read_recipe
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_tiny.bundle import model_folder

# Values good and bad, by field; all are of the right type, so that a line can spell them.
VALUES: dict[str, list[Any]] = {
    "negative_prompt": ["ugly", ""],
    "seed": [0, 2**40, 2**70, -5],
    "height": [0, 64, 100, 128],
    "width": [-64, 64, 128, 130],
    "num_frames": [0, 1, 9, 12, 17],
    "duration": [0.5, 0.0],
    "auto_duration": [[1.0, 5.0]],
    "frame_rate": [0.0, 24.0, 25.0, 29.97],
    "num_inference_steps": [0, 1, 3, 2000],
    "sigmas": [[1.0, 0.5, 0.0], [0.5, 0.9], [2.0, 0.0]],
    "scheduler": ["ltx2", "beta", "linear_quadratic"],
    "sampler": ["euler", "heun", "res_2s", "euler_ancestral"],
    "eta": [0.5, -1.0],
    "guider": ["cfg", "apg"],
    "apg_eta": [0.5],
    "max_batch_size": [0, 1, 2, 9],
    "video_cfg_scale": [1.0, 4.0, {"0.9": 1.0, "1.0": 6.0}],
    "audio_stg_scale": [0.0, 1.5],
    "video_stg_blocks": [[0], [99], []],
    "video_skip_step": [0, 1, -1],
    "images": [[["photo.png"]], [["photo.png", 8, 0.5]], [["photo.png", 99]], [["none.png", 0]], [["clip.mp4", 0]]],
    "generated_keyframes": [2, [4, 8]],
    "video_path": ["clip.mp4", "none.mp4", "photo.png", "voice.wav"],
    "audio_path": ["voice.wav", "silent.mp4"],
    "start_time": [0.0, 0.2, 99.0],
    "end_time": [0.1, 0.5, 50.0],
    "regenerate_audio": [False],
    "extend_seconds": [0.5, -1.0],
    "video_conditioning": [[["pose.mp4", 1.0]], [["pose.mp4", 7.0]]],
    "background": ["white", "blak"],
    "heigth": [64],
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A pipeline and what it is asked: mostly fields that it takes."""
    name = draw(st.sampled_from([name for name in pipelines() if name not in ("ltxv", "ltxav", "dubit")]))
    taken = [field for field in VALUES if field in pipelines()[name].fields()]
    fields = draw(st.lists(st.sampled_from(taken), max_size=4, unique=True))
    if draw(st.integers(0, 5)) == 0:
        fields.append(draw(st.sampled_from(list(VALUES))))
    asked = {field: draw(st.sampled_from(VALUES[field])) for field in fields}
    prompt = draw(st.sampled_from(["a bell", "a bell", "a bell", ""]))
    size = {"height": 128, "width": 128} if "height" in taken else {}
    return name, {"prompt": prompt, "snap": draw(st.booleans()), **size, **asked}


def tokens(asked: Mapping[str, Any]) -> list[str]:
    """The options that say a request on a line."""
    line: list[str] = []
    for name, value in asked.items():
        one = every_option().get(name)
        if one is None:
            line += [f"--{name}", str(value)]
        elif one.is_switch:
            line.append(one.spellings[0 if value else 1])
        elif one.repeatable:
            line += [token for entry in value for token in (one.flag, *map(str, entry))]
        elif isinstance(value, dict):
            line += [one.flag, *(f"{level}:{scale}" for level, scale in value.items())]
        else:
            line += [one.flag, *map(str, value if isinstance(value, list) else [value])]
    return line


def outcome(make: Callable[[], Plan]) -> Any:
    """The plan, or the error in the words that all ways to ask share."""
    try:
        return make()
    except LtxError as error:
        if "heigth" in str(error):  # each way proposes what is near in its own spelling
            return "a name that nobody knows"
        text = re.sub(r"^requests\.jsonl, line 1: ", "", str(error))
        text = re.sub(r"--(no-)?[a-z0-9-]+", lambda flag: field_of(flag[0]), text)
        text = re.sub(r"`ltx ([a-z0-9-]+)`", lambda name: pipelines()[name[1]].__name__, text)
        text = re.sub(r"(?<= in )[a-z0-9-]+(?=,)", lambda name: pipelines()[name[0]].__name__, text)
        return type(error).__name__, text


def field_of(flag: str) -> str:
    return next((name for name, one in every_option().items() if flag in one.spellings), flag[2:])


@pytest.fixture
def ledgers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Shared networks, whose files are looked for once."""
    found = cache(lambda variant: find_networks({}, variant))
    monkeypatch.setattr(session_module, "find_networks", lambda given, variant=None: found(variant))
    return {}


@given(asked=requests())
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_way_to_ask_gives_the_same(
    here: Path, ledgers: dict[str, Any], asked: tuple[str, dict[str, Any]]
) -> None:
    name, request = asked
    kind = pipelines()[name]

    def in_python() -> Plan:
        absolute = {field: with_folder(here, field, value) for field, value in request.items()}
        session = open_session({}, kind, share=ledgers)
        return kind(session.ledger, (), session.pipeline.distilled_loras).plan(**absolute)

    def session_plan(given: Mapping[str, Any], kind: type[Pipeline]) -> Plan:
        session = open_session(given, kind, share=ledgers)
        return session.pipeline.plan(**session.request)

    def on_a_line() -> Plan:
        found: list[Plan] = []
        command = Command(
            name, "", options_for(kind), lambda given: found.append(session_plan(given, kind)), "", every_option
        )
        command(tokens(request))
        return found[0]

    def in_a_batch() -> Plan:
        (here / "requests.jsonl").write_text(json.dumps({**request, "pipeline": name}))
        (line,) = read_lines(Path("requests.jsonl"), "clips", "", {})
        given = {field: value for field, value in line.given.items() if field != "output"}
        assert line.number == 1 and line.given["pipeline"] == name
        return session_plan(given, kind)

    python, line, batch = map(outcome, (in_python, on_a_line, in_a_batch))
    assert python == line == batch


def with_folder(folder: Path, field: str, value: Any) -> Any:
    """Python takes files as they are; lines make them absolute, so that a recipe can be followed from any folder."""
    if field in ("video_path", "audio_path"):
        return str(folder / value)
    if field in ("images", "video_conditioning"):
        return [(str(folder / path), *rest) for path, *rest in value]
    return {float(level): scale for level, scale in value.items()} if isinstance(value, dict) else value


def test_the_values_name_fields() -> None:
    assert VALUES.keys() - {"heigth"} <= every_field().keys()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("distilled -p x -o x.gif --contact-sheet x.png", "a contact sheet needs .mp4"),
        ("distilled -p x -o x.mp4 --contact-sheet x.jpg", "contact_sheet is x.jpg, expected .png"),
        ("distilled -p x -o x.gif --crf 5", "crf is for .mp4"),
        ("distilled -p x -H 0", "height is 0, expected at least 1"),
        ("distilled -p x --contact-sheet photo.png -o x.mp4", "photo.png is there already"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_the_run(
    line: str, said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(line.split()) in (1, 2)
    shown = capfd.readouterr().err
    assert said in shown and "reading the prompt" not in shown


def test_a_line_of_a_batch_is_given_all_that_it_asks_for(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    entry = {"prompt": "bell", "pipeline": "distilled", "output": str(here / "a.mp4"), "contact_sheet": "a.png"}
    (here / "all.jsonl").write_text(json.dumps({**entry, "keep_latents": True}))
    assert run(["batch", "all.jsonl", "-q"]) == 0
    assert {"a.mp4", "a.png", "a.stage1.safetensors"} <= {path.name for path in here.iterdir()}
    (here / "a.png").unlink()
    assert run(["batch", "all.jsonl"]) == 1  # what is there is not replaced
    assert "a.mp4 is there already" in capfd.readouterr().err
    (here / "draft.jsonl").write_text(json.dumps({"prompt": "bell", "pipeline": "distilled", "first_stage": True}))
    assert run(["batch", "draft.jsonl", "-q"]) == run(["batch", "draft.jsonl", "-q"]) == 0
    assert (here / "clips" / "0001.stage1.safetensors").exists()
    (here / "quiet.jsonl").write_text(json.dumps({"prompt": "bell", "quiet": True}))
    assert run(["batch", "quiet.jsonl"]) == 2
    assert "line 1: quiet has no effect in one request of many" in capfd.readouterr().err


def test_long_prompts_are_cut_with_a_line(small_model: Path, ltx_video: ModelLedger) -> None:
    pipeline = pipelines()["distilled"].from_pretrained(small_model, device="cpu")
    limit, size = pipeline.ledger.text_tokens, {"height": 64, "width": 64, "num_frames": 9}
    words = "bell " * 40 * limit
    count = pipeline.ledger.count_tokens(words)
    said = f"the prompt has {count} tokens, the model reads {limit}: the last {count - limit} are dropped"
    assert count > limit and pipeline.plan(words, **size).notes == (said,)
    assert pipeline.plan("bell", **size).notes == ()
    plan = pipelines()["ltxv"](ltx_video).plan("a bell " * 200, pipeline_config="2b-0.9.6-distilled", **size)
    assert plan.notes == ("the prompt has 400 tokens, the model reads 256: the last 144 are dropped",)


@pytest.fixture
def ltx_video(here: Path) -> ModelLedger:
    found = find_networks({"checkpoint_path": "ltxv-2b-0.9.6-distilled.safetensors", "text_encoder": "t5"})
    return ModelLedger(found.files, device="cpu")


def test_an_empty_prompt_needs_something_to_begin_with(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for line in ("v2a --video clip.mp4 --steps 1", "one-stage -i photo.png -f 9 --steps 1", "retake --video clip.mp4"):
        more = ["--start", "0.5", "--full-model", "--steps", "1"] if line.startswith("retake") else []
        assert run([*line.split(), *more, "-q", "-o", "a.mp4", "--overwrite"]) == 0, line
    capfd.readouterr()
    assert run(["one-stage", "-q", "-f", "9"]) == 1
    assert "prompt is empty, expected a description of the clip, or a picture" in capfd.readouterr().err


@pytest.mark.parametrize("name", [name for name, kind in pipelines().items() if "sampler" in kind.fields()])
def test_every_guided_pipeline_is_guided_by_noise_level(name: str, here: Path) -> None:
    kind = pipelines()[name]
    needs: dict[str, Any] = {"video_path": "clip.mp4", "start_time": 0.2, "extend_seconds": 0.5, "distilled": False}
    needs |= {"audio_path": "voice.wav", "height": 64, "width": 64, "num_frames": 9}
    asked = {field: value for field, value in needs.items() if field in kind.fields()}
    stream = "video" if "video_cfg_scale" in kind.fields() else "audio"
    levels = {f"{stream}_cfg_scale": {0.5: 1.0, 1.0: 6.0}}
    sampling = {"sampler": "heun", "scheduler": "beta", "num_inference_steps": 4}
    pipeline = kind.from_pretrained(os.environ["LTX_MODEL"], device="cpu", policy="resident")
    plan = pipeline.plan("a bell", **asked, **levels, **sampling)
    first = plan.stages[0]
    bins = first.streams[stream].guidance_by_sigma
    assert [(level, params.cfg_scale) for level, params in bins] == [(0.5, 1.0), (1.0, 6.0)]
    assert first.sampler.kind == "heun" and first.sigmas == tuple(BetaScheduler().execute(4).tolist())
    for _ in generate(plan.with_(stages=plan.stages[:1]), pipeline.ledger, decode=False):
        pass


def test_a_reference_without_an_adapter_that_takes_it_is_said(here: Path) -> None:
    pipeline = pipelines()["ic-lora"].from_pretrained(os.environ["LTX_MODEL"])
    request: dict[str, Any] = {"video_conditioning": "pose.mp4", "height": 128, "width": 128, "num_frames": 17}
    (said,) = [note for note in pipeline.plan("a bell", **request).notes if "follow" in note]
    assert said == "pose.mp4: no adapter is given (--lora), so nothing will follow it"
    pipeline.loras = (Lora("ic-lora.safetensors"),)
    assert not [note for note in pipeline.plan("a bell", **request).notes if "follow" in note]


def test_a_clip_is_the_same_wherever_it_is_made(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [{"prompt": text, "pipeline": "one-stage", "num_frames": 9} for text in ("a drum", "a bell")]
    (here / "two.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(["batch", "two.jsonl", "-q"]) == 0
    assert run(["one-stage", "-p", "a bell", "-f", "9", "-o", "alone.mp4", "-q"]) == 0
    assert run(["rerun", "alone.mp4", "-q"]) == 0
    assert run(["compare", "alone.mp4", "clips/0002.mp4"]) == run(["compare", "alone.mp4", "alone-again.mp4"]) == 0
    said = capfd.readouterr().out
    assert said.count("picture: equal\nsound: equal\n") == 2
    recipe = read_recipe("alone.mp4")
    assert recipe is not None and recipe["versions"]["threads"] == str(torch.get_num_threads())
    then = {**recipe, "files": {}, "versions": {**recipe["versions"], "threads": "99"}}
    assert list(changes_since(then)) == [f"threads was 99, is {torch.get_num_threads()}"]


def test_a_prompt_is_encoded_alone(small_model: Path) -> None:
    ledger = pipelines()["distilled"].from_pretrained(small_model, device="cpu").ledger
    alone = ledger.texts.contexts(["a bell rings"])[0]
    other = ModelLedger(ledger.files, device="cpu").texts.contexts(["ugly", "a bell rings"])[1]
    assert torch.equal(alone.video, other.video)
    assert alone.audio is not None and other.audio is not None and torch.equal(alone.audio, other.audio)


def test_numbers_that_are_none_end_a_run_and_say_where_they_began(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = load_file(here / "ic-lora.safetensors")
    name = next(name for name in adapter if "lora_B" in name)
    adapter[name][0, 0] = float("nan")
    save_file(adapter, here / "bad.safetensors")
    line = "one-stage -p bell -o bell.mp4 -f 9 -q"
    assert run([*line.split(), "--lora", "bad.safetensors"]) == 1
    said = capfd.readouterr().err
    assert "the video latent after step 1 of 2 of stage 1 holds NaN or infinity, as " in said
    assert f"of the adapter {here / 'bad.safetensors'} does" in said
    monkeypatch.setattr(EulerSampler, "step", nan_after_the_first_step(EulerSampler.step))
    assert run(line.split()) == 1
    assert "the audio latent after step 2 of 2 of stage 1 holds NaN or infinity in " in capfd.readouterr().err
    monkeypatch.undo()
    assert not (here / "bell.mp4").exists()


def nan_after_the_first_step(step: Callable[..., Any]) -> Callable[..., Any]:
    def broken(self: EulerSampler, predict: Any, states: Any, index: int, memory: Any) -> Any:
        after = step(self, predict, states, index, memory)
        if index:
            after["audio"].latent[0, 0] = float("inf")
        return after

    return broken


def test_frames_and_sounds_that_are_none() -> None:
    chunks = [torch.zeros(2, 4, 4, 3), torch.zeros(3, 4, 4, 3)]
    assert len(list(finite_frames(chunks))) == 2
    chunks[1][1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="frame 3 was decoded to NaN"):
        list(finite_frames(chunks))
    with pytest.raises(NonFiniteError, match="the sound was decoded to NaN"):
        finite_sound(Audio(torch.full((1, 2, 4), float("inf")), 16000))


def test_a_model_that_cannot_chat_writes_no_prompts(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = here / "silent"
    shutil.copytree(model_folder(), model, ignore=shutil.ignore_patterns("chat_template*"))
    assert run(["distilled", "-p", "bell", "-m", str(model), "--enhance-prompt", "-q"]) == 1
    (said,) = capfd.readouterr().err.strip().splitlines()
    assert "has no chat template and writes no prompts; name an instruction-tuned Gemma" in said
    assert run(["distilled", "-p", "bell", "-H", "100", "--no-snap", "--enhance-prompt", "-q"]) == 1
    assert "height is 100" in capfd.readouterr().err
