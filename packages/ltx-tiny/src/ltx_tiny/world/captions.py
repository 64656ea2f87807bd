"""Sentences about scenes: a grammar with many wordings, orders and lengths, and what each sentence states.

A caption may leave things unsaid; then the scene chose them freely. It carries the attributes it does state, so nothing
ever has to be read back out of the words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ltx_tiny.world.scene import Scene, attributes

WORDS = {
    "ball": ("ball", "sphere"),
    "box": ("box", "block"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "low": ("low", "deep"),
    "middle": ("middle", "medium"),
    "high": ("high",),
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
}
NOUNS_UNSAID = ("thing", "shape", "object")
WALLS = {
    "blue": ("blue",),
    "grey": ("grey", "gray"),
    "white": ("white",),
    "mint": ("mint",),
    "night": ("night", "dark"),
    "sunset": ("sunset",),
}
MOTION = {  # finite and participle
    "bounces": (
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("keeps bouncing", "that keeps bouncing"),
        ("bounces on the floor", "bouncing on the floor"),
    ),
    "slides left": (
        ("slides left", "sliding left"),
        ("slides to the left", "sliding to the left"),
        ("moves from right to left", "moving from right to left"),
    ),
    "slides right": (
        ("slides right", "sliding right"),
        ("slides to the right", "sliding to the right"),
        ("moves from left to right", "moving from left to right"),
    ),
    "rises": (("rises", "rising"), ("floats up", "floating up"), ("goes up", "going up")),
    "falls": (
        ("falls", "falling"),
        ("sinks", "sinking"),
        ("floats down", "floating down"),
        ("goes down", "going down"),
    ),
    "spins": (("spins", "spinning"), ("turns round and round", "turning round and round"), ("rotates", "rotating")),
    "grows": (("grows", "growing"), ("gets bigger", "getting bigger"), ("grows larger", "growing larger")),
    "shrinks": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "blinks": (
        ("blinks", "blinking"),
        ("blinks on and off", "blinking on and off"),
        ("flashes", "flashing"),
        ("appears and disappears", "appearing and disappearing"),
    ),
    "stays still": (
        ("stays still", "staying still"),
        ("stands still", "standing still"),
        ("rests", "resting"),
        ("does not move", "that does not move"),
    ),
}
SOUND = {  # after the verb; a sentence of its own; {p} is the pitch with its space, or nothing
    "knock": (
        ("with a {p}knock", "with a {p}knock at each impact", "with a {p}knock on every bounce"),
        ("each impact makes a {p}knock", "a {p}knock sounds at every impact", "you hear a {p}knock on each bounce"),
    ),
    "hum to the left": (
        ("with a hum", "with a hum that moves to the left", "humming from right to left"),
        ("a hum moves to the left", "you hear a hum from right to left"),
    ),
    "hum to the right": (
        ("with a hum", "with a hum that moves to the right", "humming from left to right"),
        ("a hum moves to the right", "you hear a hum from left to right"),
    ),
    "rising glide": (
        ("with a rising glide", "with a sound that goes up", "with a rising whistle"),
        ("a glide rises in pitch", "you hear a rising glide", "the pitch goes up"),
    ),
    "falling glide": (
        ("with a falling glide", "with a sound that goes down", "with a falling whistle"),
        ("a glide falls in pitch", "you hear a falling glide", "the pitch goes down"),
    ),
    "tick": (
        ("with a tick at each turn", "with a tick", "ticking once per turn"),
        ("a tick marks every turn", "you hear a tick at each turn", "each turn makes a tick"),
    ),
    "swell": (
        ("with a sound that gets louder", "with a swelling sound"),
        ("the sound gets louder", "you hear a swelling sound"),
    ),
    "fade": (
        ("with a sound that gets quieter", "with a fading sound"),
        ("the sound gets quieter", "you hear a fading sound"),
    ),
    "beep": (
        ("with a {p}beep", "with a {p}beep at each appearance", "with a {p}beep each time"),
        ("a {p}beep sounds at each appearance", "you hear a {p}beep each time", "each appearance makes a {p}beep"),
    ),
    "tone": (
        ("with a {p}tone", "with a steady {p}tone", "with a held {p}tone"),
        ("a {p}tone is held", "you hear a steady {p}tone", "a {p}tone sounds"),
    ),
    "silence": (
        ("in silence", "without a sound", "silently"),
        ("there is no sound", "all is silent", "nothing is heard"),
    ),
}
CAMERA = {
    "still": ("the camera is still", "the camera does not move"),
    "pans left": ("the camera pans left", "the camera pans to the left", "the camera moves left"),
    "pans right": ("the camera pans right", "the camera pans to the right", "the camera moves right"),
    "zooms in": ("the camera zooms in", "the camera moves closer"),
    "zooms out": ("the camera zooms out", "the camera moves away"),
}
PLACES = ("on a {w} background", "in front of a {w} background", "against a {w} wall", "on a {w} stage")
BACKGROUND = ("the background is {w}", "the wall is {w}", "the stage is {w}")
JOINS = ("while", "as")
FORMS = {  # slots; "|" ends a sentence, "," is a comma; unsaid slots fall away with their comma or full stop
    "finite": (
        "thing finite place sound meanwhile",
        "thing finite sound place meanwhile",
        "thing finite place sound | camera",
        "thing finite place | tells | camera",
        "thing finite | background | tells | camera",
        "thing finite | tells | background | camera",
        "place , thing finite sound meanwhile",
        "place , thing finite | tells | camera",
        "camera | thing finite place sound",
        "background | thing finite sound meanwhile",
        "tells meanwhile_thing finite place | camera",
    ),
    "participle": (
        "thing participle place sound meanwhile",
        "thing participle sound place meanwhile",
        "there_is thing participle place sound | camera",
        "there_is thing participle place | tells | camera",
        "thing , participle , place , sound , camera",
        "place , there_is thing participle sound meanwhile",
    ),
}
FIXED = "there is a an while as"
EXAMPLES = (
    "a large yellow ball rises on a night background with a sound that goes up",
    "a small green box slides to the right with a hum, the camera zooms in",
    "there is a pink ring blinking in front of a mint background, you hear a high beep each time",
)
LEAVE_OUT = {"shape": 0.15, "colour": 0.2, "motion": 0.15, "size": 1.0, "background": 0.8, "sound": 1.2, "pitch": 0.5}
LEAVE_OUT_CAMERA = {True: 0.8, False: 2.4}  # a moving camera, a still one


@dataclass(frozen=True)
class Caption:
    """A sentence and the attributes it states, named and valued as in ``scene.attributes``."""

    text: str
    stated: Mapping[str, str]


def caption(scene: Scene, rng: np.random.Generator, leave_out: float = 0.3) -> Caption:
    """Say a scene in words. ``leave_out`` scales how often things go unsaid; 0 says everything.

    A stated motion states its sound too, since every motion but staying still has just one.
    """
    truth = attributes(scene)
    said = {name for name in truth if rng.random() >= leave_out * _omission(name, truth)}
    if "pitch" in said and "sound" not in said:
        said.remove("pitch")
    text = _sentence(truth, said, rng)
    stated = {name: value for name, value in truth.items() if name in said}
    if "motion" in said and truth["motion"] != "stays still":
        stated["sound"] = truth["sound"]
    return Caption(text, stated)


def prompt_world() -> dict[str, Any]:
    """Description of the prompts a model of this world understands, for a checkpoint's ``prompt_world``."""
    return {
        "words": sorted(vocabulary()),
        "one_of": sorted(nouns()),
        "says": "ltx-tiny knows only its toy world, where one ball, box, triangle, star or ring moves and sounds",
        "examples": list(EXAMPLES),
    }


