"""What a model asks to be asked: read from its file, used by every pipeline, given way to by what a user says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx_core.components.guiders import DEFAULT_NEGATIVE_PROMPT, MultiModalGuiderParams
from ltx_core.errors import ConfigError
from ltx_pipelines.cli.session import open_session
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.extend import ExtendPipeline
from ltx_pipelines.planning.stages import default_guidance
from ltx_pipelines.request import GUIDANCE as GUIDER_FIELDS
from ltx_pipelines.running.model_facts import read_default_request
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.ti2vid_two_stages_hq import GUIDANCE, TI2VidTwoStagesHQPipeline

PLAIN = {"cfg_scale": 2.5, "stg_scale": 0.0, "modality_scale": 1.0, "rescale_scale": 0.0}
ASKED = {
    "height": 128,
    "width": 192,
    "num_frames": 17,
    "frame_rate": 25.0,
    "num_inference_steps": 3,
    "negative_prompt": "murk",
    "video_guider_params": PLAIN,
    "audio_guider_params": {"cfg_scale": 2.0},
}


@pytest.fixture(scope="module")
def asking(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a longer list of wishes."""
    folder = tmp_path_factory.mktemp("asking")
    for path in small_model.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(small_model)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(small_model)).symlink_to(path)
    checkpoint = Path(find_model(str(folder)).files.checkpoint)
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(checkpoint)
    checkpoint.unlink()
    save_file(tensors, checkpoint, metadata={**metadata, "default_request": json.dumps(ASKED)})
    return folder


def test_a_pipeline_asks_what_the_model_wants(asking: Path) -> None:
    pipeline = TI2VidOneStagePipeline.from_pretrained(asking)
    flat = {f"video_{name}": value for name, value in PLAIN.items()} | {"audio_cfg_scale": 2.0}
    given = {name: value for name, value in ASKED.items() if not name.endswith("params")}
    assert pipeline.ledger.default_request == given | flat
    plan = pipeline.plan(prompt="a bell")
    assert (plan.shape.height, plan.shape.width, plan.shape.frames, plan.shape.fps) == (128, 192, 17, 25.0)
    assert plan.stages[0].steps == 3 and plan.negative_prompt == "murk"
    usual = default_guidance(pipeline.ledger.defaults)
    streams = plan.stages[0].streams
    assert streams["video"].guidance == replace(usual["video"], **PLAIN)
    assert streams["audio"].guidance == replace(usual["audio"], cfg_scale=2.0)
    assert TI2VidOneStagePipeline.plan(pipeline, prompt="a bell", height=None).shape.height == 128


def test_what_is_said_wins_field_by_field(asking: Path) -> None:
    pipeline = TI2VidTwoStagesPipeline.from_pretrained(asking)
    plan = pipeline.plan(prompt="a bell", width=256, num_inference_steps=5, negative_prompt="")
    assert (plan.shape.height, plan.shape.width) == (128, 256)
    assert plan.stages[0].steps == 5 and plan.negative_prompt == ""
    mine = MultiModalGuiderParams(cfg_scale=9.0)
    assert pipeline.plan(prompt="a bell", video_guider_params=mine).stages[0].streams["video"].guidance == mine


def test_an_option_replaces_its_own_field_alone(asking: Path) -> None:
    given: dict[str, Any] = {"model": str(asking), "prompt": "a bell", "video_cfg_scale": 5.0, "duration": 2.2}
    session = open_session(given)
    plan = session.pipeline.plan(**session.request)
    guidance = plan.stages[0].streams["video"].guidance
    assert guidance is not None
    assert guidance.cfg_scale == 5.0 and {name: getattr(guidance, name) for name in PLAIN} == {
        **PLAIN,
        "cfg_scale": 5.0,
    }
    assert plan.stages[0].streams["audio"].guidance == session.pipeline.guidance("audio")
    assert plan.shape.frames == 57 and plan.shape.fps == 25.0  # at the model's own rate


def test_a_pipeline_takes_what_it_has_a_use_for(asking: Path, media_folder: Path) -> None:
    distilled = DistilledPipeline.from_pretrained(asking).plan(prompt="a bell")
    assert distilled.shape.frames == 17 and not distilled.stages[0].guided and distilled.negative_prompt is None
    longer = ExtendPipeline.from_pretrained(asking)
    plan = longer.plan(prompt="a bell", video_path=str(media_folder / "clip.mp4"), extend_seconds=0.4)
    assert (plan.shape.height, plan.shape.width, plan.shape.fps) == (64, 64, 24.0)  # those of the clip
    hq = TI2VidTwoStagesHQPipeline.from_pretrained(asking)
    assert hq.guidance("audio") == replace(GUIDANCE["audio"], cfg_scale=2.0)


def test_without_wishes_nothing_changes(small_model: Path) -> None:
    pipeline = TI2VidOneStagePipeline.from_pretrained(small_model)
    pipeline.ledger.__dict__["default_request"] = {}
    plan = pipeline.plan(prompt="a bell", num_frames=9)
    assert (plan.shape.height, plan.shape.width, plan.shape.fps) == (512, 768, 24.0)
    assert plan.stages[0].streams["video"].guidance == default_guidance(pipeline.ledger.defaults)["video"]
    assert plan.negative_prompt == DEFAULT_NEGATIVE_PROMPT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "default_request: it is no JSON"),
        ("[256]", "default_request is list, expected an object"),
        ('{"heigth": 256}', "no field is called heigth; nearest valid: height"),
        ('{"height": "256"}', "height is '256', expected an integer"),
        ('{"height": true}', "height is True, expected an integer"),
        ('{"sigmas": [1, "a"]}', "expected a list of numbers"),
        ('{"video_guider_params": 3}', "video_guider_params is 3, expected an object"),
        (
            '{"video_guider_params": {"cfg": 3}}',
            "video_guider_params: no field is called cfg; expected one of cfg_scale",
        ),
        ('{"audio_guider_params": {"stg_blocks": 28}}', "stg_blocks is 28, expected a list of integers"),
    ],
)
def test_a_wrong_wish_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_default_request(text, "model.safetensors")
    assert str(error.value).startswith("model.safetensors: default_request") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_guider_field_can_be_wished() -> None:
    whole = {"guider", "apg_eta", "apg_norm_threshold", "apg_momentum"}  # chosen once, for a whole request
    assert set(GUIDER_FIELDS) | whole == set(vars(MultiModalGuiderParams()))


def test_an_unknown_guider_field_of_a_call_is_named(small_model: Path) -> None:
    pipeline = TI2VidOneStagePipeline.from_pretrained(small_model)
    with pytest.raises(ConfigError, match="no field cfg_scal; nearest valid: cfg_scale"):
        pipeline.plan(prompt="a bell", video_guider_params={"cfg_scal": 3})
