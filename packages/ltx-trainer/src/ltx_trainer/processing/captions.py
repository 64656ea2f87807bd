"""Captions before they are encoded: the openings language models like, a trigger word, and answers of captioners."""

from __future__ import annotations

import json
import re
from itertools import product

OPENINGS = (
    "In the video,",
    "In this video,",
    "In this video clip,",
    "In the clip,",
    "Caption:",
    *(
        f"{subject} {verb}"
        for subject, verb in product(
            (
                "This video",
                "The video",
                "This clip",
                "The clip",
                "The animation",
                "This image",
                "The image",
                "This picture",
                "The picture",
            ),
            ("shows", "depicts", "features", "captures", "highlights", "introduces", "presents"),
        )
    ),
)
ANSWER_KEY = "combined_caption_english"
_ANSWER = re.compile(rf'"{ANSWER_KEY}"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)


def remove_opening(caption: str) -> str:
    """The caption without the first stock opening it starts with, stripped if there was one."""
    for opening in OPENINGS:
        if caption.startswith(opening):
            return caption.removeprefix(opening).strip()
    return caption


def prompt_of(caption: str, trigger: str | None = None, remove_openings: bool = False) -> str:
    """The prompt of a caption: the trigger word in front, a stock opening left out."""
    text = remove_opening(caption) if remove_openings else caption
    return f"{trigger.strip()} {text}" if trigger and trigger.strip() else text


def parse_answer(text: str) -> str:
    """The caption in a language model's answer.

    Thoughts up to ``</think>`` are left out if something follows. Then the value of ``combined_caption_english``, also
    from JSON that is cut off or surrounded by words; without that key the answer as it is, stripped.
    """
    answer = text.rpartition("</think>")[2].strip() or text.strip()
    found = _ANSWER.search(answer)
    if found is None:
        return answer
    body = re.sub(r"\\(u[0-9a-fA-F]{0,3})?$", "", found[1])  # an escape that was cut off
    try:
        return str(json.loads(f'"{body}"', strict=False)).strip()
    except ValueError:
        return body.strip()
