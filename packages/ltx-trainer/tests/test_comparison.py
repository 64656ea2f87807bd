"""Samples beside what they were given and what they should be: what is shown, and what is measured."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from ltx_core.types import Audio, SpatioTemporalScaleFactors
from ltx_trainer.comparison import Clip, agreement, onset_correlation, write_comparison
from ltx_trainer.validation_config import (
    SampleFirstFrame,
    SampleKeyframe,
    SampleKeyframeImage,
    SampleMask,
    SamplePrefix,
    SampleSpatialCrop,
)
from ltx_trainer.validation_media import given_frames
from ltx_trainer.validation_sampler import EncodedCondition

FACTORS = SpatioTemporalScaleFactors.default()


def beats(*seconds, rate=16000):
    """Two seconds of silence with short tones."""
    wave = torch.zeros(2 * rate)
    for second in seconds:
        start = round(second * rate)
        wave[start : start + 800] = torch.sin(torch.arange(800) / rate * 2 * math.pi * 600)
    return Audio(wave[None], rate)


def test_sounds_agree_where_their_beats_fall_together():
    same = onset_correlation(beats(0.3, 0.9, 1.5), beats(0.3, 0.9, 1.5, rate=22050))
    shifted = onset_correlation(beats(0.3, 0.9, 1.5), beats(0.6, 1.2, 1.8))
    assert same > 0.85 and shifted < 0.2
    assert onset_correlation(beats(0.5), beats()) == 0


def test_pictures_are_measured_where_they_were_not_given():
    truth = torch.full((9, 64, 64, 3), 100, dtype=torch.uint8)
    made = truth.clone()
    made[:, :, 32:] = 151
    given = torch.zeros(2, 2, 2, dtype=torch.bool)
    whole = agreement(Clip("", made), Clip("", truth), None, FACTORS)["psnr"]
    given[:, :, 0] = True
    holes = agreement(Clip("", made), Clip("", truth), given, FACTORS)["psnr"]
    assert holes == pytest.approx(20 * math.log10(5), abs=0.01) and whole == pytest.approx(holes + 10 * math.log10(2))
    given[:] = True
    assert agreement(Clip("", made), Clip("", truth), given, FACTORS) == {}
    made[4] = 151
    keyframes = agreement(Clip("", made), Clip("", truth), given, FACTORS, [4])
    assert keyframes == {"psnr_keyframes": pytest.approx(holes, abs=1e-5)}, "the one picture is off in all its pixels"


def test_a_sheet_shows_every_clip_below_the_one_before(tmp_path):
    frames = torch.zeros(9, 64, 64, 3, dtype=torch.uint8)
    clips = [Clip("given", frames[:1]), Clip("made", frames, beats(0.5)), Clip("nothing"), Clip("truth", frames)]
    for count in (1, 4):
        write_comparison(tmp_path / f"{count}.png", clips[:count], 24.0)
    one, all_of_them = (Image.open(tmp_path / f"{count}.png").size for count in (1, 4))
    assert one[0] == all_of_them[0] == 1600 and one[1] < all_of_them[1] < 4 * one[1]


def test_only_what_was_given_is_shown_as_given():
    frames = torch.arange(17, dtype=torch.uint8).view(17, 1, 1, 1)

    def shown(condition):
        encoded = EncodedCondition(condition, torch.zeros(1, 128, 3, 1, 1))
        return given_frames(encoded, frames, FACTORS).flatten().tolist()

    assert shown(SampleFirstFrame(type="first_frame", image_or_video="a.mp4")) == [0]
    assert shown(SamplePrefix(type="prefix", video="a.mp4", num_frames=9)) == list(range(9))
    assert shown(SamplePrefix(type="prefix", video="a.mp4")) == list(range(17))
    assert shown(SampleKeyframe(type="keyframe", video="a.mp4", latent_index=-1)) == list(range(9, 17))
    assert shown(SampleKeyframe(type="keyframe", video="a.mp4", latent_index=0)) == [0]
    assert shown(SampleKeyframeImage(type="keyframe_image", image_or_video="a.mp4", frame=-2)) == [15]


@pytest.mark.parametrize("kind", ["mask", "spatial_crop"])
def test_what_is_left_open_is_shown_black(kind):
    frames = torch.full((9, 64, 64, 3), 200, dtype=torch.uint8)
    left = torch.zeros(2, 2, 2)
    left[:, :, 0] = 1
    crop = SampleSpatialCrop(type="spatial_crop", video="a.mp4", spatial_region=(0, 0, 64, 40))
    mask = SampleMask(type="mask", video="a.mp4", mask="m.png")
    latent = torch.zeros(1, 128, 2, 2, 2)
    encoded = EncodedCondition(mask, latent, left) if kind == "mask" else EncodedCondition(crop, latent)
    shown = given_frames(encoded, frames, FACTORS)
    assert (shown[:, :, :32] == 200).all() and (shown[:, :, 32:] == 0).all()
