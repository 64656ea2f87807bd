"""The edition of the world that is not this process's: its ground truth is read without error too."""

import json
import os
import subprocess
import sys

import pytest

from ltx_core.errors import ConfigError
from ltx_tiny.world import edition

OTHER = next(name for name, one in edition.EDITIONS.items() if one is not edition.EDITION)
SCRIPT = """
import json, numpy as np
from ltx_tiny.eval.detectors import examine
from ltx_tiny.world.render import render
from ltx_tiny.world.scene import attributes, sample_scene

found = []
for number in range(8):
    scene = sample_scene(np.random.default_rng((77, number)), None)
    found.append(examine(*render(scene), attributes(scene)).to_json())
print(json.dumps(found))
"""


def test_scenes_of_the_other_edition_are_read_without_error() -> None:
    environment = {**os.environ, "LTX_TINY_WORLD": OTHER}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert all(all(one["correct"].values()) for one in found), found
    assert all(one["outline"] > 0.88 and one["jitter"] < 0.06 for one in found), found


def test_an_edition_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTX_TINY_WORLD", "3")
    with pytest.raises(ConfigError, match="LTX_TINY_WORLD is '3', expected one of 1, 2"):
        edition.chosen()
