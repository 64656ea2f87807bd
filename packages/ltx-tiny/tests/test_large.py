"""A clip of the bundled model enlarged in tiles: the memory is that of a tile, whatever the size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ltx_pipelines.utils.media_io import probe_video

PROGRAM = """
import resource
from ltx_pipelines.cli.app import run
code = run({line})
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_1024_pixels_take_the_memory_of_512(tmp_path: Path) -> None:
    peaks = []
    for times in ("2", "4"):
        path = tmp_path / f"{times}.mp4"
        line = ["distilled", "-p", "a large red box spins on a white stage", "--model", "tiny", "--num-frames", "49"]
        line += ["--upscale", times, "--tile-size", "256", "--quiet", "-o", str(path)]
        program = [sys.executable, "-c", PROGRAM.format(line=line)]
        code, peak = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()[-2:]
        assert code == "0" and probe_video(path).width == 256 * int(times)
        peaks.append(int(peak))
    assert peaks[1] < 1.1 * peaks[0], peaks
