"""Sentences about scenes, what they state, and the vocabulary."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from ltx_pipelines.running.model_facts import PromptWorld
from ltx_tiny.world.captions import SOUND, WALLS, WORDS, caption, prompt_world, vocabulary
from ltx_tiny.world.scene import Body, Scene, attributes, sample_scene

BALL = Body("ball", "red", "small", "bounces", "low", x=0.0, y=0.0, period=0.5, phase=0.3, tilt=0.0)
SCENE = Scene((BALL,), "blue", "still")
WORLD = PromptWorld.read(json.dumps(prompt_world()), "here")


def captions(count, leave_out=0.3, seed=0):
    rng = np.random.default_rng(seed)
    drawn = [sample_scene(rng, None) for _ in range(count)]
    return [(scene, caption(scene, rng, leave_out)) for scene in drawn]


def test_the_same_seed_says_the_same():
    assert captions(20) == captions(20)


def test_what_is_stated_is_true():
    for scene, said in captions(300):
        truth = attributes(scene)
        assert all(truth[name] == value for name, value in said.stated.items())


def test_what_is_stated_is_in_the_words_and_what_is_not_is_not():
    for scene, said in captions(500):
        words = set(re.findall(r"[a-z]+", said.text.lower()))
        truth = attributes(scene)
        for name in ("shape", "colour", "size"):
            named = not words.isdisjoint(WORDS[truth[name]])
            if name == "colour" and scene.body.colour in WALLS:
                continue
            if name == "size" and {"bigger", "larger", "smaller"} & words:
                continue
            assert named == (name in said.stated), said
        assert not words.isdisjoint(WALLS[scene.background]) or "background" not in said.stated
        assert ("camera" in words) == ("camera" in said.stated)


def test_leaving_nothing_out_states_everything():
    for scene, said in captions(200, leave_out=0.0):
        assert dict(said.stated) == attributes(scene)


def test_a_stated_motion_states_its_sound():
    for scene, said in captions(300):
        if "motion" in said.stated and scene.body.motion != "stays still":
            assert said.stated["sound"] in SOUND


def test_wordings_orders_and_lengths_vary():
    rng = np.random.default_rng(0)
    texts = [caption(SCENE, rng).text for _ in range(1000)]
    assert len(set(texts)) > 800
    assert {text.split()[0].lower() for text in texts} >= {"a", "there", "on", "the", "each"}
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 5 and max(lengths) >= 20


def test_sentences_are_well_formed():
    for _, said in captions(500):
        assert not re.search(r"  | [.,]|[.,]{2}|{|}|\bNone\b", said.text), said.text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", said.text.lower()), said.text


def test_every_caption_is_in_the_world_and_uses_the_whole_vocabulary():
    used = Counter(word for _, said in captions(6000) for word in re.findall(r"[a-z]+", said.text.lower()))
    assert all(WORLD.holds(said.text) for _, said in captions(300))
    assert all(map(WORLD.holds, WORLD.examples))
    assert set(used) == vocabulary()


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("a small red ball bounces on a blue background with a low knock", True),
        ("A SMALL RED BALL, bouncing!", True),
        ("a cat plays the piano", False),
        ("a red ball bounces over a river", False),
        ("low", False),
        ("", False),
    ],
)
def test_which_prompts_the_world_holds(prompt, inside):
    assert WORLD.holds(prompt) is inside


def test_the_example_prompt_is_a_sentence_of_the_grammar():
    rng = np.random.default_rng(0)
    wanted = "a small red ball bounces on a blue background with a low knock"
    assert any(caption(SCENE, rng).text == wanted for _ in range(100_000))
