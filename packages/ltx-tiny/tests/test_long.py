"""Ten seconds of the bundled model, which knows two: windows keep what is shown, in step with what is heard."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ltx_pipelines import LongVideoPipeline
from ltx_tiny.eval.detectors import find_lags
from ltx_tiny.eval.hearing import listen
from ltx_tiny.eval.sight import look

BOUNCES = "a large yellow ball bounces in front of a dark background, a low knock at each impact, the camera is still"
SPINS = "A large red box spins on a white stage. You hear a tick at each turn. The camera is still."
STARTS = tuple(range(0, 225, 32))  # frames of the windows: 49 long, 24 shared
SEAMS = tuple(start + 17 for start in STARTS[1:])  # the first frame that no earlier window makes


def made(prompt: str) -> tuple[Any, Any, int]:
    clip = LongVideoPipeline.from_pretrained("tiny")(prompt, duration=10, progress=False)
    windows = clip.plan.stages[0].windows
    assert [window.first for window in windows] == list(STARTS)
    assert [window.first_new for window in windows[1:]] == list(SEAMS)
    assert clip.video is not None and clip.audio is not None
    frames = (clip.video.tensor() * 255).round().byte().numpy()
    return frames, clip.audio.waveform.numpy(), clip.audio.sampling_rate


def changes(frames: Any) -> tuple[Any, Any]:
    """Changes from frame to frame over their median: where a window begins to be seen or is alone, and elsewhere."""
    found = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    places = [frame - 1 for frame in (*SEAMS, *(start + 1 for start in STARTS[1:]))]
    return found[places] / np.median(found), np.delete(found, places) / np.median(found)


@pytest.mark.slow
def test_every_window_shows_the_ball_and_knocks_are_in_step() -> None:
    frames, sound, rate = made(BOUNCES)
    assert len(frames) == 250 and sound.shape[1] == 10 * rate
    for start in STARTS:
        seen = look(frames[start : start + 49], 25.0)
        found = (seen.colour, seen.shape, seen.size, seen.motion, seen.background, seen.camera)
        assert found == ("yellow", "ball", "large", "bounces", "night", "still"), start
        heard = listen(sound[:, start * rate // 25 : (start + 49) * rate // 25], rate)
        assert (heard.sound, heard.pitch) == ("knock", "low"), start
    lags = find_lags(look(frames, 25.0).events, listen(sound, rate).onsets, 10.0)
    assert len(lags) >= 12 and max(map(abs, lags)) < 100
    at_seams, elsewhere = changes(frames)  # a ball that bounces changes up to twice the median, most where it is fast
    assert at_seams.mean() < 1.1 * elsewhere.mean() and at_seams.max() < elsewhere.max(), at_seams


@pytest.mark.slow
def test_seams_change_no_more_than_other_frames() -> None:
    frames, _, _ = made(SPINS)
    at_seams, _ = changes(frames)
    assert max(at_seams) <= 1.5, at_seams
    for start in STARTS:
        seen = look(frames[start : start + 49], 25.0)
        assert (seen.colour, seen.size, seen.background, seen.camera) == ("red", "large", "white", "still"), start
