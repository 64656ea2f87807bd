"""Whole tasks on both backends: the same frames and the same sound, from noise to file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

mx = pytest.importorskip("mlx.core", reason="mlx is not installed: `pip install mlx`, on Linux mlx-cpu too")

from ltx_core.components.guiders import MultiModalGuiderParams  # noqa: E402
from ltx_core.types import Audio  # noqa: E402
from ltx_pipelines.a2vid_two_stage import A2VidPipelineTwoStage  # noqa: E402
from ltx_pipelines.cli.app import run as ltx  # noqa: E402
from ltx_pipelines.distilled import DistilledPipeline  # noqa: E402
from ltx_pipelines.keyframe_interpolation import KeyframeInterpolationPipeline  # noqa: E402
from ltx_pipelines.pipeline import Pipeline  # noqa: E402
from ltx_pipelines.planning.cost import cost_of  # noqa: E402
from ltx_pipelines.planning.plan import plan_from_json  # noqa: E402
from ltx_pipelines.retake import RetakePipeline  # noqa: E402
from ltx_pipelines.running import placement  # noqa: E402
from ltx_pipelines.running.engine import generate  # noqa: E402
from ltx_pipelines.running.model_files import find_model  # noqa: E402
from ltx_pipelines.t2a_one_stage import T2AOneStagePipeline  # noqa: E402
from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline  # noqa: E402
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline  # noqa: E402
from ltx_pipelines.utils.media_io import read_recipe, write_png, write_video, write_wav  # noqa: E402
from ltx_pipelines.utils.model_ledger import ModelLedger  # noqa: E402

pytestmark = pytest.mark.backend("mlx")

TINY = Path(__file__).parents[3] / "tests" / "data" / "tiny-checkpoint"
SIZE: dict[str, Any] = {"prompt": "a bell rings", "height": 64, "width": 64, "num_frames": 9, "seed": 3}
STEPS = {**SIZE, "num_inference_steps": 2}
SOUND = {name: value for name, value in STEPS.items() if name not in ("height", "width")}
GUIDED = {
    "video_guider_params": MultiModalGuiderParams(cfg_scale=3.0, stg_scale=1.0, modality_scale=2.0, stg_blocks=[1]),
    "audio_guider_params": MultiModalGuiderParams(cfg_scale=5.0, stg_scale=0.5, modality_scale=2.0, stg_blocks=[0]),
}
CLOSE = 1e-3


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("media"), torch.Generator().manual_seed(0)
    for name in ("first", "last"):
        write_png(folder / f"{name}.png", torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8))
    tone = Audio(torch.sin(torch.arange(24000) * 0.05).expand(2, -1) * 0.3, 24000)
    ramp = torch.linspace(0, 1, 64).expand(17, 64, 64)[..., None].expand(-1, -1, -1, 3)
    write_video(folder / "clip.mp4", [ramp], 24.0, tone)
    write_wav(folder / "voice.wav", tone)
    return folder


@pytest.fixture(scope="module")
def ledgers() -> dict[str, ModelLedger]:
    files = find_model(str(TINY)).files
    kept = {"dtype": "float32", "device": "cpu", "policy": "resident"}
    return {backend: ModelLedger(files, backend=backend, **kept) for backend in ("torch", "mlx")}


TASKS: dict[str, tuple[type[Pipeline], dict[str, Any]]] = {
    "distilled": (DistilledPipeline, SIZE),
    "two stages": (TI2VidTwoStagesPipeline, STEPS),
    "guided": (TI2VidOneStagePipeline, {**STEPS, **GUIDED, "negative_prompt": "blurry"}),
    "image to video": (TI2VidOneStagePipeline, {**STEPS, "images": [("first.png", 0, 0.9)]}),
    "keyframes": (KeyframeInterpolationPipeline, {**STEPS, "images": [("first.png", 0, 1.0), ("last.png", 8, 1.0)]}),
    "retake": (
        RetakePipeline,
        {
            "prompt": "a drum",
            "seed": 3,
            "video_path": "clip.mp4",
            "start_time": 0.2,
            "end_time": 0.5,
            "num_inference_steps": 2,
        },
    ),
    "audio to video": (A2VidPipelineTwoStage, {**STEPS, "audio_path": "voice.wav"}),
    "text to audio": (T2AOneStagePipeline, SOUND),
}


@pytest.mark.parametrize("task", TASKS)
def test_both_backends_make_the_same_clip(
    task: str, ledgers: dict[str, ModelLedger], media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(media)
    kind, request = TASKS[task]
    made = {name: result(kind(ledger, *adapters(kind)), request) for name, ledger in ledgers.items()}
    frames, sounds = zip(*(made[name] for name in ("torch", "mlx")), strict=True)
    assert (frames[0] is None) == (task == "text to audio")
    if frames[0] is not None:
        assert frames[0].std() > 0.01
        torch.testing.assert_close(frames[1], frames[0], rtol=0, atol=CLOSE)
    torch.testing.assert_close(sounds[1], sounds[0], rtol=0, atol=CLOSE)


def adapters(kind: type[Pipeline]) -> tuple[Any, ...]:
    """The distilled adapter, for the second stage where there is one."""
    two_stages = (TI2VidTwoStagesPipeline, KeyframeInterpolationPipeline, A2VidPipelineTwoStage)
    return ((), find_model(str(TINY)).distilled_loras) if kind in two_stages else ()


def result(pipeline: Pipeline, request: dict[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Frames, where there are any, and sound."""
    (generation,) = (
        event.generation for event in generate(pipeline.plan(**request), pipeline.ledger) if event.generation
    )
    video, audio = generation.video, generation.audio
    assert audio is not None
    return None if video is None else torch.cat(list(video)), audio.waveform


