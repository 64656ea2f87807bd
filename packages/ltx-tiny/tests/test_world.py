"""Scenes, pictures and sounds of the toy world."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ltx_core.errors import ConfigError
from ltx_tiny.world.drawing import draw_lines
from ltx_tiny.world.motion import events, track
from ltx_tiny.world.picture import Window, distance, draw
from ltx_tiny.world.render import render
from ltx_tiny.world.scene import (
    CLASHES,
    COLOURS,
    MOTIONS,
    SECONDS,
    SHAPES,
    Body,
    Scene,
    attributes,
    held_out,
    sample_scene,
    split,
)

BALL = Body("ball", "red", "small", "bounces", "low", x=0.0, y=0.0, period=0.5, phase=0.3, tilt=0.0)
SCENE = Scene((BALL,), "blue", "still")


def scene(background="blue", camera="still", **body):
    return Scene((replace(BALL, **body),), background, camera)


def scenes(count, part=None, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, part) for _ in range(count)]


def test_the_same_seed_draws_the_same_scene_and_clip():
    first, again = scenes(3, seed=5), scenes(3, seed=5)
    assert first == again
    for one, other in zip(render(first[0], 5, 64, 64), render(again[0], 5, 64, 64), strict=True):
        assert np.array_equal(one, other)


def test_a_scene_survives_json():
    for drawn in scenes(20):
        assert Scene.from_json(json.loads(json.dumps(drawn.to_json()))) == drawn


def test_json_with_a_foreign_word_is_refused():
    values = SCENE.to_json()
    values["bodies"][0]["shape"] = "cat"
    with pytest.raises(ConfigError, match="shape is 'cat', expected one of ball"):
        Scene.from_json(values)


def test_clip_shapes_and_types():
    video, audio = render(SCENE, 17, 96, 160, fps=25.0)
    assert video.shape == (17, 96, 160, 3) and video.dtype == np.uint8
    assert audio.shape == (2, 10880) and audio.dtype == np.float32
    with pytest.raises(ConfigError, match="0 frames"):
        render(SCENE, 0, 96, 96)


def test_a_picture_is_the_same_at_any_size():
    large, small = render(SCENE, 2, 256, 256)[0], render(SCENE, 2, 64, 64)[0]
    shrunk = large.reshape(2, 64, 4, 64, 4, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - small).mean() < 2.0


@pytest.mark.parametrize("seed", range(6))
def test_a_window_is_cut_from_the_whole_picture(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    window = Window(int(rng.integers(160)), int(rng.integers(160)), 96, 96)
    whole = draw(scene, 5, 256, 256, 25.0, 0.3)
    assert np.array_equal(window.cut_from(whole, Window(0, 0, 256, 256)), draw(scene, 5, 256, 256, 25.0, 0.3, window))


def test_the_body_is_drawn_in_its_colour_where_the_track_says():
    for colour, rgb in COLOURS.items():
        drawn = scene("grey", colour=colour, shape="box", size="large", motion="stays still", x=0.1)
        frame = render(drawn, 1)[0][0]
        place = track(drawn, drawn.body, np.zeros(1))
        pixel = frame[int((place.y[0] + 0.5) * 256), int((place.x[0] + 0.5) * 256)]
        assert np.abs(pixel - np.array(rgb) * 0.95).max() < 20, colour


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_grow_by_one_per_unit(shape):
    axis = np.linspace(-1.4, 1.4, 281)
    slope = np.hypot(*np.gradient(distance(shape, axis, axis[:, None]), axis[1] - axis[0]))
    assert np.median(np.abs(slope - 1.0)) < 0.01
    assert slope.max() < 1.2


def test_every_drawn_scene_stays_in_the_picture_and_can_be_told_from_it():
    for drawn in scenes(40, seed=2):
        assert drawn.body.colour not in CLASHES.get(drawn.background, ())
        video = render(drawn, 49, 64, 64)[0].astype(int)
        empty = render(replace(drawn, bodies=()), 49, 64, 64)[0]
        differs = np.abs(video - empty).max(axis=-1) > 40
        rim = np.concatenate([differs[:, 0], differs[:, :, 0], differs[:, :, -1]], axis=1)
        assert differs.any(axis=(1, 2)).sum() > 20
        assert not rim.any(), drawn


def test_bounces_touch_the_floor_at_their_events():
    times = events(BALL, 0.0, SECONDS)
    assert np.allclose(times, [0.35, 0.85, 1.35, 1.85])
    around = track(SCENE, BALL, np.concatenate([times - 0.01, times, times + 0.01]))
    before, at, after = around.y.reshape(3, -1)
    assert np.all(at > before) and np.all(at > after) and np.ptp(at) < 1e-9


def test_knocks_start_at_impacts_and_follow_pitch_and_size():
    audio = render(SCENE)[1]
    quiet = int(0.345 * 16000)
    assert np.abs(audio[:, quiet - 500 : quiet]).max() < 0.02 * np.abs(audio).max()
    assert np.abs(audio[:, quiet + 80 : quiet + 300]).max() > 0.2

    def pitch(**body):
        wave = render(scene(**body))[1][0, int(0.35 * 16000) :][:1600]
        return np.argmax(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 16384)))

    assert pitch() < pitch(pitch="middle") < pitch(pitch="high")
    assert pitch(size="large") < pitch(size="small")


def test_a_slide_moves_the_sound_across():
    left, right = (np.sqrt(np.mean(channel.reshape(-1, 1568) ** 2, axis=1)) for channel in _slide("slides right"))
    assert left[0] > 2.5 * right[0] and right[-1] > 2.5 * left[-1]
    assert np.all(np.diff(right - left)[1:] > 0)


def _slide(motion):
    return render(scene(motion=motion, pitch=None))[1]


def test_loudness_follows_size_and_silence_is_silent():
    audio = render(scene(motion="grows", pitch=None))[1]
    assert np.abs(audio[:, -3000:]).max() > 3 * np.abs(audio[:, 1000:4000]).max()
    assert not render(scene(motion="stays still", pitch=None))[1].any()


def test_sounds_are_moderate_and_below_6_khz():
    for drawn in scenes(40, seed=3):
        audio = render(drawn, 49, 16, 16)[1]
        assert np.abs(audio).max() < 0.7
        power = np.abs(np.fft.rfft(audio * np.hanning(audio.shape[1]))) ** 2
        hertz = np.fft.rfftfreq(audio.shape[1], 1 / 16000)
        assert power[:, hertz > 6000].sum() <= 1e-3 * power.sum()


def test_the_split_is_by_colour_shape_and_motion_and_holds_out_an_eighth():
    triples = [(colour, shape, motion) for colour in COLOURS for shape in SHAPES for motion in MOTIONS]
    kept = [triple for triple in triples if held_out(*triple)]
    assert 0.08 < len(kept) / len(triples) < 0.18
    for a, b, others in ((0, 1, len(MOTIONS)), (0, 2, len(SHAPES)), (1, 2, len(COLOURS))):
        counts = Counter((triple[a], triple[b]) for triple in kept)
        assert max(counts.values()) < others, "a pair would never be seen in training"
    assert {motion for _, _, motion in kept} == set(MOTIONS)


def test_sampling_respects_the_split():
    assert {split(drawn) for drawn in scenes(100, "train")} == {"train"}
    assert {split(drawn) for drawn in scenes(30, "held_out")} == {"held_out"}
    assert {split(drawn) for drawn in scenes(100)} == {"train", "held_out"}
    with pytest.raises(ConfigError, match="part is 'test'"):
        sample_scene(np.random.default_rng(0), "test")


def test_sampling_reaches_every_value():
    seen = {(name, value) for drawn in scenes(600) for name, value in attributes(drawn).items()}
    counts = Counter(name for name, _ in seen)
    expected = {"shape": 5, "colour": 8, "size": 2, "motion": 10, "background": 6, "camera": 5, "sound": 11, "pitch": 3}
    assert counts == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawing_has_white_lines_where_a_picture_has_edges(shape):
    still = scene(shape=shape, motion="stays still", size="large", x=0.0)
    lines, picture = draw_lines(still, 1, 256, 256, 25.0)[0], render(still, 1)[0][0].astype(int)
    assert lines.max() == 255 and 0.01 < (lines > 128).mean() < 0.1
    edges = np.abs(np.gradient(picture.mean(axis=-1))).max(axis=0) > 12
    near = np.lib.stride_tricks.sliding_window_view(np.pad(lines[..., 0], 3), (7, 7)).max(axis=(2, 3)) > 128
    assert near[edges].mean() > 0.8
