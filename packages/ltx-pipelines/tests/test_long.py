"""Long clips: windows that agree with what is known, go on from each other, and go on after a kill."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.oracle_windows import HOP, RATE, OracleLedger, OracleRun, oracle_plan, stitched, tools_like

from ltx_core.components.windows import WindowPlan, plan_windows
from ltx_core.errors import ConfigError, LtxError
from ltx_pipelines import LongVideoPipeline, TI2VidOneStagePipeline
from ltx_pipelines.cli.app import run
from ltx_pipelines.long import read_storyboard
from ltx_pipelines.planning.layout import runs
from ltx_pipelines.running import engine, long_clip, stages
from ltx_pipelines.running.long import prompt_of
from ltx_pipelines.utils.media_io import probe_video

SIGMAS = (1.0, 0.9, 0.5, 0.0)


def counting_clip(windows: WindowPlan) -> OracleLedger:
    """A clip whose first channel counts latents and tokens."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(1, 4, windows.latents, 2, 3, generator=generator)
    audio = torch.randn(1, 4, windows.audio_tokens, 4, generator=generator)
    video[:, 0], audio[:, 0] = torch.arange(windows.latents)[:, None, None], torch.arange(windows.audio_tokens)[:, None]
    return OracleLedger(video, audio)


CLIPS = [  # frames, fps, window, overlap in frames
    (100, "25", 49, 24),
    (97, "24", 57, 1),
    (241, "24", 80, 24),
    (151, "30", 65, 17),
    (75, "30000/1001", 41, 16),
    (9, "25", 49, 24),
    (1, "25", 49, 24),
    (58, "50", 17, 8),
    (106, "25", 57, 48),
]


def planned(frames: int, fps: str, window: int, overlap: int) -> WindowPlan:
    rate = Fraction(fps)
    align: Any = "nearest" if "/" in fps else "exact"
    return plan_windows(rate, frames / rate, window / rate, overlap / rate, align=align)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("curve, strength", [("smoothstep", 1.0), ("hold", 1.0), ("linear", 0.3)])
