"""Canvases and tiles that pipelines plan with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_core.errors import ConfigError
from ltx_pipelines.planning.layout import TIME_FACTOR, Canvas, align_resolution, balanced_tile_split, temporal_tiles


@given(st.integers(1, 100))
def test_a_canvas_holds_its_clip_in_whole_segments(latents):
    frames = latents * TIME_FACTOR + 1
    canvas = Canvas.of(frames)
    assert frames <= canvas.frames < frames + canvas.segment
    assert canvas.keyframes[0] == canvas.segment and canvas.keyframes[-1] == canvas.frames - 1
    assert (canvas.frames - 1) % canvas.segment == 0


@pytest.mark.parametrize("frames", [0, 1, 8, 10, 120])
def test_a_canvas_refuses_other_lengths(frames):
    with pytest.raises(ConfigError, match="8k\\+1"):
        Canvas.of(frames)


@given(st.integers(1, 20), st.sampled_from([24, 32, 48]), st.integers(1, 8))
def test_tiles_deliver_every_latent_frame_once(segments, segment, count):
    seams = [segment * index for index in range(1, segments + 1)]
    tiles = temporal_tiles(seams, count)
    assert len(tiles) == min(count, segments)
    delivered = [
        latent for tile in tiles for latent in range(tile.latent_start + tile.dropped_latents, tile.latent_end)
    ]
    assert delivered == list(range(seams[-1] // TIME_FACTOR + 1))
    assert {slot for tile in tiles for slot in tile.slots} == {seam - segment // 2 for seam in seams}
    lengths = [len(tile.slots) - (index > 0) for index, tile in enumerate(tiles)]
    assert lengths == sorted(lengths, reverse=True)


@given(st.integers(1, 64))
def test_balanced_split(count):
    rows, columns = balanced_tile_split(count)
    assert rows * columns == count and rows <= columns
    assert not any(count % other == 0 for other in range(rows + 1, int(count**0.5) + 1))


@given(st.integers(64, 3000), st.integers(64, 3000))
def test_aligned_sizes_enclose(height, width):
    inner, outer = (align_resolution(height, width, mode, 64) for mode in ("center_crop", "reflect_pad"))
    for low, side, high in zip(inner, (height, width), outer, strict=True):
        assert low <= side <= high < low + 128 and low % 64 == high % 64 == 0