def test_a_generation_builds_no_network_of_torch(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(media)
    ledger = ModelLedger(find_model(str(TINY)).files, "float32", policy="sequential", backend="mlx")
    built: list[str] = []
    for method in ("register_parameter", "register_buffer"):  # the shared x0 wrapper has neither
        monkeypatch.setattr(nn.Module, method, lambda self, *args, **kwargs: built.append(type(self).__name__))
    kind, request = TASKS["keyframes"]
    result(kind(ledger, *adapters(kind)), request)
    kind, request = TASKS["audio to video"]
    result(kind(ledger, *adapters(kind)), request)
    assert not built


@pytest.mark.parametrize("policy", ["sequential", "streamed"])
def test_memory_policies_give_one_result(policy: str, ledgers: dict[str, ModelLedger]) -> None:
    other = ModelLedger(find_model(str(TINY)).files, "float32", "cpu", policy, backend="mlx")  # type: ignore[arg-type]
    for one, two in zip(
        result(DistilledPipeline(other), SIZE), result(DistilledPipeline(ledgers["mlx"]), SIZE), strict=True
    ):
        assert torch.equal(one, two)


def test_a_plan_keeps_its_backend_and_knows_its_sizes(ledgers: dict[str, ModelLedger]) -> None:
    plan = TI2VidOneStagePipeline(ledgers["mlx"]).plan(**STEPS)
    assert plan.backend == "mlx" and plan_from_json(plan.to_json()) == plan
    costs = [cost_of(plan, ledger).phases for ledger in ledgers.values()]
    sizes = [{name: size for phase in phases for name, size in phase.weights.items()} for phases in costs]
    assert sizes[0] == sizes[1]


def test_quantised_weights_take_less(ledgers: dict[str, ModelLedger]) -> None:
    files = find_model(str(TINY)).files
    small = ModelLedger(files, "float32", policy="resident", backend="mlx", quantization="mlx-q8-g32")
    assert small.transformer_bytes() < 0.7 * ledgers["mlx"].transformer_bytes()
    assert small.weight_bytes()["checkpoint"] < ledgers["mlx"].weight_bytes()["checkpoint"]
    frames, _ = result(DistilledPipeline(small), SIZE)
    exact, _ = result(DistilledPipeline(ledgers["mlx"]), SIZE)
    assert 0 < float((frames - exact).abs().mean()) < 0.05


def test_the_command_computes_with_the_backend_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["distilled", "--model", str(TINY), "--prompt", "a bell", "--height", "64", "--width", "64", "-q"]
    assert ltx([*line, "--num-frames", "9", "--backend", "mlx", "-o", "bell.mp4"]) == 0
    recipe = read_recipe(tmp_path / "bell.mp4")
    assert recipe is not None and json.loads(json.dumps(recipe))["plan"]["backend"] == "mlx"
    assert ltx(["rerun", "bell.mp4", "-o", "again.mp4", "-q", "--trust"]) == 0
    assert read_recipe(tmp_path / "again.mp4")["plan"]["backend"] == "mlx"
    assert ltx([*line, "--backend", "mlx", "--quantization", "fp8-cast"]) == 1


def test_apple_silicon_computes_with_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.default_backend() == "torch"
    monkeypatch.setattr(placement.sys, "platform", "darwin")
    monkeypatch.setattr(placement.platform, "machine", lambda: "arm64")
    assert placement.default_backend() == "mlx"


@pytest.mark.parametrize("frames", [9, pytest.param(49, marks=pytest.mark.slow)])
def test_the_demo_clip_is_torchs(frames: int) -> None:
    """The bundled model, as `ltx demo` and `ltx generate` use it; its demo has 49 frames."""
    found, made = find_model("tiny"), []
    for backend in ("torch", "mlx"):
        ledger = ModelLedger(found.files, "float32", "cpu", "resident", backend=backend)
        pipeline = DistilledPipeline(ledger, found.distilled_loras)
        made.append(result(pipeline, {"prompt": "A red ball moves left to right.", "seed": 1, "num_frames": frames}))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=CLOSE)