def test_a_known_clip_comes_back(
    clip: tuple[int, str, int, int], curve: str, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = planned(*clip)
    ledger = counting_clip(windows)
    assert ledger.audio is not None
    plan = oracle_plan(windows, (2, 3), SIGMAS, True, overlap_curve=curve, overlap_strength=strength)
    made = stitched(plan, ledger, monkeypatch)
    for name, known in (("video", ledger.video), ("audio", ledger.audio)):
        assert made[name].shape == known.shape
        assert float(((made[name] - known).abs() / known.abs().clamp(min=1)).max()) < 1e-6
    *_, last = engine.generate(plan, ledger)  # type: ignore[arg-type]
    generation = last.generation
    assert generation is not None and generation.video is not None and generation.audio is not None
    shown = [round(float(frame[0, 0, 0])) for chunk in generation.video for frame in chunk]
    assert shown == list(range(clip[0])), "every frame once, in order"
    starts = [window.first for window in plan.stages[0].windows[1:]]
    assert ledger.pictures == starts * 2, "a window begins with the last pixel frame of its first latent frame"
    samples = generation.audio.waveform[0] * 2**20
    exact = round(Fraction(clip[0]) / Fraction(clip[1]) * RATE)
    assert len(samples) == exact
    held = min(exact, (4 * windows.audio_tokens - 3) * HOP - 80)
    assert torch.allclose(samples[:held], torch.arange(exact)[:held].float(), rtol=1e-6, atol=0.1)


def test_memory_is_that_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes from window to window, and what is decoded at once, does not grow with the clip."""
    monkeypatch.setattr(stages, "Run", OracleRun)
    found = []
    for frames in (201, 1001):
        windows = planned(frames, "25", 49, 24)
        ledger = counting_clip(windows)
        monkeypatch.setattr(stages, "latent_tools", tools_like(ledger))
        plan = oracle_plan(windows, (2, 3), SIGMAS, True, anchor="first", adain=0.2)
        sizes = set()
        for event in long_clip.generate_windows(plan, ledger):  # type: ignore[arg-type]
            if event.state is not None:
                sizes.add(sum(tensor.numel() for tensor in event.state.tensors().values()))
        found.append((max(sizes), max(ledger.decoded_at)))
    assert found[0] == found[1]


LONG = ["long", "a bell", "--duration", "1", "--fps", "25", "--window", "17", "--overlap", "8", "--quiet"]


def test_one_window_is_the_plain_pipeline(small_model: Path) -> None:
    long = LongVideoPipeline.from_pretrained(small_model)
    plain = TI2VidOneStagePipeline(long.ledger)
    one, other = long("a bell", num_frames=17, window=17), plain("a bell", num_frames=17)
    assert one.latents["video"].equal(other.latents["video"]) and one.latents["audio"].equal(other.latents["audio"])
    assert one.video is not None and other.video is not None and one.video.tensor().equal(other.video.tensor())


class Stopped(Exception):
    pass


def test_a_stopped_or_killed_clip_goes_on_to_the_same_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped within the first window and behind its media, killed behind its state."""
    assert run([*LONG, "-o", "whole.mp4"]) == 0
    assert not Path("whole.mp4.unfinished").exists()
    events = long_clip.generate_windows
    for kind in ("results", "media"):

        def stopping(*given: Any, kind: str = kind) -> Any:
            for event in events(*given):
                yield event
                if getattr(event, kind):
                    raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr("ltx_pipelines.cli.job.generate_windows", stopping)
            assert run([*LONG, "-o", "parts.mp4"]) == 1
        assert not Path("parts.mp4.unfinished").exists(), "nothing was whole"
    killed([*LONG, "-o", "parts.mp4"], lambda: Path("parts.mp4.unfinished/state.safetensors").exists())
    assert not Path("parts.mp4").exists()
    assert run([*LONG, "--seed", "3", "-o", "parts.mp4"]) == 1, "what is unfinished is not lost to another clip"
    assert run([*LONG[:-1], "-o", "parts.mp4"]) == 0
    assert "of 2 windows are in" in capfd.readouterr().err
    assert Path("parts.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert not Path("parts.mp4.unfinished").exists()


def killed(line: Sequence[str], when: Callable[[], bool]) -> None:
    """Run a line in a process of its own and kill it as soon as something holds; it may also end before."""
    process = subprocess.Popen([sys.executable, "-c", "from ltx_pipelines.cli import main; main()", *line])
    try:
        while process.poll() is None and not when():
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_file_is_the_same(here: Path) -> None:
    began = time.monotonic()
    killed([*LONG, "-o", "whole.mp4"], lambda: False)
    lasted = time.monotonic() - began
    moments = random.Random(7)
    for _ in range(10):
        until = time.monotonic() + moments.uniform(0.3, 1.0) * lasted
        killed([*LONG, "-o", "parts.mp4"], lambda until=until: time.monotonic() > until)  # type: ignore[misc]
        if Path("parts.mp4").exists():
            Path("parts.mp4").rename("done.mp4")
            assert Path("done.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    killed([*LONG, "-o", "parts.mp4"], lambda: False)
    assert Path("parts.mp4").read_bytes() == Path("whole.mp4").read_bytes()


@pytest.mark.slow
def test_forty_seconds_take_the_memory_of_four(here: Path) -> None:
    program = "import resource; from ltx_pipelines.cli.app import run; code = run({line}); "
    program += "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = []
    for seconds in ("4", "40"):
        line = [*LONG, "--duration", seconds, "-o", f"{seconds}.mp4"]
        line.remove("1")
        line.remove("--duration")
        said = subprocess.run([sys.executable, "-c", program.format(line=line)], capture_output=True, text=True)
        code, peak = said.stdout.split()
        assert code == "0"
        peaks.append(int(peak))
    assert probe_video("40.mp4").frames == 1000
    assert peaks[1] < 1.05 * peaks[0], peaks


BOARD = """
- prompt: a red ball bounces
  seconds: 1
  keyframes:
    - {image: first.png, at: 0.0}
    - {image: last.png, at: 0.6, strength: 0.8, release: smoothstep, reach: 8, curve: linear}
- prompt: a blue box spins
  seconds: 0.8
  camera: pan left 15
"""
SMALL = {"frame_rate": 25.0, "window": 17, "overlap": 8}


def test_a_storyboard_gives_each_window_its_prompt_and_its_pictures(here: Path) -> None:
    Path("scenes.yaml").write_text(BOARD)
    pipeline = LongVideoPipeline.from_pretrained()
    plan = pipeline.plan("At night,", storyboard="scenes.yaml", **SMALL)
    assert plan.long is not None and plan.shape.frames == 45
    assert [(scene.prompt, scene.start, scene.camera) for scene in plan.long.scenes] == [
        ("At night, a red ball bounces", 0, None),
        ("At night, a blue box spins", 25, "pan left 15"),
    ]
    windows = plan.stages[0].windows
    assert [prompt_of(plan, number)[12:15] for number in range(len(windows))] == ["red", "red", "blu"]
    shown = [
        [(Path(one.path).name, one.frame_idx, one.release) for one in part.streams["video"].conditions]
        for part in runs(plan.stages[0])
    ]
    assert shown[0] == [("first.png", 0, "hold"), ("last.png", 15, "smoothstep")]
    assert not any(shown[1:]), "a picture belongs to the window that delivers its frame"
    made = pipeline("At night,", storyboard="scenes.yaml", progress=False, **SMALL)
    assert made.video is not None and len(made.video.tensor()) == 45 and made.audio is not None
    assert made.audio.waveform.shape[1] == round(45 / 25 * made.audio.sampling_rate)
    assert made.plan.notes[-1] == "made in 3 windows of 17 frames, each goes on from the last 8"


@pytest.mark.parametrize(
    "board, said",
    [
        ("prompt: a bell", "holds dict, expected a list of scenes"),
        ("- {prompt: a bell}", "scene 1: .*seconds"),
        ("- {prompt: a bell, seconds: 2, keyframe: []}", "scene 1: BoardScene has no field keyframe"),
        ("- {prompt: ' ', seconds: 2}", "scene 1: prompt is empty"),
        ("- {prompt: a bell, seconds: -1}", "scene 1: seconds is -1"),
        ("- {prompt: a, seconds: 1, keyframes: [{image: a.png, at: 1}]}", "scene 1: at is 1 s, the scene has 1 s"),
    ],
)
def test_storyboards_are_refused_with_the_scene(board: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "scenes.yaml"
    path.write_text(board)
    with pytest.raises(ConfigError, match=said):
        read_storyboard(str(path), 25.0)


@pytest.mark.parametrize(
    "request_, said",
    [
        ({"num_frames": 100, "window": 9}, "window is .* expected at least"),
        ({"num_frames": 50, "storyboard": "scenes.yaml"}, "num_frames has no effect with a storyboard"),
        ({"num_frames": 40, "images": [("first.png", 40)]}, "frame_idx is 40, expected 0 to 39"),
        ({"num_frames": 40, "anchor": "first.png", "anchor_first": True}, "anchor is given twice"),
        ({"num_frames": 40, "anchor": "none.png"}, "none.png"),
        ({"num_frames": 40, "distilled": True, "num_inference_steps": 3}, "no effect on a distilled model"),
        ({"num_frames": 40, "overlap_strength": 1.5}, "overlap_strength is 1.5, expected 0 to 1"),
    ],
)
def test_long_requests_are_refused_before_any_weight_is_read(request_: dict[str, Any], said: str, here: Path) -> None:
    pipeline = LongVideoPipeline.from_pretrained()
    with pytest.raises(LtxError, match=said):
        pipeline.plan("a bell", **{**SMALL, "overlap": 24 if "window" in request_ else 8, **request_})
    assert not pipeline.ledger.resident()


def test_clips_of_a_model_without_sound(here: Path) -> None:
    model = ["--checkpoint-path", "ltxv-2b-0.9.6-distilled.safetensors", "--text-encoder-path", "t5"]
    line = ["long", "a boat", *model, "-W", "90", "-H", "60", "--fps", "25", "--duration", "1.3", "--window", "17"]
    rest = ["--overlap", "8", "-i", "first.png", "0", "-i", "last.png", "20", "0.8", "--anchor", "photo.png"]
    assert run([*line, *rest, "--quiet", "-o", "boat.mp4"]) == 0
    info = probe_video("boat.mp4")
    assert (info.frames, info.width, info.height, info.has_audio) == (32, 90, 60, False)
    assert run([*line, "--cfg", "3"]) == 2 and run([*line, "-i", "clip.mp4"]) == 1
