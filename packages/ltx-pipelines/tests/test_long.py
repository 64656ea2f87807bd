"""Long clips: windows that agree with what is known, go on from each other, and go on after a kill."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.oracle_windows import HOP, RATE, OracleLedger, OracleRun, oracle_plan, stitched, tools_like

from ltx_core.components.windows import WindowPlan, plan_windows
from ltx_pipelines import LongVideoPipeline, TI2VidOneStagePipeline
from ltx_pipelines.cli.app import run
from ltx_pipelines.running import engine

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
    monkeypatch.setattr(engine, "Run", OracleRun)
    found = []
    for frames in (201, 1001):
        windows = planned(frames, "25", 49, 24)
        ledger = counting_clip(windows)
        monkeypatch.setattr(engine, "latent_tools", tools_like(ledger))
        plan = oracle_plan(windows, (2, 3), SIGMAS, True, anchor="first", adain=0.2)
        sizes = set()
        for event in engine.generate_windows(plan, ledger):  # type: ignore[arg-type]
            if event.state is not None:
                sizes.add(sum(tensor.numel() for tensor in event.state.tensors().values()))
        found.append((max(sizes), max(ledger.decoded_at)))
    assert found[0] == found[1]


LONG = ["long", "a bell", "--duration", "1.6", "--fps", "25", "--window", "17", "--overlap", "8", "--quiet"]


def test_one_window_is_the_plain_pipeline(small_model: Path) -> None:
    long = LongVideoPipeline.from_pretrained(small_model)
    plain = TI2VidOneStagePipeline(long.ledger)
    one, other = long("a bell", num_frames=17, window=17), plain("a bell", num_frames=17)
    assert one.latents["video"].equal(other.latents["video"]) and one.latents["audio"].equal(other.latents["audio"])
    assert one.video is not None and other.video is not None and one.video.tensor().equal(other.video.tensor())


class Stopped(Exception):
    pass


def test_a_stopped_clip_goes_on_to_the_same_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped within the first window, behind its media, and behind the second one's state."""
    assert run([*LONG, "-o", "whole.mp4"]) == 0
    assert not Path("whole.mp4.unfinished").exists()
    events = engine.generate_windows
    for kind, nth in (("results", 1), ("media", 1), ("state", 1)):

        def stopping(*given: Any, kind: str = kind, nth: int = nth) -> Any:
            seen = 0
            for event in events(*given):
                yield event
                seen += bool(getattr(event, kind))
                if seen == nth:
                    raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr("ltx_pipelines.cli.job.generate_windows", stopping)
            assert run([*LONG, "-o", "parts.mp4"]) == 1
        assert Path("parts.mp4.unfinished").exists() == (kind == "state")
    assert not Path("parts.mp4").exists()
    assert run([*LONG, "--seed", "3", "-o", "parts.mp4"]) == 1, "what is unfinished is not lost to another clip"
    assert run([*LONG[:-1], "-o", "parts.mp4"]) == 0
    assert "1 of 3 windows are in" in capfd.readouterr().err
    assert Path("parts.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert not Path("parts.mp4.unfinished").exists()
