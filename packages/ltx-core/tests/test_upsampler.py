"""The latent upsampler: published tensor names, sizes, gradients, and configs it must refuse."""

from __future__ import annotations

import pytest
import torch

from ltx_core.components.joining import adain
from ltx_core.errors import ConfigError
from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.upsampler.model import (
    LatentUpsampler,
    first_pass_size,
    tone_map_latent,
    upsample_latent,
)

SMALL = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1}
FORMS = {
    "spatial": {},
    "rational_2": {"rational_resampler": True},
    "rational_1.5": {"rational_resampler": True, "spatial_scale": 1.5},
    "rational_0.75": {"rational_resampler": True, "spatial_scale": 0.75},
    "temporal": {"spatial_upsample": False, "temporal_upsample": True, "rational_resampler": True},
    "both": {"temporal_upsample": True},
    "per_frame": {"dims": 2},
    "per_frame_rational": {"dims": 2, "rational_resampler": True},
}
SIZES = {
    "spatial": (3, 8, 10),
    "rational_2": (3, 8, 10),
    "rational_1.5": (3, 6, 8),
    "rational_0.75": (3, 3, 4),
    "temporal": (5, 4, 5),
    "both": (5, 8, 10),
    "per_frame": (3, 8, 10),
    "per_frame_rational": (3, 8, 10),
}


def build(**extra) -> LatentUpsampler:
    torch.manual_seed(0)
    return LatentUpsampler(LatentUpsamplerConfig.from_metadata({**SMALL, **extra})).eval()


@pytest.mark.parametrize("form", FORMS)
def test_size_and_gradient(form):
    model = build(**FORMS[form])
    latent = torch.randn(2, 4, 3, 4, 5, requires_grad=True)
    result = model(latent)
    assert result.shape == (2, 4, *SIZES[form])
    result.square().sum().backward()
    assert latent.grad is not None and latent.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_meta_build_loads_what_a_real_build_saved(form):
    model = build(**FORMS[form])
    with torch.device("meta"):
        shell = LatentUpsampler(model.config)
    shell.load_state_dict(model.state_dict(), assign=True, strict=True)
    latent = torch.randn(1, 4, 2, 3, 3)
    assert torch.equal(shell.eval()(latent), model(latent))


def test_tensor_names_of_the_published_forms():
    def count(**extra):
        with torch.device("meta"):
            state = LatentUpsampler(LatentUpsamplerConfig.from_metadata(extra)).state_dict()
        return len(state), sum(t.numel() for t in state.values())

    assert count(mid_channels=1024, rational_resampler=True) == (73, 497_867_929)
    assert count(mid_channels=1024) == (72, 497_867_904)
    assert count(mid_channels=1024, rational_resampler=True, spatial_scale=1.5) == (73, 545_058_969)
    assert count(spatial_upsample=False, temporal_upsample=True, spatial_scale=1.0) == (72, 130_968_192)
    assert count() == (72, 126_250_624)


def test_frames_do_not_mix_with_two_dims():
    model = build(dims=2)
    latent = torch.randn(1, 4, 3, 4, 4)
    alone = model(latent[:, :, 1:2])
    torch.testing.assert_close(model(latent)[:, :, 1:2], alone, rtol=1e-5, atol=1e-5)


def test_upsample_latent_is_upsampling_between_un_normalising_and_normalising():
    model = build()
    latent, mean, std = torch.randn(1, 4, 2, 3, 3), torch.randn(4), torch.rand(4) + 0.5
    shape = (1, 4, 1, 1, 1)
    expected = (model(latent * std.view(shape) + mean.view(shape)) - mean.view(shape)) / std.view(shape)
    torch.testing.assert_close(upsample_latent(latent, model, mean, std), expected)


@pytest.mark.parametrize(
    "extra",
    [
        {"dims": 4},
        {"mid_channels": 48},
        {"spatial_upsample": False},
        {"dims": 2, "temporal_upsample": True},
        {"spatial_scale": 3.0, "rational_resampler": True},
        {"_class_name": "AutoencoderKL"},
    ],
)
def test_contradictory_configs_are_refused(extra):
    with pytest.raises(ConfigError, match=next(iter(extra))):
        LatentUpsamplerConfig.from_metadata({**SMALL, **extra})


def test_wrong_channel_count_is_refused():
    with pytest.raises(ConfigError, match="expected \\[B, 4, T, H, W\\]"):
        build()(torch.zeros(1, 5, 1, 2, 2))


def test_adain_matches_statistics_and_tone_map_keeps_zero_compression():
    latent, reference = torch.randn(2, 3, 2, 4, 4) * 3 + 1, torch.randn(2, 3, 2, 5, 5)
    matched = adain(latent, reference, 1.0)
    torch.testing.assert_close(matched.mean((2, 3, 4)), reference.mean((2, 3, 4)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matched.std((2, 3, 4)), reference.std((2, 3, 4)), rtol=1e-4, atol=1e-5)
    assert torch.equal(tone_map_latent(latent, 0.0), latent)
    assert (tone_map_latent(latent, 1.0).abs() < latent.abs()).all()
    assert first_pass_size(704, 1216, 0.6666666) == (448, 800)
    with pytest.raises(ConfigError, match="compression"):
        tone_map_latent(latent, 1.5)
