"""The detectors on clips whose answers are known, and on wrong clips, which must fail."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ltx_core.errors import ConfigError
from ltx_tiny.eval import run
from ltx_tiny.eval.chains import FirstFrame
from ltx_tiny.eval.detectors import EDGE, examine, log_mel_error, onset_shifts, psnr
from ltx_tiny.eval.hearing import listen
from ltx_tiny.eval.questions import ceiling, questions, reconstruct, take
from ltx_tiny.eval.report import Average, Row, Spread, figures, summarise, table, wilson, write_json
from ltx_tiny.eval.sheet import Clip, draw_sheet, write_sheet
from ltx_tiny.eval.sight import look
from ltx_tiny.world.motion import events, track
from ltx_tiny.world.render import render
from ltx_tiny.world.scene import (
    COLOURS,
    MOTIONS,
    PERIOD,
    PITCHES,
    SECONDS,
    SHAPES,
    SOUNDS,
    Body,
    Scene,
    attributes,
    sample_scene,
    sound_of,
)

BOUNCE = max(0.5, PERIOD["bounces"][0])  # seconds
BALL = Body("ball", "red", "small", "bounces", "low", x=0.0, y=0.05, period=BOUNCE, phase=0.3, tilt=0.0)


def scene(background="grey", camera="still", **body):
    return Scene((replace(BALL, **body),), background, camera)


def drawn_scenes(count, seed):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, None) for _ in range(count)]


def worn(video, audio, rng):
    """A clip after something like a lossy autoencoder: soft, blotchy and blocky pictures, smeared and noisy sound."""
    frames = []
    for frame in video:
        soft = Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.3))
        coarse = Image.fromarray(rng.normal(0, 4, (64, 64)).astype(np.float32)).resize((256, 256), Image.BICUBIC)
        noisy = np.asarray(soft, dtype=np.float32) + np.asarray(coarse)[..., None] + rng.normal(0, 2, frame.shape)
        packed = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(packed, "JPEG", quality=35)
        frames.append(np.asarray(Image.open(packed)))
    window = np.hanning(513)[:-1]
    padded = np.pad(audio.astype(np.float64), ((0, 0), (512, 1024)))
    out, weight = np.zeros_like(padded), np.full(padded.shape[1], 1e-3)
    for start in range(0, padded.shape[1] - 512, 128):
        spectrum = np.fft.rfft(padded[:, start : start + 512] * window)
        spectrum *= np.exp(rng.normal(0, 0.15, spectrum.shape) + 1j * rng.normal(0, 0.3, spectrum.shape))
        out[:, start : start + 512] += np.fft.irfft(spectrum) * window
        weight[start : start + 512] += window**2
    sound = (out / weight)[:, 512 : 512 + audio.shape[1]] + rng.normal(0, 0.001, audio.shape)
    return np.stack(frames), sound.astype(np.float32)


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_and_its_sound_are_found_under_a_moving_camera(motion):
    camera = {"grows": "pans left", "shrinks": "pans right"}.get(motion, "zooms in")
    pitch = "high" if motion in ("bounces", "blinks") else None
    size, period = ("large" if motion == "shrinks" else "small"), (BOUNCE if motion == "bounces" else 0.8)
    asked = scene("sunset", camera, shape="star", colour="cyan", motion=motion, pitch=pitch, size=size, period=period)
    result = examine(*render(asked), attributes(asked))
    assert result.passed, result.found


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_found_turned_small_and_coarse(shape):
    asked = scene("blue", shape=shape, motion="spins", pitch=None, period=0.8)
    for side in (256, 128, 96):
        assert look(render(asked, 17, side, side)[0], 25.0).shape == shape


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_found(colour):
    for background in ("grey", "white"):
        asked = scene(background, colour=colour, motion="stays still")
        assert look(render(asked, 9)[0], 25.0).colour == colour


@pytest.mark.parametrize("pitch", PITCHES)
def test_every_pitch_is_found_whatever_the_shape_and_size(pitch):
    for shape in SHAPES:
        for motion, size in (("bounces", "small"), ("bounces", "large"), ("stays still", "small")):
            asked = scene(shape=shape, size=size, motion=motion, pitch=pitch)
            heard = listen(render(asked, 49, 16, 16)[1])
            assert (heard.sound, heard.pitch) == (sound_of(asked.body), pitch)


def test_random_scenes_are_read_without_error():
    results = [examine(*render(asked), attributes(asked)) for asked in drawn_scenes(12, seed=7)]
    assert all(result.passed for result in results), [r.to_json() for r in results if not r.passed]
    lags = np.abs([lag for result in results for lag in result.lags_ms])
    assert len(lags) > 10 and np.median(lags) < 5 and np.percentile(lags, 95) < 40
    assert min(result.tie for result in results if result.tie is not None) > 0.98


def test_worn_scenes_are_read_without_error():
    rng = np.random.default_rng(0)
    results = []
    for asked in drawn_scenes(4, seed=8):
        video, audio = render(asked)
        after = worn(video, audio, rng)
        assert psnr(video, after[0]) < 36
        results.append(examine(*after, attributes(asked)))
    assert all(result.passed for result in results), [r.to_json() for r in results if not r.passed]
    lags = np.abs([lag for result in results for lag in result.lags_ms])
    assert np.median(lags) < 10 and np.percentile(lags, 95) < 40


@pytest.mark.parametrize(("motion", "period"), [("bounces", BOUNCE), ("spins", 0.8), ("blinks", 0.7)])
def test_events_are_seen_and_heard_where_they_are(motion, period):
    asked = scene(motion=motion, period=period)
    true = events(asked.body, 0.1, SECONDS - 0.1)
    video, audio = render(asked)
    for found, tolerance in ((look(video, 25.0).events, 0.02), (listen(audio).onsets, 0.01)):
        assert all(np.abs(found - instant).min() < tolerance for instant in true)


def test_the_path_is_the_track_without_the_camera():
    asked = scene(motion="stays still", pitch=None, camera="pans right", size="large", x=0.05)
    path = look(render(asked)[0], 25.0).path
    true = track(asked, asked.body, np.arange(49) / 25)
    assert np.abs(path.x - true.x).max() < 0.011 and np.abs(path.y - true.y).max() < 0.01
    assert np.abs(path.radius - true.radius).max() < 0.01
    assert np.ptp(path.screen_x) > 0.15


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("colour", {"colour": "orange"}),
        ("shape", {"shape": "ring"}),
        ("size", {"size": "large"}),
        ("motion", {"motion": "rises"}),
        ("pitch", {"pitch": "middle"}),
    ],
)
def test_a_clip_of_another_body_fails(name, wrong):
    result = examine(*render(scene(**wrong)), attributes(scene()))
    assert not result.correct[name] and not result.passed
    expected = {name} | ({"sound", "pitch"} if name == "motion" else set())
    assert {key for key, right in result.correct.items() if not right} == expected


def test_a_clip_on_another_stage_fails():
    assert not examine(*render(scene("white")), {"background": "grey"}).passed
    assert not examine(*render(scene(camera="pans left")), {"camera": "pans right"}).passed


def test_opposite_directions_fail():
    for motion, other in (("slides left", "slides right"), ("rises", "falls"), ("grows", "shrinks")):
        video, audio = render(scene(motion=motion, pitch=None))
        result = examine(video[::-1], audio[:, ::-1], {"motion": motion, "sound": SOUNDS[motion]})
        assert result.found["motion"] == other and result.found["sound"] == SOUNDS[other]
        swapped = examine(video[::-1], audio, {})
        assert swapped.tie is not None and swapped.tie < -0.9


@pytest.mark.parametrize("shape", SHAPES)
def test_true_outlines_overlap_and_lumps_do_not(shape):
    video, audio = render(scene(shape=shape, motion="falls", size="large"))
    true = examine(video, audio, {})
    assert true.outline > 0.93 and true.jitter < 0.01
    rng = np.random.default_rng(3)
    lumps = []
    for frame in video:  # torn by up to 14 pixels, differently in every frame
        field = Image.fromarray(rng.uniform(-14, 14, (2, 8, 8)).astype(np.float32).reshape(16, 8)).resize((256, 512), 3)
        down, across = np.asarray(field).reshape(2, 256, 256).round().astype(int)
        rows, columns = np.mgrid[:256, :256]
        lumps.append(frame[(rows + down).clip(0, 255), (columns + across).clip(0, 255)])
    torn = examine(np.stack(lumps), audio, {})
    assert torn.outline < 0.9 and torn.jitter > 3 * true.jitter


def timed():
    """How many impacts of the ball are far enough from the ends."""
    return len(events(BALL, EDGE, SECONDS - EDGE))


def test_late_sound_is_measured():
    video, audio = render(scene())
    late = np.pad(audio, ((0, 0), (1600, 0)))[:, : audio.shape[1]]
    lags = examine(video, late, {}).lags_ms
    assert len(lags) == timed() and np.allclose(lags, 100, atol=12)


def test_missing_sound_is_an_infinite_lag():
    video, audio = render(scene())
    result = examine(video, np.zeros_like(audio), {"sound": "knock"})
    assert not result.passed and result.found["sound"] == "silence"
    assert len(result.lags_ms) == timed() and np.all(np.isinf(result.lags_ms))


@pytest.mark.parametrize("kind", ["noise", "black", "empty stage", "two bodies", "torn"])
def test_nonsense_pictures_fail(kind):
    asked = scene()
    video, audio = render(asked)
    rng = np.random.default_rng(0)
    if kind == "noise":
        video = rng.integers(0, 256, video.shape).astype(np.uint8)
    elif kind == "black":
        video = np.zeros_like(video)
    elif kind == "empty stage":
        video = render(replace(asked, bodies=()))[0]
    elif kind == "two bodies":
        bodies = [replace(BALL, x=x, motion="stays still") for x in (-0.25, 0.25)]
        video = render(replace(asked, bodies=tuple(bodies)))[0]
    else:
        video = video[rng.permutation(len(video))]
    result = examine(video, audio, attributes(asked))
    assert not result.correct["motion"]
    if kind != "torn":
        assert not result.correct["shape"]


@pytest.mark.parametrize("kind", ["noise", "clicks"])
def test_nonsense_sound_fails(kind):
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, (2, 31360))
    if kind == "clicks":
        audio *= rng.random(31360) < 0.001
    assert listen(audio.astype(np.float32)).sound not in ("knock", "beep", "tone", "rising glide", "hum to the left")


def test_other_sample_rates_are_heard_alike():
    audio = render(scene(motion="stays still"))[1]
    doubled = np.repeat(audio, 3, axis=1)
    assert listen(doubled, 48000).pitch_hz == pytest.approx(listen(audio).pitch_hz, rel=0.01)


def test_misshapen_clips_are_refused():
    video, audio = render(scene(), 9, 64, 64)
    with pytest.raises(ConfigError, match="expected uint8"):
        examine(video.astype(np.float32), audio, {})
    with pytest.raises(ConfigError, match="stated attribute is 'mood'"):
        examine(video, audio, {"mood": "merry"})


def test_metrics_have_known_values():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a) == np.inf
    assert psnr(a, a + 255) == 0.0
    assert psnr(a, a + 16) == pytest.approx(20 * np.log10(255 / 16))
    audio = render(scene())[1]
    assert log_mel_error(audio, audio) == 0.0
    assert log_mel_error(audio, audio * 0.5) < log_mel_error(audio, np.zeros_like(audio))
    shifts = onset_shifts(audio, np.pad(audio, ((0, 0), (320, 0)))[:, : audio.shape[1]])
    assert np.allclose(shifts, 20, atol=2)


def test_wilson_interval():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(62, 64)
    assert (low, high) == (pytest.approx(0.8930, abs=1e-3), pytest.approx(0.9914, abs=1e-3))
    assert wilson(64, 64)[1] == 1.0 and wilson(64, 64)[0] < 1.0


def test_questions_are_fixed_beforehand_and_held_out():
    assert questions(5) == questions(8)[:5]
    assert questions(5) != questions(5, seed=1)
    assert all(question.caption.stated.keys() <= attributes(question.scene).keys() for question in questions(20))


def test_an_exam_from_prompts_to_report(tmp_path):
    asked = questions(2)
    by_prompt = {question.caption.text: question.scene for question in asked}
    right = list(take(lambda prompt, seed: render(by_prompt[prompt]), asked))
    wrong = list(take(lambda prompt, seed: render(scene("night", colour="yellow", shape="ring")), asked))
    best = summarise([answer.result for answer in ceiling(asked)])
    columns = {
        "right": summarise([a.result for a in right]),
        "wrong": summarise([a.result for a in wrong]),
        "best": best,
    }
    assert columns["right"] == best and best.shares["all stated"].value == 1.0
    assert columns["wrong"].shares["all stated"].value == 0.0
    assert "| all stated" in table(columns) and "100.0%" in table(columns)
    write_json(tmp_path / "eval.json", columns, {"right": [answer.to_json() for answer in right]})
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["right"]["summary"]["shares"]["all stated"]["right"] == 2
    assert written["right"]["clips"][0]["prompt"] == asked[0].caption.text
    write_sheet(tmp_path / "eval.png", [answer.clip for answer in right], frames=4, side=48)
    assert Image.open(tmp_path / "eval.png").width > 4 * 48


def test_reconstruction_of_a_perfect_and_a_soft_chain():
    drawn = [scene(), scene(motion="rises", pitch=None)]
    perfect = list(reconstruct(drawn, lambda video: video, lambda audio: audio, frames=25, side=64))
    assert [trip.psnr_db for trip in perfect] == [np.inf, np.inf]
    assert [trip.log_mel_error for trip in perfect] == [0.0, 0.0]
    assert set(perfect[0].shifts_ms) == {0.0} and perfect[1].shifts_ms == ()
    impacts = len(events(BALL, 0.0, 1.0))
    assert len(perfect[0].heard_ms) == impacts > 0 and np.abs(perfect[0].heard_ms).max() < 5
    assert perfect[0].to_json()["psnr_db"] is None
    soft = list(reconstruct(drawn, lambda video: video // 16 * 16, lambda audio: audio * 0.8, frames=25, side=64))
    assert all(25 < trip.psnr_db < 45 and trip.log_mel_error > 0.01 for trip in soft)


def test_figures_have_intervals_and_worst_values():
    average = Average.of([30.0, 32.0, 34.0])
    assert average.mean == 32.0 and average.worst == 30.0
    assert average.interval == (pytest.approx(32 - 1.96 * 2 / 3**0.5), pytest.approx(32 + 1.96 * 2 / 3**0.5))
    rows = [Row("PSNR", "exact", average), Row("error", "0", Average.of([0.25, 0.5], max), 2, ("highest", "95%"))]
    rows += [Row("shift", "-", Spread.of_lags([1.0, 2.0, 9.0])), Row("nothing", "-", Average.of([]))]
    lines = figures(rows).splitlines()
    assert "32.0 (29.7-34.3), lowest 30.0 (of 3)" in lines[2] and "highest 0.50 (of 2)" in lines[3]
    assert "median 2.0, 95% 8.3 (of 3)" in lines[4] and lines[5].split("|")[3].strip() == "-"


class Broken(Exception):
    pass


@pytest.fixture
def taken(monkeypatch):
    """The eval with the renderer in the place of a model; ``break_at`` is the clip at which it fails."""
    by_prompt = {question.caption.text: question.scene for question in questions(3)}
    state = {"made": 0, "break_at": None}

    def sit(model, paths, asked, record, track, session):
        def generate(prompt, seed, images=()):
            state["made"] += 1
            if state["made"] == state["break_at"]:
                raise Broken
            return render(by_prompt[prompt])

        for answer in track(ceiling(asked), "renderer", len(asked)):
            record.add("renderer", answer)
        yield
        for answer in track(take(generate, asked), "distilled", len(asked)):
            record.add("distilled", answer)
        record.trips += reconstruct([asked[0].scene], lambda video: video // 8 * 8, lambda audio: audio)
        record.first_frames["distilled"] = [FirstFrame(31.0, 33.0)]
        yield

    monkeypatch.setattr(run, "sit", sit)
    return state


def test_the_exam_writes_table_records_and_sheets(taken, tmp_path):
    said = run.measure("any", ["distilled"], 2, tmp_path)
    assert (tmp_path / "eval.md").read_text() == said + "\n"
    assert "| given first frame, distilled, PSNR in dB" in said and "33.0, lowest 33.0 (the VAE)" in said
    assert "| all stated" in said and "100.0% (34%-100%, 2/2)" in said
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["distilled"]["summary"]["count"] == 2 and len(written["renderer"]["clips"]) == 2
    assert written["figures"]["video VAE, PSNR in dB"]["count"] == 1 == len(written["chains"])
    assert written["first frames, distilled"] == [{"psnr_db": 31.0, "chain_db": 33.0}]
    assert {path.name for path in tmp_path.iterdir()} == {"eval.md", "eval.json", "renderer.png", "distilled.png"}


def test_a_stopped_exam_leaves_what_it_had_measured(taken, tmp_path):
    taken["break_at"] = 3
    with pytest.raises(Broken):
        run.measure("any", ["distilled"], 3, tmp_path)
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["renderer"]["summary"]["count"] == 3 and written["distilled"]["summary"]["count"] == 2
    assert "distilled (n = 2)" in (tmp_path / "eval.md").read_text()


def test_an_exam_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="path is 'best', expected one of distilled, two-stages, guided"):
        run.measure("any", ["best"], 2, tmp_path)
    with pytest.raises(ConfigError, match="count is 0, expected at least 1"):
        run.measure("any", ["guided"], 0, tmp_path)


def test_a_sheet_draws_each_clip():
    video, audio = render(scene(), 9, 64, 64)
    one = draw_sheet([Clip("one", video, audio)], frames=3, side=32)
    four = draw_sheet([Clip("a longer title " * 9, video, audio)] * 4, frames=3, side=32, across=2)
    assert four.width > 1.9 * one.width and four.height > 2 * one.height
