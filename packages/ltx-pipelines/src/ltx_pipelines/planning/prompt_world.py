"""Prompts that a model understands, where that is not everything: ``prompt_world`` in a checkpoint's metadata.

::

    {"words": ["a", "ball", "red", ...], "one_of": ["ball", ...], "says": "this model knows only ...",
     "examples": ["a red ball bounces", ...]}

A prompt is inside when it uses no other words and at least one of ``one_of``. ``says`` is told to who asks for more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ltx_core.errors import ConfigError
from ltx_core.textfiles import parse_json


@dataclass(frozen=True)
class PromptWorld:
    """The words of a model, in lower case; those of which a prompt needs one; what to say of it; prompts to try."""

    words: frozenset[str]
    one_of: frozenset[str]
    says: str
    examples: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str, where: str) -> PromptWorld:
        """Raises `ConfigError` that names the file ``where`` it stands."""
        try:
            given = parse_json(text, where)
            lists = {name: given[name] for name in ("words", "one_of", "examples")}
            world = cls(frozenset(lists["words"]), frozenset(lists["one_of"]), given["says"], tuple(lists["examples"]))
        except (ValueError, TypeError, KeyError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise ConfigError(f"{where}: prompt_world cannot be read, expected an object with {names}") from error
        if not all(isinstance(text, str) for text in (*world.words, *world.one_of, world.says, *world.examples)):
            raise ConfigError(f"{where}: prompt_world holds something that is no text")
        return world

    def holds(self, prompt: str) -> bool:
        """Whether the model knows what a prompt speaks of."""
        words = set(re.findall(r"[^\W_]+", prompt.lower()))
        return words <= self.words and not self.one_of.isdisjoint(words)