@cache
def vocabulary() -> frozenset[str]:
    """Every word a caption can contain, in lower case."""
    phrases = [FIXED, *NOUNS_UNSAID, *PLACES, *BACKGROUND, *JOINS]
    for table in (WORDS, WALLS, CAMERA):
        phrases += [phrase for options in table.values() for phrase in options]
    phrases += [phrase for options in MOTION.values() for pair in options for phrase in pair]
    phrases += [phrase for places in SOUND.values() for options in places for phrase in options]
    return frozenset(re.findall(r"[a-z]+", re.sub(r"{\w}", " ", " ".join(phrases))))


@cache
def nouns() -> frozenset[str]:
    """The words that can name the body."""
    shapes = ("ball", "box", "triangle", "star", "ring")
    return frozenset((*NOUNS_UNSAID, *(word for shape in shapes for word in WORDS[shape])))


def _omission(name: str, truth: Mapping[str, str]) -> float:
    if name == "camera":
        return LEAVE_OUT_CAMERA[truth["camera"] != "still"]
    return LEAVE_OUT[name]


def _sentence(truth: Mapping[str, str], said: set[str], rng: np.random.Generator) -> str:
    slots = _slots(truth, said, rng)
    kind = "finite" if "motion" in said and rng.random() < 0.6 else "participle"
    sentences = []
    for part in _pick(rng, FORMS[kind]).split("|"):
        clauses = [" ".join(filter(None, (slots[name] for name in clause.split()))) for clause in part.split(",")]
        sentences.append(", ".join(filter(None, clauses)))
    sentences = [sentence for sentence in sentences if sentence]
    style = rng.random()
    if style < 0.4 and len(sentences) > 1:
        return ", ".join(sentences)
    if style < 0.55 and len(sentences) == 1:
        return sentences[0]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _slots(truth: Mapping[str, str], said: set[str], rng: np.random.Generator) -> dict[str, str]:
    """The words for each slot of a form; empty where it goes unsaid."""

    def word(name: str) -> str:
        return _pick(rng, WORDS[truth[name]]) if name in said else ""

    noun = word("shape") or _pick(rng, NOUNS_UNSAID)
    thing = " ".join(filter(None, (word("size"), word("colour"), noun)))
    finite, participle = MOTION[truth["motion"]][rng.integers(len(MOTION[truth["motion"]]))]
    pitch = word("pitch") + " " if "pitch" in said else ""
    after, alone = SOUND[truth["sound"]]
    wall = _pick(rng, WALLS[truth["background"]])
    camera, join = _pick(rng, CAMERA[truth["camera"]]), _pick(rng, JOINS)
    tells = _pick(rng, alone).format(p=pitch) if "sound" in said else ""
    slots = {
        "thing": f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}",
        "there_is": "there is",
        "finite": finite if "motion" in said else "",
        "participle": participle if "motion" in said else "",
        "place": _pick(rng, PLACES).format(w=wall) if "background" in said else "",
        "background": _pick(rng, BACKGROUND).format(w=wall) if "background" in said else "",
        "sound": _pick(rng, after).format(p=pitch) if "sound" in said else "",
        "tells": tells,
        "camera": camera if "camera" in said else "",
        "meanwhile": f"{join} {camera}" if "camera" in said else "",
    }
    return slots | {"meanwhile_thing": f"{join} {slots['thing']}" if tells else slots["thing"]}


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
